"""Golden ids of whole rows, and the splice as an invertible function of ids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nrt.data import Markers, bare_row, null_row, to_trace, trace_row
from nrt.errors import RunError
from nrt.types import Example, Message, Pair, Role, Row, Sample, Trace
from tests.data.cases import build_case

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "golden" / "splice.json").read_text(encoding="utf-8")
)
MARKERS = Markers(start_id=1, end_id=2)
TURNS = {
    "base": (Message("user", "What is Paris?"),),
    "chatml": (
        Message("system", "Yes or no"),
        Message("user", "What?"),
        Message("assistant", " Paris "),
        Message("user", "Paris is\nthe town?"),
    ),
    "llama3": (Message("user", "  What is the town?\n"),),
}


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_rows_have_the_golden_ids(name: str) -> None:
    """`tokens` are the words that the ids stand for, so that a reader can check the file by eye."""
    tokenizer, template = name.split("/")
    case = build_case(tokenizer, template)
    chat = case.chat
    example = Example("x:1", TURNS[template], "Paris is the town.")
    pair = Pair(example, chat.encode_prompt(example.messages), chat.encode_answer(example.answer))
    sample = Sample((*chat.encode_text("Yes, Paris"), chat.end_id))
    row = trace_row(
        pair, to_trace(sample, chat.end_id, chat.stop_ids), Markers(chat.start_id, chat.end_id)
    )
    assert list(row.ids) == GOLDEN[name]["ids"]
    assert case.tokenizer.convert_ids_to_tokens(list(row.ids)) == GOLDEN[name]["tokens"]


PAIR = Pair(Example("x:1", (Message("user", "q"),), "a"), prompt_ids=(5, 6), answer_ids=(8, 9))


def test_row_by_hand() -> None:
    row = trace_row(PAIR, Trace((7,), finished=True), MARKERS)
    assert row.ids == (5, 6, 1, 7, 2, 8, 9)
    assert row.tail_ids == (1, 7, 2, 8, 9)
    assert row.tail_roles == (Role.START, Role.TRACE, Role.END, Role.ANSWER, Role.ANSWER)
    assert row.end_sampled


def test_null_and_bare_rows_by_hand() -> None:
    null, bare = null_row(PAIR, MARKERS), bare_row(PAIR)
    assert (null.ids, null.tail_roles) == (
        (5, 6, 1, 2, 8, 9),
        (Role.START, Role.END, Role.ANSWER, Role.ANSWER),
    )
    assert (bare.ids, bare.tail_roles) == ((5, 6, 8, 9), (Role.ANSWER, Role.ANSWER))
    assert not null.end_sampled
    assert not bare.end_sampled


STOPS = {0, 2}


@pytest.mark.parametrize(
    ("ids", "trace", "ended_by"),
    [
        ((7, 8, 2), (7, 8), "END"),  # END is an action, and is left out of z
        ((2,), (), "END"),  # nothing thought
        ((7, 8, 0), (7, 8), "end token"),  # removed, with its log-probability
        ((0,), (), "end token"),  # the null trace's ids
        ((7, 8), (7, 8), "cap"),
        ((), (), "cap"),
    ],
)
def test_what_a_sample_becomes(ids: tuple[int, ...], trace: tuple[int, ...], ended_by: str) -> None:
    logps = tuple(-float(i) for i in range(len(ids)))
    result = to_trace(Sample(ids, logps), end_id=2, stop_ids=STOPS)
    actions = len(ids) - (ended_by == "end token")
    assert (result.ids, result.logps) == (trace, logps[:actions])
    assert (result.finished, result.end_token, result.capped) == (
        ended_by == "END",
        ended_by == "end token",
        ended_by == "cap",
    )
    assert result.n_sampled == actions
    row = trace_row(PAIR, result, MARKERS)
    assert row.tail_ids == (1, *trace, 2, 8, 9)
    assert row.end_sampled == result.finished


def test_authors_own_rules_keep_the_end_token_as_an_action() -> None:
    result = to_trace(Sample((7, 0), (-1.0, -0.5)), end_id=2, stop_ids=STOPS, keep_end_token=True)
    assert (result.ids, result.logps, result.finished, result.end_token) == (
        (7, 0),
        (-1.0, -0.5),
        False,
        True,
    )
    assert result.n_sampled == 2


def test_a_sampler_that_breaks_its_contract_is_caught() -> None:
    with pytest.raises(RunError, match="continued past END"):
        to_trace(Sample((7, 2, 8)), end_id=2, stop_ids=STOPS)
    with pytest.raises(RunError, match="3 ids and 1 log-probabilities"):
        to_trace(Sample((7, 8, 2), (-1.0,)), end_id=2, stop_ids=STOPS)


def split_row(row: Row) -> tuple[tuple[int, ...], ...]:
    """Return (trace ids, answer ids), by roles: ids of markers inside them do not matter."""
    tokens = list(zip(row.tail_ids, row.tail_roles, strict=True))
    return tuple(
        tuple(token for token, found in tokens if found is role)
        for role in (Role.TRACE, Role.ANSWER)
    )


IDS = st.lists(st.integers(0, 12), max_size=12).map(tuple)


@given(prompt=IDS, trace=IDS, answer=IDS, finished=st.booleans())
def test_unsplice_inverts_the_splice(
    prompt: tuple[int, ...], trace: tuple[int, ...], answer: tuple[int, ...], finished: bool
) -> None:
    """Also where prompt, trace and answer hold the markers' own ids (1 and 2)."""
    pair = Pair(PAIR.example, prompt, answer)
    row = trace_row(pair, Trace(trace, finished), MARKERS)
    assert split_row(row) == (trace, answer)
    assert row.ids == (*prompt, 1, *trace, 2, *answer)
    assert len(row.tail_ids) == len(row.tail_roles)
    assert split_row(null_row(pair, MARKERS)) == ((), answer)
    assert split_row(bare_row(pair)) == ((), answer)
