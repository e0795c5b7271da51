"""The longest row of a run against the model's context, and caps that fit."""

import re
from types import SimpleNamespace

import pytest

from nrt.config import build_config
from nrt.errors import InputError
from nrt.trainer.context import check_context
from nrt.trainer.resolve import resolve_method


def check(limit, prompt, answer, **settings):
    config = build_config({"model": "m", "data": {"train": "t", "valid": "v"}} | settings)
    method = resolve_method(config.method, config.objective)
    model_config = SimpleNamespace(model_type="llama", max_position_embeddings=limit)
    model_config.get_text_config = lambda: model_config
    return check_context(config, method, model_config, prompt, answer)


CHECKED = {"heldout": {"checker": "exact"}}
CAPS = {"max_trace_tokens": 512, "max_answer_tokens": 512}


@pytest.mark.parametrize(
    ("limit", "prompt", "answer", "settings", "caps"),
    [
        (256, 6, 2, CAPS, {"max_trace_tokens": 246}),  # 256 − 6 − START − END − 2
        (256, 6, 2, CAPS | CHECKED, {"max_answer_tokens": 62, "max_trace_tokens": 186}),
        (256, 6, 100, CAPS | CHECKED, {"max_answer_tokens": 100, "max_trace_tokens": 148}),
        # a short trace leaves the rest to the answer
        (
            1024, 100, 2, CHECKED | {"max_trace_tokens": 100, "max_answer_tokens": 2048},
            {"max_answer_tokens": 822},
        ),
        (1024, 100, 2, CHECKED | {"method": "sft", "max_answer_tokens": 2048}, {"max_answer_tokens": 924}),
    ],
)  # fmt: skip
def test_the_suggested_caps_fill_the_context(limit, prompt, answer, settings, caps):
    suggestion = " ".join(f"{name}={cap}" for name, cap in caps.items())
    with pytest.raises(InputError, match=re.escape(f"for {limit}; set {suggestion}, or take a")):
        check(limit, prompt, answer, **settings)
    assert check(limit, prompt, answer, **settings | caps) == limit


@pytest.mark.parametrize("method", ["sft", "nrt-gm"])
def test_rows_that_no_cap_can_fit(method):
    with pytest.raises(InputError, match="for 100; shorten the data's rows"):
        check(100, 60, 50, method=method)


def test_a_row_without_a_trace_may_fill_the_context():
    assert check(100, 50, 50, method="sft") == 100
