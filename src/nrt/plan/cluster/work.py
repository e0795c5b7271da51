"""What one step does on verl's workers, which forward each row by itself, its prompt too; and what it sends them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from nrt.config import Config
from nrt.objective import Method
from nrt.plan.counting import Token
from nrt.plan.work import GroupRows, Lengths, Phases, Tokens, attended, count_flops, group_rows, limit
from nrt.types import Role, Row


@dataclass(frozen=True)
class Passes:
    """Over the data-parallel ranks, of which each takes as many rows."""

    rows: float  # of a rank, in one update (or one scoring pass)
    at_once: int  # of these, in one micro-batch
    batches: int  # micro-batches of a rank
    idle: float  # rows of the busiest rank over the mean


def rows_of(config: Config, method: Method, lengths: Lengths) -> GroupRows:
    """One prompt's rows: scored first, always; then trained on."""
    rows = group_rows(config, method, lengths)
    one_pass = method.samples and not rows.scored  # the local engine's; its null trace is the last of these
    return replace(rows, scored=rows.trained, trained=rows.trained[:-1]) if one_pass else rows


def count_cluster_tokens(config: Config, method: Method, lengths: Lengths) -> Tokens:
    """Of one step, over all GPUs."""
    B, K, rows = config.batch, config.traces, rows_of(config, method, lengths)
    opening = lengths.prompt + (config.markers.start is not None)
    replies = lengths.answer if method.samples_answers else 0
    again = K * (opening + lengths.trace + 1) if method.samples_answers else 0
    scored = sum(_tokens(part) for part in scoring(config, rows))
    trained = _tokens(rows.trained)
    return Tokens(
        prefilled=B * (opening + again) if method.samples else 0,  # a server's prefix cache reads it once for all traces
        sampled=B * K * (lengths.trace + replies) if method.samples else 0,
        scored=B * scored,
        trained=B * trained,
        null=B * (len(rows.scored[K].ids) if method.samples else 0),
        unshared=B * (scored + trained),
    )


def count_cluster_flops(config: Config, method: Method, lengths: Lengths, token: Token) -> tuple[Phases, Phases]:
    """Of one step, over all GPUs: (as executed, without what is computed again). verl makes the logits of prompts, too."""
    B, rows = config.batch, rows_of(config, method, lengths)
    rollout = count_flops(config, method, lengths, token).rollout
    scored = B * sum(_alone(part, token) for part in scoring(config, rows))

    def update(again: bool) -> float:
        trained = replace(token, flops=token.flops + token.backward_flops + again * token.again_flops)
        return B * _alone(rows.trained, trained, attention=3.5 + again, head=3)

    return Phases(rollout, scored, update(config.gradient_checkpointing)), Phases(rollout, scored, update(False))


def scoring(config: Config, rows: GroupRows) -> list[tuple[Row, ...]]:
    """What is forwarded without gradient for one prompt, pass by pass."""
    return [part for part in (rows.scored, rows.initial, *([rows.weighed] * round(config.data.difficulty.pool))) if part]


def dealt(rows: int, longest: int, ranks: int, tokens: int) -> Passes:
    """Rows as the ranks take them: filled up to a multiple of their number, in micro-batches of `tokens` or one row."""
    own = -(-rows // ranks)
    batches = max(1, -(-own * longest // max(tokens, longest)))
    at_once = -(-own // batches)
    return Passes(rows / ranks, at_once, -(-own // at_once), own * ranks / rows)


def update_passes(config: Config, rows: GroupRows, ranks: int) -> Passes:
    """Of one update."""
    trained = len(rows.trained) * config.batch // config.updates_per_rollout
    return dealt(trained, max(len(row.ids) for row in rows.trained), ranks, limit(config))


def scoring_passes(config: Config, rows: GroupRows, ranks: int) -> list[Passes]:
    """Of each scoring pass of a step."""
    return [dealt(len(part) * config.batch, max(len(row.ids) for row in part), ranks, limit(config)) for part in scoring(config, rows)]


def sent_bytes(scored: Sequence[Row], trained: Sequence[Row]) -> int:
    """Of tensors that the controller hands to workers to score and train on such rows, and that come back of the scores
    (`nrt.engine.verl.batch`): ids, positions and masks in 8 bytes a token, what the loss takes in 4 and 8; two float32 a token back."""
    out = sum(8 * (3 * len(row.ids) + len(row.tail_ids)) for row in (*scored, *trained))
    credit = sum(16 * len(row.tail_ids) + 8 * row.tail_roles.count(Role.ANSWER) + 17 for row in trained)
    offsets = 8 * (5 * (len(scored) + 1) + 9 * (len(trained) + 1))
    return out + credit + offsets + sum(8 * len(row.ids) for row in scored)


def _tokens(rows: Sequence[Row]) -> int:
    return sum(len(row.ids) for row in rows)


def _alone(rows: Sequence[Row], token: Token, *, attention: float = 1, head: float = 1) -> float:
    """Floating-point operations of rows of which none shares anything."""
    inner = (token.flops + head * token.head_flops) * _tokens(rows)
    return inner + attention * sum(attended(layer, 0, len(row.ids)) for layer in token.layers for row in rows)
