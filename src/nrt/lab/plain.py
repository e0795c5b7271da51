"""Answers of a pretrained model as plain text, before any training and without markers."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from nrt.data.checkers import last_number
from nrt.rollout import HFSampler, Request

MAX_TOKENS = 64


def plain_verdicts(
    model: Any, tokenizer: Any, rows: Iterable[Mapping[str, Any]]
) -> dict[str, list[bool]]:
    """Return whether each greedy answer is right, by the source of its row.

    The model continues the prompt, worked examples included, for at most 64 tokens or until it ends
    its turn. The number after its first `The answer is` counts.

    Args:
        rows: rows as `lab.settings` writes them, with `messages` and `source`.
    """
    rows = list(rows)
    prompts = []
    for row in rows:
        ids = tokenizer.apply_chat_template(row["messages"][:-1], tokenize=True, return_dict=False)
        prompts.append(tuple(ids))
    stop_ids = frozenset({tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.eos_token_id})
    request = Request(prompts, n=1, stop_ids=stop_ids, cap=MAX_TOKENS, seed=0, greedy=True)
    verdicts: dict[str, list[bool]] = defaultdict(list)
    for row, (sample,) in zip(rows, HFSampler(model, pad_id=0).sample(request), strict=True):
        reference = row["messages"][-1]["content"]
        verdicts[row["source"]].append(is_right(tokenizer.decode(sample.ids), reference))
    return dict(verdicts)


def is_right(text: str, reference: str) -> bool:
    """Return whether a continuation answers its own question as the reference does.

    >>> is_right("3 + 4 = 7. 7 + 1 = 8.\\nThe answer is 8.\\n\\nQuestion: ...", "The answer is 8.")
    True
    """
    own = text.split("Question:")[0]  # it may continue with questions of its own
    numbers = re.findall(r"The answer is (\d+)", own)
    return bool(numbers) and last_number(numbers[0], reference)
