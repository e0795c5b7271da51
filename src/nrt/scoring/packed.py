"""The scorer that forwards each prompt once and holds no logits, and the choice between it and the padded one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nrt.errors import InputError, first_line
from nrt.models.attention import Unsupported, carry, check_carriable, configs, forward_in
from nrt.scoring.attention import Packed
from nrt.scoring.head import GradientOf, Head
from nrt.scoring.layout import lay_out, packed_batches
from nrt.scoring.logprobs import PaddedScorer, Scorer
from nrt.types import Row, TokenScores, answer_row

FLOOR = {torch.float32: 1e-4, torch.bfloat16: 0.05}
"""Nats by which two exact scorers may always differ, and share of the largest gradient (ten times that)."""
MULTIPLE = 4.0
"""And how many times the model's own noise: what the padded scorer makes of the same rows in other batches."""
UNSTEADY = {torch.float32: 3e-3, torch.bfloat16: 3.0}
"""Nats of noise at which a row's score is no property of the row: such a model cannot be trained on batches at all."""
ALONE = 2
"""Rows that are also scored by themselves."""
FAMILIES = frozenset("gemma gemma2 gemma3_text granite llama mistral mixtral olmo2 phi3 qwen2 qwen3 qwen3_moe smollm3 starcoder2".split())
"""Model types that share prompts in our tests; where one does not, something is wrong."""


@dataclass(frozen=True)
class PackedScorer:
    """Scores rows in one packed sequence; the model must carry its attention (`models.attention.carry`).

    With `gradient_of`, the gradients of both vocabulary matrices are added there in place: the backward then holds no copy of either.
    """

    gradient_of: GradientOf | None = None
    ban_start: bool = True  # see `banned_tokens`

    def __call__(self, model: nn.Module, rows: Sequence[Row]) -> TokenScores:
        """TokenScores of the M tail tokens. Raises InputError for a row without prompt or tail."""
        causal_lm: Any = model
        packed = Packed(lay_out(rows, next(model.parameters()).device, ban_start=self.ban_start))
        if self.gradient_of and torch.is_grad_enabled():
            self._sparse_embeddings(causal_lm.get_input_embeddings())
        return score_packed(causal_lm, packed, self.gradient_of)

    def batches(self, rows: Sequence[Row], tokens_per_batch: int) -> list[list[int]]:
        """See `packed_batches`."""
        return packed_batches(rows, tokens_per_batch)

    def _sparse_embeddings(self, embeddings: Any) -> None:
        """Autograd adds a sparse gradient in place to a dense one that is there already."""
        if self.gradient_of and embeddings.weight.requires_grad:
            embeddings.sparse = True
            self.gradient_of(embeddings.weight)


def score_packed(causal_lm: Any, packed: Packed, gradient_of: GradientOf | None = None) -> TokenScores:
    """One forward of the body in the layout, and of the head where tail tokens are predicted."""
    layout = packed.layout
    output = causal_lm.base_model(
        input_ids=layout.ids_N[None], position_ids=layout.positions_N[None], **forward_in(packed, layout.ids_N.device)
    )
    hidden_Md = output.last_hidden_state[0][layout.from_M]
    logp_M, entropy_M = Head.of(causal_lm)(hidden_Md, layout.target_M, gradient_of, layout.banned_M)
    return TokenScores(logp_M, entropy_M, layout.lengths)


SHARED = "each prompt is forwarded once for all of its traces"
"""What packing rows means, in words."""


@dataclass(frozen=True)
class Choice:
    """A scorer for a model, and in words why it is this one."""

    scorer: Scorer
    why: str
    tolerance: float  # nats by which exact scorers of this model may differ
    surprising: bool = False  # rows are padded for a model type that shares prompts elsewhere: worth a warning


def choose_scorer(model: nn.Module, pad_id: int, gradient_of: GradientOf | None = None, rows: Sequence[Row] = ()) -> Choice:
    """The packed scorer if it gives the padded scorer's numbers on `rows`, else the padded one.

    The model carries its attention from then on, if packed. Both scorers are exact, so they may differ by rounding alone; how much that
    is depends on the model. It is measured: the padded scorer scores the rows together, some alone, and all beside more padding. `rows`
    should be of the data and longer than any sliding window that can bind; without them a few made-up ones are taken.

    Raises InputError for a model that cannot score padded rows, or whose scores depend on the batch by more than rounding.
    """
    causal_lm: Any = model
    padded, kind = PaddedScorer(pad_id), causal_lm.config.get_text_config()
    rows = rows or _made_up_rows(kind.vocab_size)
    dtype = next(model.parameters()).dtype
    try:
        noise, expected = _noise(padded, model, rows)
    except (RuntimeError, AttributeError, TypeError, ValueError, IndexError, KeyError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise InputError(f"{type(model).__name__} cannot score padded rows: {first_line(error)}; take another model") from error
    if not math.isfinite(noise):  # of weights that are not: whoever replays a broken step wants to see where it breaks
        return Choice(padded, "rows are padded: the model's log-probabilities are not finite", FLOOR[dtype])
    if noise >= UNSTEADY[dtype]:
        raise InputError(
            f"{type(model).__name__} gives a row other log-probabilities beside other rows (by {noise:.1e} nats), so it cannot be trained "
            "in batches; take another model, or dtype=float32 if this is rounding"
        )
    tolerance = max(FLOOR[dtype], MULTIPLE * noise)
    try:
        with _restored_on_error(model):
            _check(model, padded, rows, expected, noise, tolerance)
    except Unsupported as error:
        why = f"rows are padded: {type(model).__name__} cannot share prompts, {error}"
        return Choice(padded, why, tolerance, surprising=kind.model_type in FAMILIES and not isinstance(error, NoKernel))
    return Choice(PackedScorer(gradient_of), SHARED, tolerance)


def same_choice(model: nn.Module, pad_id: int, gradient_of: GradientOf | None = None, *, packed: bool) -> Choice:
    """The choice that a run made when it began: a resumed one must not round otherwise because its weights have moved."""
    tolerance = FLOOR[next(model.parameters()).dtype]
    if not packed:
        return Choice(PaddedScorer(pad_id), "rows are padded, as when the run began", tolerance)
    carry(model)
    return Choice(PackedScorer(gradient_of), SHARED, tolerance)


class NoKernel(Unsupported):
    """The device has no attention for it."""


@torch.no_grad()
def _noise(padded: PaddedScorer, model: nn.Module, rows: Sequence[Row]) -> tuple[float, TokenScores]:
    """(largest difference of the padded scorer's numbers over other batches, its numbers for all rows together)."""
    together = padded(model, rows)
    longest = max(rows, key=lambda row: len(row.ids))
    wider = Row(longest.ids, longest.tail_ids[:1], longest.tail_roles[:1], end_sampled=False)  # more padding, on both sides
    beside = padded(model, [*rows[::-1], wider])
    alone = [padded(model, [row]).rows()[0] for row in rows[:ALONE]]
    differences = [0.0]
    for other in (alone, beside.rows()[: len(rows)][::-1]):
        for ours, theirs in zip(together.rows(), other, strict=False):
            differences += [float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)]
    noise = max(differences)
    return noise if all(value == value for value in differences) else float("inf"), together


def _check(model: Any, padded: PaddedScorer, rows: Sequence[Row], expected: TokenScores, noise: float, tolerance: float) -> None:
    """Raises Unsupported unless the packed scorer's numbers and gradients are the padded scorer's."""
    device, dtype = next(model.parameters()).device, next(model.parameters()).dtype
    if device.type not in ("cpu", "cuda"):
        raise NoKernel(f"on {device.type} there is no attention for it")
    check_carriable(model)
    with _frozen(model):
        gradient_d, gradient_noise = _padded_gradient(padded, model, rows)
        carry(model)
        packed = Packed(lay_out(rows, device))
        try:
            scores, ours_d = _embedding_gradient(model, lambda: score_packed(model, packed))
        except (TypeError, AttributeError, RuntimeError) as error:  # a forward of another form than transformers' decoders
            raise Unsupported(f"its forward says: {str(error).splitlines()[0]}") from error
    numbers = ((scores.logp_N.detach(), expected.logp_N), (scores.entropy_N, expected.entropy_N))
    difference = max((a - b).abs().max().item() for a, b in numbers)
    if not difference <= tolerance:
        raise Unsupported(
            f"log-probabilities would differ by {difference:.1e} nats, where {tolerance:.1e} are allowed "
            f"({MULTIPLE:g} times its own noise of {noise:.1e}, at least {FLOOR[dtype]:g})"
        )
    wrong = _relative(ours_d, gradient_d)
    allowed = max(10 * FLOOR[dtype], MULTIPLE * gradient_noise)
    if not wrong <= allowed:
        raise Unsupported(f"gradients would differ by {wrong:.1e} of the largest, where {allowed:.1e} are allowed")
    modules, windows = zip(*packed.asked, strict=True)
    config = model.config.get_text_config()
    slides = "sliding_attention" in (getattr(config, "layer_types", None) or ("sliding_attention",))
    if getattr(config, "sliding_window", None) and slides and not any(windows):
        raise Unsupported("its sliding window is not told to the attention")
    if len(set(modules)) < len(modules):  # keys and values are kept by layer when sampling
        raise Unsupported("a layer of it attends more than once")


def _padded_gradient(padded: PaddedScorer, model: nn.Module, rows: Sequence[Row]) -> tuple[Tensor, float]:
    """(see `_embedding_gradient`; its noise as a share of the largest number: rows together and in two parts)."""
    _, together_d = _embedding_gradient(model, lambda: padded(model, rows))
    parts = [rows[::2], rows[1::2]]
    apart_d = torch.stack([_embedding_gradient(model, partial(padded, model, part))[1] for part in parts if part]).sum(0)
    return together_d, _relative(apart_d, together_d)


def _embedding_gradient(model: Any, score: Callable[[], TokenScores]) -> tuple[TokenScores, Tensor]:
    """(scores, gradient of their summed log-probabilities in what the embeddings gave, summed over tokens [d]).

    All layers are gone through backwards, and no gradient of a weight is made. The sum over tokens is the same for any layout.
    """
    leaves: list[Tensor] = []

    def make_leaf(module: Any, inputs: Any, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1].clone()  # some models scale their embeddings in place

    hook = model.get_input_embeddings().register_forward_hook(make_leaf)
    try:
        with torch.enable_grad():
            scores = score()
            (gradient,) = torch.autograd.grad(scores.logp_N.sum(), leaves[-1])
    finally:
        hook.remove()
    return scores, gradient.float().flatten(0, -2).sum(0)


def _relative(a: Tensor, b: Tensor) -> float:
    """Largest difference as a share of the largest number of `b`."""
    size = b.abs().max().item()
    return (a - b).abs().max().item() / size if size else 0.0


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No parameter takes a gradient."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _made_up_rows(vocabulary: int) -> list[Row]:
    """Two prompts with two tails each."""
    rows = []
    for prompt, tail in ((3, 4), (3, 2), (1, 3), (1, 1)):
        ids = [(7 * prompt + 5 * i) % vocabulary for i in range(prompt)] + [(tail + 3 * i) % vocabulary for i in range(tail)]
        rows.append(answer_row(tuple(ids[:prompt]), tuple(ids[prompt:])))
    return rows


@contextmanager
def _restored_on_error(model: nn.Module) -> Iterator[None]:
    """Gives the model back the attention it had."""
    before = [(config, getattr(config, "_attn_implementation", None)) for config in configs(model)]
    try:
        yield
    except Unsupported:
        for config, implementation in before:
            config._attn_implementation = implementation
        raise
