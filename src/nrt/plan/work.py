"""What one step does: rows as training makes them, tokens forwarded and sampled, floating-point operations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from nrt.config import AUTO_TOKENS, Config
from nrt.data import Markers, bare_row, null_row, reply_row, trace_row
from nrt.objective import Method
from nrt.plan.counting import Layer, Token
from nrt.scoring.layout import by_prompt, packed_batches
from nrt.types import Example, Message, Pair, Row, Trace


@dataclass(frozen=True)
class Lengths:
    """Tokens of a prompt, a trace (without its markers) and an answer."""

    prompt: int
    trace: int
    answer: int

    @classmethod
    def caps(cls, config: Config) -> Lengths:
        return cls(config.max_prompt_tokens, config.max_trace_tokens, config.max_answer_tokens)


@dataclass(frozen=True)
class GroupRows:
    """One prompt's rows, as a step forwards them."""

    scored: tuple[Row, ...]  # without gradient, before the updates; empty where one pass serves both
    trained: tuple[Row, ...]  # with gradient
    initial: tuple[Row, ...]  # under the initial model
    weighed: tuple[Row, ...]  # of candidates that difficulty weighs
    null: int  # tokens of the null trace's row beyond the prompt, which is forwarded anyway


@dataclass(frozen=True)
class Tokens:
    """Of one step, over all GPUs; a prompt that traces share counts once for all that are forwarded together."""

    prefilled: int  # prompts, by the sampler
    sampled: int
    scored: int  # forwarded without gradient, initial model included
    trained: int  # forwarded with gradient
    null: int  # of these two, null traces
    unshared: int  # what scored and trained would be with each prompt forwarded for each row


@dataclass(frozen=True)
class Phases:
    """One number for each phase of a step."""

    rollout: float
    scoring: float
    update: float

    @property
    def total(self) -> float:
        return self.rollout + self.scoring + self.update


def limit(config: Config) -> int:
    """tokens_per_batch as a number."""
    return AUTO_TOKENS if config.tokens_per_batch == "auto" else config.tokens_per_batch


def group_rows(config: Config, method: Method, lengths: Lengths, place: int = 0) -> GroupRows:
    """The rows of a prompt; those of another `place` have another prompt."""
    pair = Pair(Example("", (Message("user", ""),), ""), (place, *(0,) * (lengths.prompt - 1)), (0,) * lengths.answer)
    markers = Markers(None if config.markers.start is None else 0, 0)
    initial = (bare_row(pair),) if config.initial_reference and method.samples else ()
    bare = method.base_layout == "bare"
    if bare != (method.base_policy == "initial"):  # else it is read anyway: the null trace of the policy, or `initial`
        initial += (bare_row(pair) if bare else null_row(pair, markers),)
    weighs = config.data.difficulty.skip_above is not None or config.data.difficulty.pool > 1
    weighed = (null_row(pair, markers) if method.samples else bare_row(pair),) if weighs else ()
    if not method.samples:
        return GroupRows((), (bare_row(pair),), (), weighed, 0)
    trace = Trace((0,) * lengths.trace, finished=False)
    rows = (trace_row(pair, trace, markers),) * config.traces
    both = (*rows, null_row(pair, markers))
    null = len(both[-1].tail_ids) - 1
    if method.samples_answers:
        replies = (reply_row(pair, trace, pair.answer_ids, markers),) * config.traces
        return GroupRows((*both, *replies), replies, initial, weighed, null)
    if one_pass(config, method, both):
        return GroupRows((), both, initial, weighed, null)
    return GroupRows(both, rows, initial, weighed, null)


def one_pass(config: Config, method: Method, rows: Sequence[Row]) -> bool:
    """Whether one forward gives rewards and gradient, as `training/step.py` decides it."""
    whole = len(packed_batches(rows, limit(config))) == 1
    return config.updates_per_rollout == 1 and method.keep is None and not method.samples_answers and whole


def micro_batch(config: Config, method: Method, lengths: Lengths, prompts: int) -> list[Row]:
    """The largest forward with gradient of an update on `prompts` prompts."""
    first = group_rows(config, method, lengths).trained
    most = min(prompts, 1 + limit(config) // max(1, forwarded(first)))
    rows = [row for place in range(most) for row in group_rows(config, method, lengths, place).trained]
    return [rows[i] for i in packed_batches(rows, limit(config))[0]]


def count_tokens(config: Config, method: Method, lengths: Lengths) -> Tokens:
    """Of one step."""
    B, K, rows = config.batch, config.traces, group_rows(config, method, lengths)
    replies = lengths.answer if method.samples_answers else 0
    opening = lengths.prompt + (config.markers.start is not None)
    again = K * (opening + lengths.trace + 1) if method.samples_answers else 0  # before the answer
    apart = [rows.scored, rows.trained, rows.initial, *([rows.weighed] * round(config.data.difficulty.pool))]
    scored = sum(_forwarded(part, config) for part in apart if part is not rows.trained)
    return Tokens(
        prefilled=B * (opening + again) if method.samples else 0,
        sampled=B * K * (lengths.trace + replies) if method.samples else 0,
        scored=B * scored,
        trained=B * _forwarded(rows.trained, config),
        null=B * rows.null,
        unshared=B * sum(len(row.ids) - 1 for part in apart for row in part),
    )


def count_flops(config: Config, method: Method, lengths: Lengths, token: Token, *, frozen_head: bool = False) -> Phases:
    """Of one step. Backward: two and a half times the forward for attention, three times for the head, whose logits are made again."""
    B, rows = config.batch, group_rows(config, method, lengths)
    again = config.gradient_checkpointing
    trained = replace(token, flops=token.flops + token.backward_flops + again * token.again_flops)
    pool = round(config.data.difficulty.pool)
    scoring = sum(_pass(part, config, token) for part in (rows.scored, rows.initial, *([rows.weighed] * pool)))
    update = _pass(rows.trained, config, trained, attention=3.5 + again, head=4 - frozen_head)
    return Phases(B * _rollout(config, method, lengths, token), B * scoring, B * update)


def forwarded(rows: Sequence[Row]) -> int:
    """Tokens of rows forwarded together."""
    return sum(len(prompt) + sum(len(rows[i].tail_ids) - 1 for i in own) for prompt, own in by_prompt(rows).items())


def _forwarded(rows: Sequence[Row], config: Config) -> int:
    return sum(forwarded([rows[i] for i in batch]) for batch in packed_batches(rows, limit(config))) if rows else 0


def _pass(rows: Sequence[Row], config: Config, token: Token, *, attention: float = 1, head: float = 1) -> float:
    total = 0.0
    for batch in packed_batches(rows, limit(config)) if rows else ():
        part = [rows[i] for i in batch]
        prompt = len(part[0].prompt_ids)
        spans = [(0, prompt), *((prompt, prompt + len(row.tail_ids) - 1) for row in part)]
        total += token.flops * forwarded(part) + head * token.head_flops * sum(len(row.tail_ids) for row in part)
        total += attention * sum(attended(layer, *span) for layer in token.layers for span in spans)
    return total


def _rollout(config: Config, method: Method, lengths: Lengths, token: Token) -> float:
    """The prompt once, then each trace token by token; the last one sampled is not forwarded."""
    if not method.samples:
        return 0.0
    opening = lengths.prompt + (config.markers.start is not None)
    total = _sampling(opening, lengths.trace, config.traces, token)
    if method.samples_answers:
        total += config.traces * _sampling(opening + lengths.trace + 1, lengths.answer, 1, token)
    return total


def _sampling(prompt: int, new: int, samples: int, token: Token) -> float:
    """Floating-point operations of `samples` samples after one prompt."""
    body = token.flops * (prompt + samples * (new - 1))
    head = token.head_flops * (1 + samples * (new - 1))
    spans = [(0, prompt), *[(prompt, prompt + new - 1)] * samples]
    return body + head + sum(attended(layer, *span) for layer in token.layers for span in spans)


def attended(layer: Layer, start: int, stop: int) -> float:
    """Floating-point operations of attention from places start … stop − 1 to all before them and themselves, within the window."""
    window = layer.window or stop
    rising = min(max(window, start), stop)  # places before it see all, those after it a whole window
    pairs = (rising * (rising + 1) - start * (start + 1)) // 2 + window * (stop - rising)
    return 2.0 * layer.heads * (layer.key_width + layer.value_width) * pairs
