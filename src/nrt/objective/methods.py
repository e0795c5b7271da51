"""The table of methods: frozen records, so that two methods differ exactly where their records do.

A method from outside is one more entry: `METHODS["mine"] = replace(METHODS["nrt-gm"], name="mine", reward=my_reward)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nrt.errors import InputError
from nrt.objective.advantage import Centre
from nrt.objective.rewards import REWARDS, Reward


@dataclass(frozen=True)
class Method:
    """How rewards become updates. Defaults are the paper's (Eqs. 8–11, Table 6, Appendix F)."""

    name: str
    reward: Reward | None  # None: nothing is sampled (SFT)
    clip: bool = True  # R' = max(0, R − R_base), Eq. 9
    centre: Centre | None = "mean"  # Eq. 10
    scale: Literal["std"] | None = "std"  # Eq. 10
    ratio: Literal["ppo", "cispo", "none"] = "ppo"
    ratio_clip: tuple[float, float] = (0.2, 0.28)  # Table 6
    answer_weight: Literal["signal"] | float = "signal"  # Eq. 8: ∂R/∂log c; or one number for every answer token
    answer_coef: float = 1.0  # β
    format_coef: float = 0.3  # λ_format, Table 6
    format_on: Literal["all", "unfinished"] = "all"  # traces whose markers get the format term

    @property
    def samples(self) -> bool:
        """Whether the method samples traces at all."""
        return self.reward is not None

    def check_traces(self, K: int) -> None:
        """Raises InputError when this method cannot work with K traces a prompt."""
        if self.centre == "leave-one-out" and K < 2:
            raise InputError(f"method {self.name} uses leave-one-out, which needs K ≥ 2 traces a prompt; set traces=2 or more")


def _paper(name: str, reward: str) -> Method:
    return Method(name, REWARDS[reward])


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        _paper("nrt-ws-neg-log-p", "neg-log-prob"),
        _paper("nrt-ws-inv-p", "inverse-prob"),
        _paper("nrt-gm", "geometric-mean"),
        # The paper's re-implementations: "the same reward stabilization and structural format supervision" (Appendix F).
        _paper("rlpr", "arithmetic-mean"),
        _paper("verifree", "prob"),
        _paper("jlb", "log-prob"),
        # y* after x, no markers: the baseline.
        Method("sft", reward=None, answer_weight=1.0, format_coef=0.0),
    )
}
