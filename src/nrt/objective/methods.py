"""The table of methods: frozen records, so that two methods differ exactly where their records do.

A method from outside is one more entry: `METHODS["mine"] = replace(METHODS["nrt-gm"], name="mine", reward=my_reward)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from nrt.errors import InputError
from nrt.objective.advantage import Centre
from nrt.objective.memory import LearnedWeights, Memory, Scored, StdFilter
from nrt.objective.rewards import REWARDS, Mix, Reward, spread_weights, weighted_log_prob, weighted_prob
from nrt.objective.shapes import Shape, rlpr_final, verdict, zero_unfinished

Weigh = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(logp_KT, base_T, state of the memory) → weights w_T [T], frozen with the group; the reward takes them in place of base_T."""

Keep = Callable[[Scored, Tensor], bool]
"""(group, state of the memory) → whether the group is trained on."""


@dataclass(frozen=True)
class Method:
    """How rewards become updates. Defaults are the paper's (Eqs. 8–11, Table 6, Appendix F)."""

    name: str
    reward: Reward | None  # None: nothing is sampled (SFT)
    weigh: Weigh | None = None  # weights of the group's tokens, where the reward wants such
    base_layout: Literal["null", "bare"] = "null"  # what R_base is taken after: `x START END`, or `x` alone
    base_policy: Literal["old", "initial"] = "old"  # and under which model
    clip: bool = True  # R' = max(0, R − R_base), Eq. 9
    shape: Shape | None = None  # the authors' own rule on R' (format share, penalty, verdict)
    centre: Centre | None = "mean"  # Eq. 10
    scale: Literal["std"] | None = "std"  # Eq. 10
    eps: float = 0.0  # added to the std
    memory: Memory | None = None  # state from one rollout to the next
    keep: Keep | None = None  # groups that fail are dropped and replaced
    ratio: Literal["ppo", "cispo", "none"] = "ppo"
    ratio_clip: tuple[float, float] = (0.2, 0.28)  # Table 6
    importance_cap: float | None = None  # most that a sampled token's π_old/π_sampler may weigh; None: 1 on every token
    appended_end_acts: bool = False  # an END that was appended takes part in the trace term (the release)
    answer_weight: Literal["signal", "reward"] | float = "signal"  # Eq. 8: ∂R/∂log c; or the trace's final reward; or one number
    trace_coef: float = 1.0  # of the trace term
    answer_coef: float = 1.0  # β
    format_coef: float = 0.3  # λ_format, Table 6
    format_on: Literal["all", "unfinished"] = "all"  # traces whose markers get the format term
    keeps_end_token: bool = False  # an end token other than END that stopped a trace stays in it, as an action
    samples_answers: bool = False  # after each trace an answer is sampled and trained on as an action, in place of the reference
    checks_answers: bool = False  # and its reward is a checker's verdict
    own_rules: bool = False  # as its own authors run it: profiles leave it alone

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


def mixed(name: str, first: Method, second: Method, share: float) -> Method:
    """`share` of the first method's normalised advantages and signals and the rest of the second's; all else must agree.

    Raises InputError for methods that differ in more than their reward, and for a share outside [0, 1].
    """
    if first.reward is None or second.reward is None or replace(first, name="", reward=None) != replace(second, name="", reward=None):
        raise InputError(f"{first.name} and {second.name} differ in more than their reward; only rewards can be mixed")
    return replace(first, name=name, reward=Mix(((share, first.reward), (1.0 - share, second.reward))))


_RLPR_FILTER = StdFilter()
_LEARNED = LearnedWeights()

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
        # As their own authors run them.
        Method(  # OpenBMB/RLPR, reproduce_qwen.sh
            "rlpr-original", REWARDS["arithmetic-mean"], base_layout="bare", base_policy="initial", shape=rlpr_final, eps=1e-6,
            memory=_RLPR_FILTER, keep=_RLPR_FILTER.keep, ratio_clip=(0.2, 0.27), answer_weight=0.0, format_coef=0.0,
            keeps_end_token=True, samples_answers=True, own_rules=True,
        ),
        Method(  # sail-sg/VeriFree: −A Σ log π(z) − R Σ log π(y*)
            "verifree-original", REWARDS["prob"], clip=False, shape=zero_unfinished, centre="leave-one-out", scale=None, ratio="none",
            answer_weight="reward", format_coef=0.0, keeps_end_token=True, own_rules=True,
        ),
        Method(  # arXiv 2503.19618, the single-sample bound
            "jlb-original", REWARDS["log-prob"], clip=False, centre="leave-one-out", scale=None, ratio="none",
            answer_weight=1.0, format_coef=0.0, own_rules=True,
        ),
        # Beyond the paper.
        Method("mean-log-prob", REWARDS["mean-log-prob"], clip=False, scale=None, answer_weight=1.0),  # arXiv 2602.03979
        Method("dro", weighted_log_prob, weigh=spread_weights, clip=False),  # R3's weights, arXiv 2506.13351, in the paper's frame
        mixed("nrt-mixed", _paper("", "neg-log-prob"), _paper("", "geometric-mean"), 0.5),
        Method("nrt-learned", weighted_prob, weigh=_LEARNED.weigh, memory=_LEARNED),
        Method(  # GRPO on a checker's verdict: the reference point that needs a verifier
            "rlvr", REWARDS["arithmetic-mean"], clip=False, shape=verdict, answer_weight=0.0, samples_answers=True, checks_answers=True,
        ),
        # y* after x, no markers: the baseline.
        Method("sft", reward=None, answer_weight=1.0, format_coef=0.0),
    )
}  # fmt: skip
"""Methods by name (docs/methods.md)."""
