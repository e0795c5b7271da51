"""A plugin: a method whose reward is NaN where y* has a certain length, in every process that imports it."""

from dataclasses import replace

from nrt.objective import METHODS, REWARDS

LONG = 6
"""Answer tokens: "the sum is so two" and the end of the turn."""


def reward(logp_KT, base_T):
    return REWARDS["geometric-mean"](logp_KT, base_T) * (
        float("nan") if logp_KT.shape[1] == LONG else 1.0
    )


BREAKS = METHODS["breaks"] = replace(METHODS["nrt-gm"], name="breaks", reward=reward)
