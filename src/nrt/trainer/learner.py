"""Settings and strategies of a training step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nrt.objective import Method
from nrt.trainer.difficulty import ByDifficulty, InOrder
from nrt.trainer.policy import Policy
from nrt.types import Pair

CheckAnswer = Callable[[Pair, tuple[int, ...]], bool]
"""(pair, ids of a sampled answer without the token that ends it) → whether it is right."""


@dataclass(frozen=True, kw_only=True)
class Learner:
    """Everything that `train_step` needs besides the data and the progress of the run."""

    method: Method
    policy: Policy
    select: InOrder | ByDifficulty  # chooses the prompts of a step from those that come next
    batch: int  # B: prompts a step
    traces: int  # K: traces a prompt
    updates: int  # optimizer updates on each rollout
    loss_tokens: int  # N of the denominator B·K·N
    # Also score answers under the initial model: for metrics, and for methods that need it.
    initial_reference: bool
    check_answer: CheckAnswer | None  # for methods that sample answers
    noise: float  # rounding error of a log-probability, nats (`nrt.objective.NOISE`)

    @property
    def fused(self) -> bool:
        """True if one forward can serve the scores and the first update.

        It can if the method samples traces and drops no group. Rows of later updates are scored
        before the first, which changes the weights.
        """
        method = self.method
        return self.policy.engine.can_fuse and method.samples and method.keep is None
