"""Limits, worked with the byte-level tokenizer, where a letter that begins no known word is one token."""

from __future__ import annotations

from typing import Any

import pytest

from nrt.config import Config, DataConfig
from nrt.data import encode_examples
from nrt.errors import InputError
from nrt.types import Example, Message
from tests.data.cases import build_case

CHAT = build_case("byte-level", "base").chat
# A prompt of n letters has as many ids as "x" and n − 1 more; an answer of n letters has n ids and the end of the turn.
FRAME = len(CHAT.encode_prompt((Message("user", "x"),))) - 1
EXAMPLES = [Example(f"f:{n}", (Message("user", "x" * p),), "z" * a) for n, (p, a) in enumerate([(1, 1), (4, 1), (1, 4), (4, 4), (3, 3)], 1)]


def encode(examples: list[Example] = EXAMPLES, **settings: Any):
    return encode_examples(examples, CHAT, Config(**{"max_prompt_tokens": FRAME + 3, "max_answer_tokens": 4, **settings}))


def test_what_is_too_long_is_dropped_and_counted() -> None:
    encoded = encode()
    assert [pair.example.id for pair in encoded.pairs] == ["f:1", "f:5"]
    assert (encoded.dropped_prompts, encoded.dropped_answers, encoded.truncated_answers) == (2, 1, 0)
    assert [len(pair.prompt_ids) - FRAME for pair in encoded.pairs] == [1, 3]
    assert encoded.pairs[1].answer_ids == (*CHAT.encode_text("zzz"), CHAT.end_of_turn_id)


def test_truncated_answers_do_not_end_the_turn() -> None:
    encoded = encode(data=DataConfig(truncate_answers=True))
    assert [pair.example.id for pair in encoded.pairs] == ["f:1", "f:3", "f:5"]
    assert (encoded.dropped_prompts, encoded.dropped_answers, encoded.truncated_answers) == (2, 0, 1)
    assert encoded.pairs[1].answer_ids == CHAT.encode_text("zzzz")


def test_nothing_left() -> None:
    with pytest.raises(InputError, match=r"2 prompts are longer than max_prompt_tokens=.* and 3 answers longer than max_answer_tokens=1;"):
        encode(max_answer_tokens=1)


def test_the_examples_id_stands_before_the_templates_complaint() -> None:
    case = build_case("byte-level", "chatml")
    template = case.tokenizer.chat_template
    case.tokenizer.chat_template = "{{ raise_exception('no') }}"
    try:
        with pytest.raises(InputError, match=r"^f:1: the model's chat template refuses these turns: no$"):
            encode_examples(EXAMPLES, case.chat, Config())
    finally:
        case.tokenizer.chat_template = template
