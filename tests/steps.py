"""Parts of a training step, for tests that look at one of them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from nrt.engine.gradient import LossSums
from nrt.engine.local import LocalEngine
from nrt.trainer.groups import Group, Rollout
from nrt.trainer.learner import Learner
from nrt.trainer.progress import Progress, RolloutUpdates
from nrt.trainer.setup import Parts
from nrt.trainer.step import StepHooks, denominator, train_step


class Stop(Exception): ...


def collect(
    learner: Learner,
    draw: Any,
    batch: int,
    *,
    seed: int,
    state: Tensor | None = None,
    sampled: Callable[[], None] = lambda: None,
) -> Rollout:
    """Sample, score and credit `batch` prompts, without an update. `state` is the method's."""
    engine: Any = learner.policy.engine
    rule = learner.method.state_rule
    if rule is not None and state is None:
        state = rule.initial()
    progress = Progress(method_state=state)

    def stop_before_updates() -> None:
        if progress.pending:
            raise Stop

    hooks = StepHooks(checkpoint_here=stop_before_updates, traces_ready=sampled)
    can_fuse, engine.can_fuse = (
        engine.can_fuse,
        False,
    )  # else the first update is made with the scores
    try:
        train_step(replace(learner, batch=batch), progress, draw, seed=seed, hooks=hooks)
    except Stop:
        pass
    finally:
        engine.can_fuse = can_fuse
    assert progress.pending
    return progress.pending.rollout


def step(
    learner: Learner, draw: Any, batch: int, *, seed: int, state: Tensor | None = None
) -> RolloutUpdates:
    """Train a whole step with one update."""
    return train_step(replace(learner, batch=batch), Progress(method_state=state), draw, seed=seed)


def record_gradient(engine: LocalEngine) -> dict[str, Tensor]:
    """Return a dict that will have the gradient of the engine's last update, which it frees."""
    gradients: dict[str, Tensor] = {}

    def record(*_: Any) -> None:
        for name, master in engine.weights.masters.items():
            if master.grad is not None:
                gradients[name] = master.grad.clone()

    engine.optimizer.register_step_pre_hook(record)
    return gradients


def gradient(learner: Learner, groups: Sequence[Group]) -> LossSums:
    """Compute the gradient of an update; it is left in the weights."""
    rows = [row for group in groups for row in group.rows]
    credits = [credit for group in groups for credit in group.row_credits()]
    return local_engine(learner).compute_gradient(
        rows, credits, learner.method, denominator=denominator(learner, groups)
    )


def local_engine(parts: Parts | Learner) -> LocalEngine:
    """Return the engine of a run in this process."""
    engine = parts.learner.policy.engine if isinstance(parts, Parts) else parts.policy.engine
    assert isinstance(engine, LocalEngine)
    return engine
