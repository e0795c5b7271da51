"""Counts on the meta device: what one update keeps and needs for a while, what one token costs, how each layer attends."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from nrt.engine.weights import Weights, layers_of, recomputing
from nrt.models.attention import forward_in
from nrt.scoring.attention import Packed
from nrt.scoring.head import TILE
from nrt.scoring.layout import lay_out
from nrt.scoring.packed import score_packed
from nrt.types import Row


@dataclass(frozen=True)
class Layer:
    """One layer's attention."""

    heads: int
    kv_heads: int
    key_width: int  # of a head
    value_width: int
    window: int | None


@dataclass(frozen=True)
class Token:
    """One token's way through the model."""

    flops: int  # of a forward, but for attention and the head; so are the next two
    backward_flops: int
    again_flops: int  # of what gradient_checkpointing computes again
    head_flops: int  # logits of one token
    operations: int  # calls of a kernel in one forward
    layers: tuple[Layer, ...]

    def cache_bytes(self, width: int) -> int:
        """Keys and values of a token, in a type of `width` bytes."""
        return width * sum(layer.kv_heads * (layer.key_width + layer.value_width) for layer in self.layers)


@dataclass(frozen=True)
class Update:
    """Forward and backward of one micro-batch, bytes beyond weights, masters and gradients."""

    kept: int  # for the backward, once the forward is done
    peak: int


@lru_cache
def count_token(model: Any) -> Token:
    """By forwards and backwards of a few tokens."""
    with torch.no_grad():
        forward, layers = _body(model)
    both, _ = _body(model)
    with recomputing(layers_of(model)):
        twice, _ = _body(model)
    head = 2 * model.get_output_embeddings().weight.numel()
    backward, again = both.flops - forward.flops, twice.flops - both.flops
    return Token(forward.flops // N, backward // N, again // N, head, forward.operations, layers)


N = 4
"""Tokens of such a forward."""


def _body(model: Any) -> tuple[Meter, tuple[Layer, ...]]:
    """N tokens through the layers, with their backward where gradients are enabled."""
    way, zeros = _Counting.of([Row((0,), (0,), (), end_sampled=False)]), torch.zeros(1, N, dtype=torch.long, device="meta")
    with Meter() as meter, _embeddings_cut(model):
        hidden = model.base_model(input_ids=zeros, position_ids=zeros, **forward_in(way, zeros.device)).last_hidden_state
        layers = tuple(way.layers)
        if hidden.requires_grad:
            hidden.sum().backward()
    return meter, layers


@lru_cache
def count_update(model: Any, rows: tuple[Row, ...], *, recompute: bool, kind: str = "cuda") -> Update:
    """By one forward and backward of the rows, as the packed scorer and the engine run them on a device of that kind; attention as
    fused kernels keep it."""
    TILE["meta"] = TILE[kind]
    weights, way, meter = _weights(model), _Counting.of(rows), Meter()
    with meter, _embeddings_cut(model), recomputing(layers_of(model) if recompute else ()):
        loss = score_packed(model, way, weights.gradient_of).logp_N.sum()
        kept = meter.live
        loss.backward()
    return Update(kept, meter.peak)


@contextmanager
def _embeddings_cut(model: Any) -> Iterator[None]:
    """The gradient ends in what the embeddings give: as many bytes as the sparse one that the scorer has, which meta tensors cannot be."""
    cut = model.get_input_embeddings().register_forward_hook(lambda *call: call[2].detach().requires_grad_(torch.is_grad_enabled()))
    try:
        yield
    finally:
        cut.remove()


@lru_cache
def _weights(model: Any) -> Weights:
    """With gradients there already: they are counted elsewhere."""
    weights = Weights(model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            weights.gradient_of(parameter)
    return weights


class Meter(TorchDispatchMode):
    """Bytes of tensors made inside and still held, each storage once, and the most there were; calls that do arithmetic, and the
    floating-point operations of those that torch counts."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.operations = self.flops = 0
        self._held: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {id(storage) for x in tree_leaves((args, kwargs)) if (storage := _storage(x)) is not None}
        made = [storage for x in tree_leaves(out) if (storage := _storage(x)) is not None and id(storage) not in given]
        self.operations += bool(made)
        if counted := flop_registry.get(func._overloadpacket):
            self.flops += counted(*args, **(kwargs or {}), out_val=out)
        for storage in made:
            if id(storage) not in self._held:
                self._held[id(storage)] = storage.nbytes()
                self.live += storage.nbytes()
                weakref.finalize(storage, self._released, id(storage))
        self.peak = max(self.peak, self.live)
        return out

    def _released(self, key: int) -> None:
        self.live -= self._held.pop(key)


def _storage(x: Any) -> torch.UntypedStorage | None:
    """torch keeps one Python object a storage for as long as there is the storage."""
    return x.untyped_storage() if isinstance(x, Tensor) and x.layout == torch.strided else None


@dataclass(frozen=True)
class _Counting(Packed):
    """Attention without arithmetic, which keeps what fused kernels keep: queries, keys, values, outputs and log-sum-exps."""

    layers: list[Layer] = field(default_factory=list)

    @classmethod
    def of(cls, rows: Sequence[Row]) -> _Counting:
        return cls(lay_out(rows, "meta"))

    def __call__(self, module: Any, query: Tensor, key: Tensor, value: Tensor, *, window: int | None, **_: Any) -> Tensor:
        self.layers.append(Layer(query.shape[1], key.shape[1], query.shape[-1], value.shape[-1], window))
        return _Fused.apply(query, key, value).transpose(1, 2)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[-1]).transpose(1, 2)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:3], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return tuple(map(torch.empty_like, ctx.saved_tensors[:3]))
