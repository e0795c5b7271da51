"""Metrics of the miniature, on a rollout made by hand."""

from dataclasses import dataclass
from math import log

import pytest
import torch
from torch import Tensor

from nrt.config import load_config
from nrt.lab.base import build_tokenizer
from nrt.lab.observe import observe
from nrt.lab.world import WALKS, all_problems
from nrt.types import Example, Message, Pair, Trace

TOKENIZER = build_tokenizer()


@dataclass(frozen=True)
class Group:
    pair: Pair
    traces: tuple[Trace, ...]
    logp_KT: Tensor
    advantage_K: Tensor


@dataclass(frozen=True)
class Rollout:
    groups: tuple[Group, ...]


def ids(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER.encode(text))


def group(
    family: str,
    answer: str,
    key: str,
    work: str,
    traces: list[str],
    p_key: list[float],
    advantages: list[float],
    at: int,
) -> Group:
    """Return a group in which token `at` of the answer has probability `p_key[k]` after trace k.

    All other tokens have log-probability −9.
    """
    extra = {"key": key, "work": work}
    example = Example("made:1", (Message("user", "x"),), answer, source=family, extra=extra)
    pair = Pair(example, ids("a"), ids(f"{answer} <eos>"))
    logp_KT = torch.full((len(traces), len(pair.answer_ids)), -9.0)
    logp_KT[:, at] = torch.tensor([log(p) for p in p_key])
    traces_K = tuple(Trace(ids(trace), True) for trace in traces)
    return Group(pair, traces_K, logp_KT, torch.tensor(advantages))


def test_numbers_by_hand() -> None:
    """Sum: traces 0 and 2 of the first group and 1 of the second are worked, 3 of 5.

    Then P = (.9 + .6 + .3)/3 = .6 and A = (1 − .4 + .9)/3 = .5. The key 9 of the first answer
    occurs twice, at 2 and at 6, of which the last counts. Bot: none is worked. Recall: no work, no
    metric.
    """
    work = "we have 9 ; that makes 9 ;"
    first = group(
        "sum",
        answer="begin at 9 the final digit 9 .",
        key="9",
        work=work,
        traces=[work, "we have 9 ;", f"well {work} now"],
        p_key=[0.9, 0.1, 0.6],
        advantages=[1.0, 0.5, -0.4],
        at=6,
    )
    work = "we have 1 ; that makes 3 ;"
    second = group(
        "sum",
        answer="digit is 3 .",
        key="3",
        work=work,
        traces=["well", work],
        p_key=[0.2, 0.3],
        advantages=[0.0, 0.9],
        at=2,
    )
    bot = group(
        "bot",
        answer="room is b .",
        key="b",
        work="now in a ; that reaches b ;",
        traces=["", "now in a ; that reaches c ;"],
        p_key=[0.5, 0.5],
        advantages=[1.0, -1.0],
        at=2,
    )
    recall = group(
        "recall",
        answer="town of elst .",
        key="elst",
        work="",
        traces=["well", "hmm"],
        p_key=[0.5, 0.5],
        advantages=[1.0, -1.0],
        at=2,
    )
    metrics = observe(Rollout((first, second, bot, recall)), TOKENIZER)
    expected = {
        "worked/sum": 0.6,
        "p_key_given_worked/sum": 0.6,
        "advantage_worked/sum": 0.5,
        "worked/bot": 0.0,
    }
    assert metrics == pytest.approx(expected)


def test_sft_has_no_metrics() -> None:
    """A group of SFT has no traces, no scores and no advantages."""
    extra = {"key": "a", "work": "now in a ;"}
    example = Example("made:1", (Message("user", "x"),), "a .", source="bot", extra=extra)
    empty = Group(Pair(example, ids("a"), ids("a . <eos>")), (), torch.zeros(0, 3), torch.zeros(0))
    assert observe(Rollout((empty,)), TOKENIZER) == {}


def test_the_family_may_be_an_unmapped_column() -> None:
    made = group("", "room is b .", "b", "now in b ;", ["now in b ;"], [0.5], [1.0], at=2)
    extra = {**made.pair.example.extra, "family": "bot"}
    example = Example("made:1", made.pair.example.messages, made.pair.example.answer, extra=extra)
    pair = Pair(example, made.pair.prompt_ids, made.pair.answer_ids)
    observed = Group(pair, made.traces, made.logp_KT, made.advantage_K)
    metrics = observe(Rollout((observed,)), TOKENIZER)
    expected = {
        "worked/bot": 1.0,
        "p_key_given_worked/bot": 0.5,
        "advantage_worked/bot": 1.0,
    }
    assert metrics == pytest.approx(expected)


def test_the_recipe_is_valid_and_names_the_observer() -> None:
    config = load_config("miniature", ["model=m", "data.train=t.jsonl", "data.valid=v.jsonl"])
    module, _, name = (config.observer or "").partition(":")
    assert (module, name) == (observe.__module__, observe.__name__)
    assert (config.batch, config.traces, config.steps) == (16, 8, 120)
    assert (config.max_trace_tokens, config.threads) == (20, 1)
    assert (config.markers.start_from, config.markers.end_from) == ("\n", "\n")
    assert config.objective.signal_weight == 1
    assert config.data.columns.source == "family"


def test_the_cap_is_the_length_of_the_work() -> None:
    cap = load_config("miniature").max_trace_tokens
    for family in WALKS:
        assert {len(problem.work.split()) for problem in all_problems(family, "test")} == {cap}
