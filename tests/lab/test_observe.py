"""The miniature's metrics on a rollout made by hand."""

from dataclasses import dataclass
from math import log

import pytest
import torch
from torch import Tensor

from nrt.config import load_config
from nrt.lab.base import build_tokenizer
from nrt.lab.observe import observe
from nrt.lab.world import WALKS, every
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


def group(family: str, answer: str, key: str, work: str, traces: list[str], p_key: list[float], advantages: list[float], at: int) -> Group:
    """`p_key[k]` stands at token `at` of the answer, a log-probability of −9 everywhere else."""
    example = Example("made:1", (Message("user", "x"),), answer, source=family, extra={"key": key, "work": work})
    pair = Pair(example, ids("a"), ids(f"{answer} <eos>"))
    logp_KT = torch.full((len(traces), len(pair.answer_ids)), -9.0)
    logp_KT[:, at] = torch.tensor([log(p) for p in p_key])
    return Group(pair, tuple(Trace(ids(trace), True) for trace in traces), logp_KT, torch.tensor(advantages))


def test_numbers_by_hand() -> None:
    """Sum: worked are traces 0 and 2 of the first group and 1 of the second: 3 of 5; P = (.9 + .6 + .3)/3 = .6; A = (1 − .4 + .9)/3 = .5.

    The key 9 of the first answer stands twice, at 2 and at 6: the last one counts. Bot: none worked. Recall: no work, no metric.
    """
    answer, work = "begin at 9 the final digit 9 .", "we have 9 ; that makes 9 ;"
    first = group("sum", answer, "9", work, [work, "we have 9 ;", f"well {work} now"], [0.9, 0.1, 0.6], [1.0, 0.5, -0.4], at=6)
    second = group(
        "sum", "digit is 3 .", "3", "we have 1 ; that makes 3 ;", ["well", "we have 1 ; that makes 3 ;"], [0.2, 0.3], [0.0, 0.9], at=2
    )
    bot = group(
        "bot", "room is b .", "b", "now in a ; that reaches b ;", ["", "now in a ; that reaches c ;"], [0.5, 0.5], [1.0, -1.0], at=2
    )
    recall = group("recall", "town of elst .", "elst", "", ["well", "hmm"], [0.5, 0.5], [1.0, -1.0], at=2)
    metrics = observe(Rollout((first, second, bot, recall)), TOKENIZER)
    assert metrics == pytest.approx({"worked/sum": 0.6, "p_key_given_worked/sum": 0.6, "advantage_worked/sum": 0.5, "worked/bot": 0.0})


def test_nothing_sampled_nothing_observed() -> None:
    """SFT's groups have no traces, no scores and no advantages."""
    example = Example("made:1", (Message("user", "x"),), "a .", source="bot", extra={"key": "a", "work": "now in a ;"})
    empty = Group(Pair(example, ids("a"), ids("a . <eos>")), (), torch.zeros(0, 3), torch.zeros(0))
    assert observe(Rollout((empty,)), TOKENIZER) == {}


def test_the_family_may_be_a_column_that_nothing_was_mapped_to() -> None:
    made = group("", "room is b .", "b", "now in b ;", ["now in b ;"], [0.5], [1.0], at=2)
    extra = {**made.pair.example.extra, "family": "bot"}
    example = Example("made:1", made.pair.example.messages, made.pair.example.answer, extra=extra)
    pair = Pair(example, made.pair.prompt_ids, made.pair.answer_ids)
    metrics = observe(Rollout((Group(pair, made.traces, made.logp_KT, made.advantage_K),)), TOKENIZER)
    assert metrics == pytest.approx({"worked/bot": 1.0, "p_key_given_worked/bot": 0.5, "advantage_worked/bot": 1.0})


def test_the_recipe_is_valid_and_names_the_observer() -> None:
    config = load_config("miniature", ["model=m", "data.train=t.jsonl", "data.valid=v.jsonl"])
    module, _, name = (config.observer or "").partition(":")
    assert (module, name) == (observe.__module__, observe.__name__)
    assert (config.batch, config.traces, config.steps, config.max_trace_tokens, config.threads) == (16, 8, 120, 20, 1)
    assert (config.markers.start_from, config.markers.end_from) == ("\n", "\n")
    assert config.objective.signal_weight == 1
    assert config.data.columns.source == "family"


def test_the_cap_is_the_length_of_the_work() -> None:
    cap = load_config("miniature").max_trace_tokens
    assert {len(problem.work.split()) for family in WALKS for problem in every(family, "test")} == {cap}
