"""Work of one step: the rows as training makes them, and their tokens and FLOPs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from nrt.config import Config
from nrt.data import (
    Markers,
    bare_row,
    hinted_row,
    null_row,
    sampled_answer_row,
    sampled_part,
    trace_row,
)
from nrt.engine.counting import AttentionShape, TokenCost
from nrt.objective import Method
from nrt.scoring.packing import packed_batches, packed_tokens
from nrt.types import Example, Message, Pair, Row, Trace


@dataclass(frozen=True)
class RowLengths:
    """Tokens of a prompt, a trace (without its markers) and an answer."""

    prompt: int
    trace: int
    answer: int

    @classmethod
    def caps(cls, config: Config) -> RowLengths:
        """Return the maximum lengths of a recipe."""
        return cls(config.max_prompt_tokens, config.max_trace_tokens, config.max_answer_tokens)


@dataclass(frozen=True)
class GroupRows:
    """Rows of one prompt, by the forward that takes them."""

    scored: tuple[Row, ...]  # without gradient before the updates; empty if one pass does both
    trained: tuple[Row, ...]  # with gradient
    initial: tuple[Row, ...]  # with the initial model, also those of its `trace_reference`
    difficulty: tuple[Row, ...]  # of one candidate, to choose prompts by difficulty
    null: int  # tokens of the null trace's row beyond the prompt, which is forwarded in any case
    reference: tuple[Row, ...] = ()  # with a `trace_reference` that has the current weights
    answers: tuple[Row, ...] = ()  # with y*, if the trained rows hold sampled answers

    def scoring_passes(self, config: Config) -> list[tuple[Row, ...]]:
        """Return the rows of each forward without gradient."""
        difficulty = [self.difficulty] * round(config.data.difficulty.pool)
        passes = (self.scored, self.initial, self.reference, self.answers, *difficulty)
        return [rows for rows in passes if rows]


@dataclass(frozen=True)
class StepTokens:
    """Tokens of one step over all GPUs.

    A prompt that rows share counts once for all rows that are forwarded together.
    """

    prefilled: int  # prompts that the sampler reads
    sampled: int
    scored: int  # forwarded without gradient, also by the initial model
    trained: int  # forwarded with gradient
    null: int  # null traces, as a part of `scored` and `trained`
    unshared: int  # `scored` and `trained` if each row forwarded its prompt


@dataclass(frozen=True)
class PhaseValues:
    """One number for each phase of a step."""

    rollout: float
    scoring: float
    update: float

    @property
    def total(self) -> float:
        return self.rollout + self.scoring + self.update


def group_rows(
    config: Config, method: Method, lengths: RowLengths, prompt_index: int = 0
) -> GroupRows:
    """Return the rows of one prompt. One forward may score and train the first update's."""
    prompt_ids = (prompt_index, *(0,) * (lengths.prompt - 1))
    example = Example("", (Message("user", ""),), "")
    pair = Pair(example, prompt_ids, (0,) * lengths.answer)
    markers = Markers(None if config.markers.start is None else 0, 0)
    null = null_row(pair, markers)
    initial = _initial_rows(config, method, pair, null)
    difficulty = config.data.difficulty
    weighs_difficulty = difficulty.skip_above is not None or difficulty.pool > 1
    if not method.samples:
        bare = (bare_row(pair),)
        return GroupRows((), bare, (), bare if weighs_difficulty else (), 0)
    candidate = (null,) if weighs_difficulty else ()
    traces = [_trace(k, lengths.trace) for k in range(config.traces)]
    rows = tuple(trace_row(pair, trace, markers) for trace in traces)
    with_null = (*rows, null)
    null_tokens = len(null.tail_ids) - 1
    trained, trained_first, answers = rows, with_null, ()
    if method.samples_answers:
        trained = tuple(
            sampled_answer_row(pair, trace, pair.answer_ids, markers) for trace in traces
        )
        trained_first, answers = trained, with_null
    reference = _reference_rows(method, pair, trained)
    if method.trace_reference is not None and method.trace_reference.policy == "initial":
        initial, reference = (*initial, *reference), ()
    beside = (initial, candidate, null_tokens, reference, answers)
    in_first_update = prompt_index < config.batch // config.updates_per_rollout
    if in_first_update and _is_fused(config, method, trained_first):
        return GroupRows((), trained_first, *beside)
    return GroupRows(trained_first, trained, *beside)


def _trace(k: int, length: int) -> Trace:
    """Return trace k of a group. All differ, because equal rows are forwarded only once."""
    return Trace((k, *(0,) * length)[:length], finished=False)


def _initial_rows(config: Config, method: Method, pair: Pair, null: Row) -> tuple[Row, ...]:
    rows = (bare_row(pair),) if config.initial_reference and method.samples else ()
    is_bare = method.base_layout == "bare"
    is_initial = method.base_policy == "initial"
    if is_bare != is_initial:
        # In the other two cases the baseline's row is scored already: the policy's null trace, or
        # the bare row under the initial model.
        rows += (bare_row(pair) if is_bare else null,)
    return rows


def _reference_rows(method: Method, pair: Pair, rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """Return the rows that the method's second policy scores. y* in its prompt counts in full,
    though the token that ends its turn may be left out.
    """
    if method.trace_reference is None:
        return ()
    rows = tuple(sampled_part(row) for row in rows)
    if not method.trace_reference.sees_answer:
        return rows
    return tuple(hinted_row(row, pair.answer_ids, turn_ends=()) for row in rows)


def _is_fused(config: Config, method: Method, rows: Sequence[Row]) -> bool:
    """Return True if one forward serves scores and the first update: see `Learner.fused`.

    The engine needs all rows of the group in one micro-batch for it.
    """
    return method.keep is None and len(packed_batches(rows, config.token_limit)) == 1


def _batch_rows(config: Config, method: Method, lengths: RowLengths) -> list[tuple[int, GroupRows]]:
    """Return (number of prompts, rows of each) of a batch: the first update's, then the others."""
    first = config.batch // config.updates_per_rollout
    kinds = []
    for count, prompt_index in ((first, 0), (config.batch - first, first)):
        if count:
            kinds.append((count, group_rows(config, method, lengths, prompt_index)))
    return kinds


def largest_micro_batch(
    config: Config, method: Method, lengths: RowLengths, prompts: int
) -> list[Row]:
    """Return the largest forward with gradient of an update on `prompts` prompts."""
    limit = config.token_limit
    group = group_rows(config, method, lengths).trained
    count = min(prompts, 1 + limit // max(1, packed_tokens(group)))
    rows: list[Row] = []
    for index in range(count):
        rows += group_rows(config, method, lengths, index).trained
    return [rows[i] for i in packed_batches(rows, limit)[0]]


def count_tokens(config: Config, method: Method, lengths: RowLengths) -> StepTokens:
    """Return the tokens of one step."""
    scored = trained = null = unshared = 0
    for count, rows in _batch_rows(config, method, lengths):
        scoring = rows.scoring_passes(config)
        scored += count * sum(_forwarded_tokens(part, config) for part in scoring)
        trained += count * _forwarded_tokens(rows.trained, config)
        null += count * rows.null
        each = [row for part in (*scoring, rows.trained) for row in part]
        unshared += count * sum(len(row.ids) - 1 for row in each)
    return StepTokens(
        prefilled=config.batch * prefilled_tokens(config, method, lengths),
        sampled=config.batch * sampled_tokens(config, method, lengths),
        scored=scored,
        trained=trained,
        null=null,
        unshared=unshared,
    )


def prefilled_tokens(config: Config, method: Method, lengths: RowLengths) -> int:
    """Return the tokens that the sampler reads for one prompt.

    It reads the prompt once for all traces, and again with each trace before it samples an answer
    (except on a CPU, where the prompt is read once for short traces).
    """
    if not method.samples:
        return 0
    opening = lengths.prompt + (config.markers.start is not None)
    before_answers = config.traces * (opening + lengths.trace + 1) if method.samples_answers else 0
    return opening + before_answers


def sampled_tokens(config: Config, method: Method, lengths: RowLengths) -> int:
    """Return the tokens that the sampler draws for one prompt."""
    if not method.samples:
        return 0
    answer = lengths.answer if method.samples_answers else 0
    return config.traces * (lengths.trace + answer)


def count_flops(
    config: Config,
    method: Method,
    lengths: RowLengths,
    token: TokenCost,
    *,
    recomputes: Callable[[int], bool],
    frozen_head: bool = False,
) -> PhaseValues:
    """Return the floating-point operations of one step.

    Forward and backward of attention take 3.5 times its forward. Those of the head take 4 times,
    since its logits are computed again, and 3 times if it is frozen.

    Args:
        recomputes: tokens of a micro-batch → True if its layers are recomputed.
    """
    scoring = update = 0.0
    for count, rows in _batch_rows(config, method, lengths):
        for part in rows.scoring_passes(config):
            scoring += count * sum(_batch_flops(batch, token) for batch in _batches(part, config))
        for batch in _batches(rows.trained, config):
            tokens = packed_tokens(batch)
            again = recomputes(tokens * max(1, config.token_limit // tokens))
            cost = with_backward(token, again)
            update += count * _batch_flops(batch, cost, attention=3.5 + again, head=4 - frozen_head)
    rollout = config.batch * rollout_flops(config, method, lengths, token)
    return PhaseValues(rollout, scoring, update)


def with_backward(token: TokenCost, recompute: bool) -> TokenCost:
    """Return the cost of a token whose layers also run backward."""
    flops = token.flops + token.backward_flops + recompute * token.recompute_flops
    return replace(token, flops=flops)


def _batches(rows: Sequence[Row], config: Config) -> list[list[Row]]:
    if not rows:
        return []
    return [[rows[i] for i in batch] for batch in packed_batches(rows, config.token_limit)]


def _forwarded_tokens(rows: Sequence[Row], config: Config) -> int:
    return sum(packed_tokens(batch) for batch in _batches(rows, config))


def _batch_flops(
    batch: Sequence[Row], token: TokenCost, *, attention: float = 1, head: float = 1
) -> float:
    """Return the operations of one prompt's rows; the factors count backward and recomputation."""
    prompt = len(batch[0].prompt_ids)
    spans = [(0, prompt), *((prompt, prompt + len(row.tail_ids) - 1) for row in batch)]
    predicted = sum(len(row.tail_ids) for row in batch)
    layers = token.flops * packed_tokens(batch) + attention * attention_flops(token, spans)
    return layers + head * token.head_flops * predicted


def rollout_flops(config: Config, method: Method, lengths: RowLengths, token: TokenCost) -> float:
    """Return the operations that sample one prompt's traces.

    The prompt is forwarded once, then each trace token by token, without the last one sampled.
    """
    if not method.samples:
        return 0.0
    opening = lengths.prompt + (config.markers.start is not None)
    total = _sampling_flops(opening, lengths.trace, config.traces, token)
    if method.samples_answers:
        before_answer = opening + lengths.trace + 1
        total += config.traces * _sampling_flops(before_answer, lengths.answer, 1, token)
    return total


def _sampling_flops(prompt: int, new: int, samples: int, token: TokenCost) -> float:
    layers = token.flops * (prompt + samples * (new - 1))
    head = token.head_flops * (1 + samples * (new - 1))
    spans = [(0, prompt), *[(prompt, prompt + new - 1)] * samples]
    return layers + head + attention_flops(token, spans)


def attention_flops(token: TokenCost, spans: Sequence[tuple[int, int]]) -> float:
    """Return the operations of all layers' attention from positions start … stop − 1 of the spans.

    Each position attends to itself and to all before it, within the window.
    """
    return sum(_layer_flops(layer, *span) for layer in token.layers for span in spans)


def _layer_flops(layer: AttentionShape, start: int, stop: int) -> float:
    window = layer.window or stop
    full = min(max(window, start), stop)  # positions before it see all; later ones one window
    pairs = (full * (full + 1) - start * (start + 1)) // 2 + window * (stop - full)
    return 2.0 * layer.heads * (layer.key_width + layer.value_width) * pairs
