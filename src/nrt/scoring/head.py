"""Log-probability and entropy of given tokens from hidden states, a tile of [tokens × vocabulary] at a time.

The softmax runs over the vocabulary in one pass (arXiv 2205.14135's running maximum and sum); the backward makes each tile again from
the log-sum-exp kept. Nothing of size M × V exists, and the vocabulary matrix's gradient can be added in place where it is to end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nrt.models import trained_rows
from nrt.scoring.logprobs import NEVER

TILE = {"cpu": 2**18, "cuda": 2**25}
"""Numbers of a tile: 1 MiB in float32 stays in a core's cache; a GPU wants its multiplications large."""
TILE_TOKENS = 256
"""Least tokens of a tile, where the vocabulary has to be cut: each tile reads its part of the vocabulary matrix anew."""

GradientOf = Callable[[Tensor], Tensor]
"""A parameter → the tensor to which its gradient is added in place."""


@dataclass(frozen=True)
class Head:
    """How a model's hidden states become logits: softcap(scale · (h Wᵀ + b))."""

    weight_Vd: Tensor
    bias_V: Tensor | None
    scale: float
    softcap: float | None
    rows: Mapping[int, Tensor] = field(default_factory=dict)  # of the matrix, by token, where they alone are trained (models/lora.py)

    @classmethod
    def of(cls, model: Any) -> Head:
        """Reads it off a Hugging Face causal LM: its output embeddings, and the settings that are known to act on logits."""
        linear, config = model.get_output_embeddings(), model.config.get_text_config()
        scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
        return cls(
            linear.weight, getattr(linear, "bias", None), scale, getattr(config, "final_logit_softcapping", None), trained_rows(linear)
        )

    def __call__(
        self, hidden_Md: Tensor, target_M: Tensor, gradient_of: GradientOf | None = None, banned_M: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(log-probabilities, entropies) [M], float32, nats; only the first carries a gradient.

        With `gradient_of`, the backward adds the vocabulary matrix's gradient there and hands autograd none. `banned_M` has a token of
        probability 0 for each place, or −1.
        """
        how = (self.scale, self.softcap, gradient_of, tuple(self.rows))
        return _TokenLogprobs.apply(hidden_Md, self.weight_Vd, self.bias_V, target_M, banned_M, how, *self.rows.values())


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_Md: Tensor,
        weight_Vd: Tensor,
        bias_V: Tensor | None,
        target_M: Tensor,
        banned_M: Tensor | None,
        how: tuple[float, float | None, GradientOf | None, tuple[int, ...]],
        *trained: Tensor,
    ) -> tuple[Tensor, Tensor]:
        scale, softcap, ctx.gradient_of, ctx.tokens = how
        M, V = len(hidden_Md), len(weight_Vd)
        tiles = _Tiles(weight_Vd, bias_V, scale, softcap)
        lse_M, logit_M, entropy_M = (hidden_Md.new_empty(M, dtype=torch.float32) for _ in range(3))
        for rows in tiles.tokens(M):
            softmax = _Running()
            for columns in tiles.vocabulary(V):
                logits = tiles.logits(hidden_Md[rows], columns)
                _ban(logits, banned_M, rows, columns)
                here, place = _inside(target_M[rows], columns)
                logit_M[rows] = torch.where(here, logits.gather(1, place[:, None])[:, 0], logit_M[rows])
                softmax.add(logits)
            lse_M[rows], entropy_M[rows] = softmax.results()
        ctx.save_for_backward(hidden_Md, weight_Vd, bias_V, target_M, lse_M, banned_M)
        ctx.tiles = (scale, softcap)
        ctx.mark_non_differentiable(entropy_M)
        return logit_M - lse_M, entropy_M

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_Md, weight_Vd, bias_V, target_M, lse_M, banned_M = ctx.saved_tensors
        tiles, grad_M = _Tiles(weight_Vd, bias_V, *ctx.tiles), grads[0]
        M, V = len(hidden_Md), len(weight_Vd)
        needs_weight, needs_bias = ctx.needs_input_grad[1], ctx.needs_input_grad[2]
        d_hidden = torch.zeros_like(hidden_Md, dtype=torch.float32)
        d_weight = d_bias = None
        if needs_weight:
            d_weight = ctx.gradient_of(weight_Vd) if ctx.gradient_of else torch.zeros_like(weight_Vd, dtype=torch.float32)
        d_rows = {token: hidden_Md.new_zeros(1, hidden_Md.shape[1], dtype=torch.float32) for token in ctx.tokens}
        if needs_bias:
            d_bias = torch.zeros_like(bias_V, dtype=torch.float32)
        for rows in tiles.tokens(M):
            for columns in tiles.vocabulary(V):
                d_logits = tiles.gradient(hidden_Md[rows], columns, target_M[rows], lse_M[rows], grad_M[rows])
                _ban(d_logits, banned_M, rows, columns, to=0.0)
                d_hidden[rows] += _matmul(d_logits, weight_Vd[columns])
                if d_weight is not None:
                    _add_matmul(d_weight[columns], d_logits.T, hidden_Md[rows])
                if d_bias is not None:
                    d_bias[columns] += d_logits.sum(0)
                for token in [token for token in ctx.tokens if columns.start <= token < columns.stop]:
                    d_rows[token] += d_logits[:, token - columns.start] @ hidden_Md[rows].float()
        returned = None if d_weight is None or ctx.gradient_of else d_weight.to(weight_Vd.dtype)
        of_bias = None if d_bias is None else d_bias.to(bias_V.dtype)
        of_rows = (row.to(weight_Vd.dtype) for row in d_rows.values())
        return d_hidden.to(hidden_Md.dtype), returned, of_bias, None, None, None, *of_rows


@dataclass(frozen=True)
class _Tiles:
    """Logits and their gradients in tiles of rows × columns of [M × V]."""

    weight_Vd: Tensor
    bias_V: Tensor | None
    scale: float
    softcap: float | None

    def tokens(self, M: int) -> Iterator[slice]:
        return _slices(M, self._rows(len(self.weight_Vd)))

    def vocabulary(self, V: int) -> Iterator[slice]:
        return _slices(V, max(1, self._tile // self._rows(V)))

    def logits(self, hidden: Tensor, columns: slice) -> Tensor:
        """float32 [rows, columns]."""
        logits = _matmul(hidden, self.weight_Vd[columns].T)
        if self.bias_V is not None:
            logits += self.bias_V[columns]
        if self.scale != 1.0:
            logits *= self.scale
        if self.softcap is not None:
            logits = logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def gradient(self, hidden: Tensor, columns: slice, target: Tensor, lse: Tensor, grad: Tensor) -> Tensor:
        """d log p(target) / d (h Wᵀ + b) times `grad`: (one-hot − p) · grad, through softcap and scale."""
        logits = self.logits(hidden, columns)
        slope = None if self.softcap is None else 1 - (logits / self.softcap).square_()
        d_logits = logits.sub_(lse[:, None]).exp_().mul_(-grad[:, None])
        here, place = _inside(target, columns)
        d_logits.scatter_add_(1, place[:, None], (grad * here)[:, None])
        if slope is not None:
            d_logits *= slope
        return d_logits if self.scale == 1.0 else d_logits.mul_(self.scale)

    @property
    def _tile(self) -> int:
        return TILE.get(self.weight_Vd.device.type, TILE["cuda"])

    def _rows(self, V: int) -> int:
        return max(TILE_TOKENS, self._tile // V)


@dataclass
class _Running:
    """Maximum m, s = Σ e^(l−m) and t = Σ e^(l−m) (l−m) of the logits seen so far, a row each."""

    sums: tuple[Tensor, Tensor, Tensor] | None = None

    def add(self, logits: Tensor) -> None:
        m = logits.amax(1)
        if self.sums is not None:
            m = torch.maximum(m, self.sums[0])
        shifted = logits.sub_(m[:, None])
        e = shifted.exp()
        s, t = e.sum(1), e.mul_(shifted).sum(1)
        if self.sums is not None:
            m_old, s_old, t_old = self.sums
            back, scale = m_old - m, (m_old - m).exp()
            s, t = s + scale * s_old, t + scale * (t_old + back * s_old)
        self.sums = (m, s, t)

    def results(self) -> tuple[Tensor, Tensor]:
        """(log-sum-exp, entropy)."""
        assert self.sums is not None
        m, s, t = self.sums
        return m + s.log(), s.log() - t / s


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """float32, accumulated in float32, whatever goes in."""
    if a.dtype == b.dtype == torch.float32:
        return a @ b
    if a.is_cuda or a.is_meta:
        return torch.mm(a.to(b.dtype), b, out_dtype=torch.float32)
    return a.float() @ b.float()


def _add_matmul(total: Tensor, a: Tensor, b: Tensor) -> None:
    if total.dtype == a.dtype == b.dtype:
        total.addmm_(a, b)
    else:
        total += _matmul(a, b)


def _inside(target: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """(whether the target is among the columns, its place there or 0)."""
    here = (target >= columns.start) & (target < columns.stop)
    return here, torch.where(here, target - columns.start, 0)


def _ban(tile: Tensor, banned_M: Tensor | None, rows: slice, columns: slice, to: float = NEVER) -> None:
    """Sets the banned token's number in each row of a tile, where the tile has it."""
    if banned_M is None:
        return
    here, place = _inside(banned_M[rows], columns)
    kept = tile.gather(1, place[:, None])
    tile.scatter_(1, place[:, None], torch.where(here[:, None], to, kept))


def _slices(total: int, size: int) -> Iterator[slice]:
    return (slice(start, min(total, start + size)) for start in range(0, total, size))
