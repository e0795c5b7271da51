"""Request for the traces of a step, and its seed."""

from __future__ import annotations

from nrt.config import Config
from nrt.rollout import Request
from nrt.trainer.setup import Parts


def next_request(config: Config, parts: Parts, step: int, position: int) -> Request:
    """Return the request for traces of step `step + 1`, whose prompts start at `position`."""
    seed = seed_of(config.seed, step + 1)
    return parts.policy.trace_request(parts.draw(position, config.batch), config.traces, seed=seed)


def seed_of(seed: int, step: int) -> int:
    """Return the sampling seed of a step: no random state has to survive an interruption."""
    return (seed * 1_000_003 + step * 7_919) % 2**63
