"""The readout of a step, on groups made by hand."""

from math import log

import pytest
import torch

from nrt.data.checkers import last_number
from nrt.objective import METHODS
from nrt.trainer.groups import GroupScores, build_group
from nrt.trainer.readout import MAX_TRACES, readout_metrics
from nrt.types import Example, Message, Pair, Trace


def decode(ids):
    return bytes(ids).decode()


def group(source, answer, traces, probabilities):
    """A group whose answer has two tokens: the first is certain after every trace."""
    pair = Pair(Example("made:1", (Message("user", "x"),), answer, source=source), (1,), (1, 2))
    logp_KT = torch.tensor([[0.0, log(p)] for p in probabilities])
    tails = tuple((torch.zeros(1), torch.zeros(1)) for _ in traces)
    traces = tuple(Trace(tuple(text.encode()), True) for text in traces)
    scores = GroupScores(traces, tails, logp_KT, base_T=torch.tensor([0.0, log(0.1)]))
    return build_group(METHODS["nrt-gm"], pair, (), scores)


def test_numbers_by_hand():
    """Right are traces 1, 3, 4 and 5 of the first group, and one of the second: 5 of 7.

    In the first group their hardest tokens have .9, .5, .7 and .7, and .7 in the mean. The rewards
    of the group are the square roots, clipped at the null trace's √.1.
    """
    sums = ["3 + 4 = 7.", "3 + 4 = 8.", "7", "it is 7", "4 + 3 = 7"]
    probabilities = [0.9, 0.05, 0.5, 0.7, 0.7]
    groups = [
        group("sums", "It is 7.", sums, probabilities),
        group("other", "It is 2.", ["1", "2"], [0.4, 0.2]),
    ]
    metrics = readout_metrics(groups, last_number, decode)
    rewards = torch.tensor(probabilities, dtype=torch.float64).sqrt()
    rewards = (rewards - 0.1**0.5).clamp(min=0)
    advantages = (rewards - rewards.mean()) / rewards.std()
    of_sums = advantages[[0, 2, 3, 4]].tolist()
    assert metrics == pytest.approx(
        {
            "readout/right": 5 / 7,
            "readout/right/sums": 4 / 5,
            "readout/right/other": 1 / 2,
            "readout/probability": (0.9 + 0.5 + 0.7 + 0.7 + 0.2) / 5,
            "readout/probability/sums": 0.7,
            "readout/advantage": (sum(of_sums) - 0.5**0.5) / 5,  # of two traces: ±√½
            "readout/advantage/sums": sum(of_sums) / 4,
        },
        rel=1e-5,
    )


def test_too_few_right_traces_for_a_mean():
    one = group("", "It is 7.", ["7", "7", "7", "8"], [0.5, 0.4, 0.3, 0.2])
    assert readout_metrics([one], last_number, decode) == {"readout/right": 0.75}


def test_nothing_right_and_nothing_sampled():
    one = group("", "It is 7.", ["8"], [0.5])
    assert readout_metrics([one], last_number, decode) == {"readout/right": 0.0}
    assert readout_metrics([], last_number, decode) == {}


def test_a_large_step_is_checked_in_part():
    calls = []

    def checker(answer, reference):
        calls.append(answer)
        return True

    one = group("", "It is 7.", ["7"] * 100, [0.5] * 100)
    readout_metrics([one] * 5, checker, decode)
    assert len(calls) == 200 <= MAX_TRACES
    calls.clear()
    many = group("", "It is 7.", ["7"] * (MAX_TRACES + 1), [0.5] * (MAX_TRACES + 1))
    assert readout_metrics([many, many], checker, decode)["readout/right"] == 1.0
    assert len(calls) == MAX_TRACES + 1, "the first group is always checked"
