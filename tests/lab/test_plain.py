"""The baseline of the pretrained model's demo: what it answers on its own."""

import pytest
import torch

from nrt.lab.plain import is_right, plain_verdicts
from nrt.models import load_model
from tests.trainer.conftest import model_dir  # noqa: F401


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("3 + 4 = 7.\nThe answer is 7.", True),
        ("3 + 4 = 8.\nThe answer is 8.", False),
        ("7. The answer", False),
        ("The answer is 8.\n\nThe answer is 7.", False),
        ("I do not know.\n\nQuestion: Start with 7.\nThe answer is 7.", False),
        ("The answer is 70.", False),
    ],
)
def test_the_first_answer_to_its_own_question_counts(text, right):
    assert is_right(text, "The answer is 7.") == right


def test_verdicts_are_by_source(model_dir):  # noqa: F811
    model, tokenizer = load_model(str(model_dir), dtype=torch.float32, device="cpu")
    rows = [
        {
            "messages": [
                {"role": "user", "content": "what is one plus two ?"},
                {"role": "assistant", "content": "The answer is 3."},
            ],
            "source": source,
        }
        for source in ("a", "b", "a")
    ]
    assert plain_verdicts(model, tokenizer, rows) == {"a": [False, False], "b": [False]}
