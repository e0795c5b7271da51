"""Table of methods as frozen records: two methods differ exactly where their records differ.

To add your own method, add an entry:
`METHODS["mine"] = replace(METHODS["nrt-gm"], name="mine", reward=my_reward)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from nrt.errors import InputError, first_line
from nrt.objective.advantage import Centre, Scale
from nrt.objective.method_state import LearnedWeights, ScoredGroup, StateRule, StdFilter
from nrt.objective.reward_shaping import (
    Shape,
    latro_reward,
    nover_reward,
    rlpr_reward,
    teacher_gap,
    verdict_reward,
    zero_unfinished,
)
from nrt.objective.rewards import (
    REWARDS,
    Mix,
    Reward,
    group_rewards,
    log_prob,
    mean_log_prob,
    spread_weights,
    token_signal,
    weighted_log_prob,
    weighted_prob,
)

Weigh = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(logp_KT, base_T, the method's state) → weights w_T [T], frozen with the group.

The reward takes these weights in place of base_T.
"""

Keep = Callable[[ScoredGroup, Any], bool]
"""(group, the method's state or None) → True if the trainer trains on the group."""


@dataclass(frozen=True)
class TraceReference:
    """Second policy that scores the sampled tokens: a reference model, or a teacher."""

    policy: Literal["old", "initial"]  # the weights that sampled, or those of the initial model
    sees_answer: bool  # its context is `x y*` in place of `x`


@dataclass(frozen=True)
class Method:
    """Rules that turn rewards into updates.

    Defaults are the paper's (Eqs. 8–11, Table 6, Appendix F).
    """

    name: str
    reward: Reward | None  # None: no traces are sampled (SFT)
    weigh: Weigh | None = None  # token weights of a group, for rewards that use them
    base_layout: Literal["null", "bare"] = "null"  # R_base is scored after `x START END`, or `x`
    base_policy: Literal["old", "initial"] = "old"  # model that scores R_base
    clip: bool = True  # R' = max(0, R − R_base), Eq. 9
    shape: Shape | None = None  # the authors' own rule on R' (format share, penalty, verdict)
    centre: Centre | None = "mean"  # Eq. 10
    scale: Scale | None = "std"  # Eq. 10
    eps: float = 0.0  # added to the divisor
    # A = 0 for traces that the cap cut, or whose sampled answer it cut; they count in the mean
    masks_truncated: bool = False
    state_rule: StateRule | None = None  # state from one rollout to the next
    keep: Keep | None = None  # groups for which it returns False are dropped and replaced
    ratio: Literal["ppo", "cispo", "none"] = "ppo"
    ratio_clip: tuple[float, float] = (0.2, 0.28)  # Table 6
    # maximum weight π_old/π_sampler of a sampled token; None: weight 1 on every token
    importance_cap: float | None = None
    # an END that was appended takes part in the trace term, as in the authors' release
    appended_end_acts: bool = False
    # "signal": ∂R/∂log c (Eq. 8); "reward": the trace's final reward; "beats-null": 1 after traces
    # with R > R_base, else 0; "posterior": the trace's share K·Πc_k / Σ_j Πc_j of the group's
    # likelihood; or one number for all tokens
    answer_weight: Literal["signal", "reward", "beats-null", "posterior"] | float = "signal"
    # smallest weight of an answer token, if the weight is the signal; None: none
    signal_floor: float | None = None
    trace_reference: TraceReference | None = None  # scores the sampled tokens for the rules below
    # each sampled token has the advantage log π_reference − log π_old, in place of its trace's
    token_advantages: bool = False
    trace_coef: float = 1.0  # coefficient of the trace term
    answer_coef: float = 1.0  # β
    format_coef: float = 0.3  # λ_format, Table 6
    format_on: Literal["all", "unfinished"] = "all"  # traces whose markers get the format term
    # an end token other than END that stopped a trace stays in the trace, as an action
    keeps_end_token: bool = False
    # the model samples an answer after each trace; it replaces the reference and is an action
    samples_answers: bool = False
    checks_answers: bool = False  # a checker's verdict on the sampled answer is its reward
    own_rules: bool = False  # runs as its own authors run it; profiles do not change it

    @property
    def samples(self) -> bool:
        """True if the method samples traces."""
        return self.reward is not None

    @property
    def needs_initial_model(self) -> bool:
        """True if the initial model gives the baseline or scores the traces."""
        reference = self.trace_reference
        reads_traces = reference is not None and reference.policy == "initial"
        return self.base_policy == "initial" or reads_traces

    def check_traces(self, K: int) -> None:
        """Raise InputError if this method cannot work with K traces per prompt."""
        if self.centre in ("leave-one-out", "bound") and K < 2:
            raise InputError(
                f"method {self.name} uses {self.centre}, which needs K ≥ 2 traces per prompt; "
                "set traces=2 or more"
            )

    def check_reward(self) -> None:
        """Raise InputError if the reward, which may be a user's, fails on a made-up group of two
        traces and an answer of three tokens.
        """
        if self.reward is None or self.weigh is not None:  # weights of its own come from a group
            return
        logp_KT = torch.tensor([[0.5, 0.9, 0.2], [0.7, 0.9, 0.1]]).log()
        try:
            group_rewards(self.reward, logp_KT, logp_KT[0], logp_KT[0], 0.0)
            if self.answer_weight == "signal":
                token_signal(self.reward, logp_KT, logp_KT[0])
        except Exception as error:
            kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
            raise InputError(
                f"method {self.name}: its reward fails on made-up log-probabilities of two traces "
                f"and an answer of three tokens: {kind}{first_line(error)} (docs/new-method.md)"
            ) from error

    def check_rules(self) -> None:
        """Raise InputError for rules that exclude one another."""
        if self.centre == "bound" and (self.clip or self.scale is not None):
            raise InputError(
                f"method {self.name} centres by the multi-sample bound, which reads rewards as "
                "log-likelihoods; unset objective.baseline_clip and objective.scale"
            )
        negative = not self.clip and self.reward in (log_prob, mean_log_prob, weighted_log_prob)
        if self.shape is not None:
            negative = self.shape in (latro_reward, teacher_gap, rlpr_reward)
        if self.scale == "mean" and negative:
            raise InputError(
                f"objective.scale=mean divides by the mean reward of a group, and the rewards of "
                f"{self.name} can be negative; use it with a probability or a verdict"
            )
        if self.answer_weight == "reward" and negative:
            raise InputError(
                f"objective.answer_weight=reward weighs the answer with the reward, and the "
                f"rewards of {self.name} can be negative: the answer would be trained away; set "
                "another weight"
            )
        if self.signal_floor is not None and self.answer_weight != "signal":
            raise InputError(
                f"objective.signal_floor is for answer weights that are the signal, and this run "
                f"has answer_weight={self.answer_weight}; unset it, or set "
                "objective.answer_weight=signal"
            )


def _paper(name: str, reward: str) -> Method:
    return Method(name, REWARDS[reward])


def mixed(name: str, first: Method, second: Method, share: float) -> Method:
    """Return a method that mixes the normalised advantages and signals of two methods.

    `share` is the weight of the first method; the second has weight 1 − share.

    Raises InputError if the methods differ in more than their reward, or if the share lies
    outside [0, 1].
    """
    same_rules = replace(first, name="", reward=None) == replace(second, name="", reward=None)
    if first.reward is None or second.reward is None or not same_rules:
        raise InputError(
            f"{first.name} and {second.name} differ in more than their reward; "
            "only rewards can be mixed"
        )
    parts = ((share, first.reward), (1.0 - share, second.reward))
    return replace(first, name=name, reward=Mix(parts))


# log π(y* | x, z), leave-one-out, and the exact gradient of the answer: the single-sample bound.
_SINGLE_SAMPLE_BOUND = Method(
    "", REWARDS["log-prob"], clip=False, centre="leave-one-out", scale=None, ratio="none",
    answer_weight=1.0, format_coef=0.0, own_rules=True,
)  # fmt: skip
# Every sampled token, the answer's included, moves towards a teacher that has read y*.
_SELF_DISTILLATION = Method(
    "", REWARDS["log-prob"], clip=False, shape=teacher_gap, centre=None, scale=None, ratio="none",
    answer_weight=0.0, format_coef=0.0, samples_answers=True, token_advantages=True,
    own_rules=True,
)  # fmt: skip
_RLPR_FILTER = StdFilter()
_LEARNED_WEIGHTS = LearnedWeights()

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        _paper("nrt-ws-neg-log-p", "neg-log-prob"),
        _paper("nrt-ws-inv-p", "inverse-prob"),
        _paper("nrt-gm", "geometric-mean"),
        # The paper's re-implementations: "the same reward stabilization and structural format
        # supervision" (Appendix F).
        _paper("rlpr", "arithmetic-mean"),
        _paper("verifree", "prob"),
        _paper("jlb", "log-prob"),
        # Methods as their own authors run them.
        Method(  # OpenBMB/RLPR, reproduce_qwen.sh
            "rlpr-original", REWARDS["arithmetic-mean"], base_layout="bare", base_policy="initial",
            shape=rlpr_reward, eps=1e-6, state_rule=_RLPR_FILTER, keep=_RLPR_FILTER.keep,
            ratio_clip=(0.2, 0.27), answer_weight=0.0, format_coef=0.0, keeps_end_token=True,
            samples_answers=True, own_rules=True,
        ),
        Method(  # sail-sg/VeriFree: −A Σ log π(z) − R Σ log π(y*)
            "verifree-original", REWARDS["prob"], clip=False, shape=zero_unfinished,
            centre="leave-one-out", scale=None, ratio="none", answer_weight="reward",
            format_coef=0.0, keeps_end_token=True, own_rules=True,
        ),
        replace(_SINGLE_SAMPLE_BOUND, name="jlb-original"),  # arXiv 2503.19618, n = 1
        replace(  # arXiv 2503.19618, log (1/K) Σ_k Πc_k over the K traces of a prompt
            _SINGLE_SAMPLE_BOUND, name="jepo", centre="bound", answer_weight="posterior",
        ),
        replace(  # SalesforceAIResearch/LaTRO, arXiv 2411.04282
            _SINGLE_SAMPLE_BOUND, name="latro", shape=latro_reward,
            trace_reference=TraceReference("initial", sees_answer=False),
        ),
        replace(  # arXiv 2601.19897, with a teacher that follows the policy at once
            _SELF_DISTILLATION, name="sdft",
            trace_reference=TraceReference("old", sees_answer=True),
        ),
        replace(  # siyan-zhao/OPSD, use_tinker_loss and fixed_teacher
            _SELF_DISTILLATION, name="opsd",
            trace_reference=TraceReference("initial", sees_answer=True),
        ),
        Method(  # thinkwee/NOVER
            "nover", REWARDS["mean-log-prob"], clip=False, shape=nover_reward, scale=None,
            masks_truncated=True, ratio_clip=(0.1, 0.28), answer_weight=0.0, format_coef=0.0,
            keeps_end_token=True, samples_answers=True, own_rules=True,
        ),
        replace(_SINGLE_SAMPLE_BOUND, name="log-prob"),  # arXiv 2602.03979, its headline
        # arXiv 2510.01265. Its EMA baseline is one number for the K traces of a prompt, so it
        # cancels in leave-one-out advantages (docs/methods.md).
        replace(_SINGLE_SAMPLE_BOUND, name="rlp", ratio="ppo", answer_weight=0.0),
        # Methods beyond the paper.
        Method(  # arXiv 2602.03979
            "mean-log-prob", REWARDS["mean-log-prob"], clip=False, scale=None, answer_weight=1.0,
        ),
        Method(  # arXiv 2602.02710, with Πc in place of a verdict
            "maxrl", REWARDS["prob"], clip=False, scale="mean", answer_weight="posterior",
        ),
        # R3's weights (arXiv 2506.13351) in the paper's frame
        Method("dro", weighted_log_prob, weigh=spread_weights, clip=False),
        mixed("nrt-mixed", _paper("", "neg-log-prob"), _paper("", "geometric-mean"), 0.5),
        Method(
            "nrt-learned", weighted_prob, weigh=_LEARNED_WEIGHTS.weigh,
            state_rule=_LEARNED_WEIGHTS,
        ),
        Method(  # GRPO on a checker's verdict: the reference point that needs a verifier
            "rlvr", REWARDS["arithmetic-mean"], clip=False, shape=verdict_reward,
            answer_weight=0.0, samples_answers=True, checks_answers=True,
        ),
        # Baseline: y* after x, without markers.
        Method("sft", reward=None, answer_weight=1.0, format_coef=0.0),
    )
}  # fmt: skip
"""Methods by name (docs/methods.md)."""

PACKAGED = frozenset(METHODS)
"""Names of nrt's own methods; METHODS may get others."""

NOT_OFFERED: dict[str, str] = {
    "grpo": "its reward is a verifier's; set method=rlvr, which is GRPO on a checker's verdict",
    "rlcsd": (
        "its second teacher reads a wrong solution, and question-answer pairs have none; a "
        "checker would have to find one among the model's own answers (arXiv 2606.11709)"
    ),
    "covrl": (
        "it samples part of the traces from the model with y* in its context, and the loss would "
        "need importance weights between the two proposals; every trace of a step comes from one "
        "policy (arXiv 2512.12576)"
    ),
    "rgra": (
        "it is a setting of other methods; set objective.ratio=none and "
        "objective.baseline_clip=false (arXiv 2603.18756)"
    ),
}
"""Methods of the field that nrt does not have, with the reason (docs/methods.md)."""
