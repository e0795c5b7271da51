"""Measure memory and arithmetic of a model on torch's meta device.

A model whose layers repeat is measured at two small depths. The results are exact, since they are
linear in the number of layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from nrt.engine.meter import Meter
from nrt.engine.weights import Weights, layers_of, recomputing
from nrt.models.attention import forward_arguments
from nrt.scoring.packed import score_packed
from nrt.scoring.packing import lay_out
from nrt.scoring.prefix_attention import PrefixAttention
from nrt.scoring.token_logprobs import TILE, TILE_TOKENS
from nrt.types import Row

PROBE_TOKENS = 4
"""Tokens of the forwards that measure the cost of one token."""

MAX_TILES = 256
"""Tiles of the head in a forward whose memory is measured; a CPU's own would be thousands."""


@dataclass(frozen=True)
class AttentionShape:
    """Attention of one layer."""

    heads: int
    kv_heads: int
    key_width: int  # of one head
    value_width: int
    window: int | None


@dataclass(frozen=True)
class TokenCost:
    """Cost of one token; floating-point operations leave out attention."""

    flops: int  # forward through the layers
    backward_flops: int
    recompute_flops: int  # what gradient_checkpointing computes again
    head_flops: int  # logits of one token
    operations: int  # kernel calls of one forward
    layers: tuple[AttentionShape, ...]

    def cache_bytes(self, width: int) -> int:
        """Return the bytes of a token's keys and values in a dtype of `width` bytes."""
        numbers = (layer.kv_heads * (layer.key_width + layer.value_width) for layer in self.layers)
        return width * sum(numbers)


@dataclass(frozen=True)
class UpdateMemory:
    """Bytes of one micro-batch's forward and backward, beyond weights, masters and gradients."""

    kept: int  # for the backward, after the forward
    peak: int


@lru_cache
def count_token(model: Any) -> TokenCost:
    """Return the cost of one token, from forwards and backwards of a few."""
    shapes: list[AttentionShape] = []

    def measure() -> tuple[int, ...]:
        with torch.no_grad():
            forward, shapes[:] = _run_layers(model)
        with_backward, _ = _run_layers(model)
        with recomputing(layers_of(model)):
            with_recompute, _ = _run_layers(model)
        return forward.flops, with_backward.flops, with_recompute.flops, forward.operations

    depths = _depths(model)
    if depths is None:
        counts = measure()
    else:
        with depths.shallow():
            shallow = measure()
        with depths.deeper():
            deeper = measure()
        counts = tuple(a + depths.repeats * (b - a) for a, b in zip(shallow, deeper, strict=True))
        while len(shapes) < len(depths.layers):
            shapes.append(shapes[-depths.period])
    forward, with_backward, with_recompute, operations = counts
    return TokenCost(
        flops=forward // PROBE_TOKENS,
        backward_flops=(with_backward - forward) // PROBE_TOKENS,
        recompute_flops=(with_recompute - with_backward) // PROBE_TOKENS,
        head_flops=2 * model.get_output_embeddings().weight.numel(),
        operations=operations,
        layers=tuple(shapes),
    )


@lru_cache
def count_update(
    model: Any, rows: tuple[Row, ...], *, recompute: bool, device_type: str = "cuda"
) -> UpdateMemory:
    """Return the memory of one forward and backward of the rows.

    They run as in the packed scorer and the engine on a device of that type. Attention keeps what
    fused kernels keep. The head has at most MAX_TILES tiles, since thousands take a minute to
    count. Larger tiles add a few MiB to a count of GiB.
    """
    vocabulary = len(model.get_output_embeddings().weight)
    logits = vocabulary * sum(len(row.tail_ids) for row in rows)
    TILE["meta"] = max(TILE[device_type], logits // MAX_TILES)
    TILE_TOKENS["meta"] = TILE_TOKENS[device_type]
    weights = _weights_with_gradients(model)

    def measure(*, head: bool) -> UpdateMemory:
        attention, meter = MetaAttention.for_rows(rows), Meter()
        recomputed = layers_of(model) if recompute else ()
        with meter, cut_at_embeddings(model), recomputing(recomputed):
            if head:
                loss = score_packed(model, attention, weights.gradient_of).logp_N.sum()
            else:
                loss = _forward_layers(model, attention).sum()
            kept = meter.live
            loss.backward()
        return UpdateMemory(kept, meter.peak)

    depths = _depths(model)
    if depths is None:
        return measure(head=True)
    with depths.shallow():
        shallow, complete = measure(head=False), measure(head=True)
    with depths.deeper():
        deeper = measure(head=False)
    kept_by_period = deeper.kept - shallow.kept
    if deeper.peak - shallow.peak != kept_by_period:
        return measure(head=True)  # the peak is not in the last layers, so it does not grow so
    more = depths.repeats * kept_by_period
    return UpdateMemory(complete.kept + more, complete.peak + more)


@dataclass(frozen=True)
class _Depths:
    """Two small depths of a model whose layers repeat after each `period`.

    The last layers of both are of the same kinds as those of the whole model.
    """

    layers: nn.ModuleList
    period: int

    @property
    def start(self) -> int:
        return self.period + len(self.layers) % self.period

    @property
    def repeats(self) -> int:
        """Periods of the whole model beyond the shallow one."""
        return (len(self.layers) - self.start) // self.period

    def shallow(self) -> AbstractContextManager[None]:
        return _first_layers(self.layers, self.start)

    def deeper(self) -> AbstractContextManager[None]:
        return _first_layers(self.layers, self.start + self.period)


@lru_cache
def _depths(model: Any) -> _Depths | None:
    """Return the depths at which a model can be measured; None: only as a whole."""
    layers = layers_of(model)
    signatures = [_signature(layer) for layer in layers]
    for modules in model.modules():
        if isinstance(modules, nn.ModuleList) and tuple(modules) == layers:
            for period in range(1, len(layers) // 2):
                if signatures[period:] == signatures[:-period]:
                    depths = _Depths(modules, period)
                    return depths if depths.repeats > 1 else None
    return None


def _signature(layer: nn.Module) -> tuple[object, ...]:
    """Return what a layer's cost depends on: classes, scalar attributes and parameter shapes."""
    parts: list[object] = []
    for module in layer.modules():
        scalars = {}
        for name, value in vars(module).items():
            is_scalar = isinstance(value, bool | int | float | str | None)
            if is_scalar and name != "layer_idx":  # the position does not change the cost
                scalars[name] = value
        shapes = [
            (name, p.shape, p.dtype, p.requires_grad)
            for name, p in module.named_parameters(recurse=False)
        ]
        parts += [type(module), scalars, shapes]
    return tuple(parts)


@contextmanager
def _first_layers(layers: nn.ModuleList, count: int) -> Iterator[None]:
    """Remove all layers but the first ones."""
    removed = list(layers)[count:]
    del layers[count:]
    try:
        yield
    finally:
        layers.extend(removed)


def _run_layers(model: Any) -> tuple[Meter, list[AttentionShape]]:
    """Forward PROBE_TOKENS through the layers, and backward if gradients are enabled."""
    row = Row((0,) * PROBE_TOKENS, (0,), (), end_sampled=False)
    attention = MetaAttention.for_rows([row])
    with Meter() as meter, cut_at_embeddings(model):
        hidden = _forward_layers(model, attention)
        if hidden.requires_grad:
            hidden.sum().backward()
    return meter, attention.shapes


def _forward_layers(model: Any, attention: MetaAttention) -> Tensor:
    layout = attention.layout
    arguments = forward_arguments(attention, layout.ids_F.device)
    ids, positions = layout.ids_F[None], layout.positions_F[None]
    output = model.base_model(input_ids=ids, position_ids=positions, **arguments)
    return output.last_hidden_state


@contextmanager
def cut_at_embeddings(model: Any) -> Iterator[None]:
    """End the gradient at the output of the embeddings.

    It has as many bytes as the scorer's sparse gradient, which meta tensors do not support.
    """

    def cut(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output.detach().requires_grad_(torch.is_grad_enabled())

    hook = model.get_input_embeddings().register_forward_hook(cut)
    try:
        yield
    finally:
        hook.remove()


@lru_cache
def _weights_with_gradients(model: Any) -> Weights:
    """Return weights whose gradients exist, since these are counted elsewhere."""
    weights = Weights(model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            weights.gradient_of(parameter)
    return weights


@dataclass(frozen=True)
class MetaAttention(PrefixAttention):
    """Attention without arithmetic that keeps what fused kernels keep.

    These are queries, keys, values, outputs and log-sum-exps.
    """

    shapes: list[AttentionShape] = field(default_factory=list)  # of the layers that called

    @classmethod
    def for_rows(cls, rows: Sequence[Row]) -> MetaAttention:
        return cls(lay_out(rows, "meta"))

    def __call__(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        window: int | None,
        **_: Any,
    ) -> Tensor:
        heads, kv_heads = query.shape[1], key.shape[1]
        shape = AttentionShape(heads, kv_heads, query.shape[-1], value.shape[-1], window)
        self.shapes.append(shape)
        return _FusedAttention.apply(query, key, value).transpose(1, 2)


class _FusedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[-1]).transpose(1, 2)
        log_sum_exp = q.new_empty(q.shape[:3], dtype=torch.float32)
        ctx.save_for_backward(q, k, v, out, log_sum_exp)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return tuple(map(torch.empty_like, ctx.saved_tensors[:3]))
