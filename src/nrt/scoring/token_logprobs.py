"""Log-probability and entropy of tokens from hidden states, one tile of the logits at a time.

The logits [N tokens × V vocabulary] never exist as a whole. The forward computes the softmax over
the vocabulary in one pass, with a running maximum and sum (arXiv 2205.14135). It keeps the
log-sum-exp, from which the backward recomputes each tile. The backward can add the gradient of the
vocabulary matrix in place to the tensor that accumulates it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nrt.scoring.packing import BANNED_LOGIT

TILE = {"cpu": 2**18, "cuda": 2**25}
"""Logits in one tile. 1 MiB in float32 fits a core's cache; a GPU needs large multiplications."""

TILE_TOKENS = {"cpu": 256, "cuda": 4096}
"""Minimum tokens of a tile if the vocabulary is split.

Each row of tiles reads the matrix anew, and its backward adds to the whole gradient of the matrix.
"""

ALIGNMENT = 64
"""Columns that a GPU's fast multiplications handle at a time. START and END leave a vocabulary with
two more.
"""

GradientOf = Callable[[Tensor], Tensor]
"""Parameter → tensor to which its gradient is added in place."""


class TokenLogprobs(torch.autograd.Function):
    """(log-probabilities, entropies) [N] of tokens, in tiles.

    `LMHead` explains the tensors. `settings` are the scale of the logits, their softcap or None,
    `gradient_of` or None, and the ids whose rows of the head are trained; `trained_rows` are these.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_Nd: Tensor,
        weight_Vd: Tensor,
        bias_V: Tensor | None,
        target_N: Tensor,
        banned_N: Tensor | None,
        temperature_N: Tensor | None,
        settings: tuple[float, float | None, GradientOf | None, tuple[int, ...]],
        *trained_rows: Tensor,
    ) -> tuple[Tensor, Tensor]:
        scale, softcap, ctx.gradient_of, ctx.trained_tokens = settings
        N, V = len(hidden_Nd), len(weight_Vd)
        tiles = _Tiles(weight_Vd, bias_V, scale, softcap)
        lse_N = hidden_Nd.new_empty(N, dtype=torch.float32)
        logit_N = hidden_Nd.new_empty(N, dtype=torch.float32)
        entropy_N = hidden_Nd.new_empty(N, dtype=torch.float32)
        for rows in tiles.token_slices(N):
            softmax = _OnlineSoftmax()
            for columns in tiles.vocabulary_slices(V):
                logits = tiles.logits(hidden_Nd[rows], columns)
                if temperature_N is not None:
                    logits /= temperature_N[rows, None]
                _fill_banned(logits, banned_N, rows, columns, BANNED_LOGIT)
                is_inside, index = _locate(target_N[rows], columns)
                logit = logits.gather(1, index[:, None])[:, 0]
                logit_N[rows] = torch.where(is_inside, logit, logit_N[rows])
                softmax.add(logits)
            lse_N[rows], entropy_N[rows] = softmax.results()
        ctx.save_for_backward(
            hidden_Nd, weight_Vd, bias_V, target_N, lse_N, banned_N, temperature_N
        )
        ctx.scale, ctx.softcap = scale, softcap
        ctx.mark_non_differentiable(entropy_N)
        return logit_N - lse_N, entropy_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_Nd, weight_Vd, bias_V, target_N, lse_N, banned_N, temperature_N = ctx.saved_tensors
        tiles = _Tiles(weight_Vd, bias_V, ctx.scale, ctx.softcap)
        grad_N = grads[0]
        N, V, d = len(hidden_Nd), len(weight_Vd), hidden_Nd.shape[1]
        needs_weight, needs_bias = ctx.needs_input_grad[1], ctx.needs_input_grad[2]
        d_hidden = torch.zeros_like(hidden_Nd, dtype=torch.float32)
        d_weight = d_bias = None
        if needs_weight and ctx.gradient_of:
            d_weight = ctx.gradient_of(weight_Vd)
        elif needs_weight:
            d_weight = torch.zeros_like(weight_Vd, dtype=torch.float32)
        if needs_bias:
            d_bias = torch.zeros_like(bias_V, dtype=torch.float32)
        d_rows = {
            token: hidden_Nd.new_zeros(1, d, dtype=torch.float32) for token in ctx.trained_tokens
        }
        for rows in tiles.token_slices(N):
            for columns in tiles.vocabulary_slices(V):
                temperature = None if temperature_N is None else temperature_N[rows]
                d_logits = tiles.gradient(
                    hidden_Nd[rows], columns, target_N[rows], lse_N[rows], grad_N[rows], temperature
                )
                _fill_banned(d_logits, banned_N, rows, columns, 0.0)
                d_hidden[rows] += _matmul(d_logits, weight_Vd[columns])
                if d_weight is not None:
                    _add_matmul(d_weight[columns], d_logits.T, hidden_Nd[rows])
                if d_bias is not None:
                    d_bias[columns] += d_logits.sum(0)
                for token, d_row in d_rows.items():
                    if columns.start <= token < columns.stop:
                        d_row += d_logits[:, token - columns.start] @ hidden_Nd[rows].float()
        returned_weight = returned_bias = None
        if d_weight is not None and not ctx.gradient_of:
            returned_weight = d_weight.to(weight_Vd.dtype)
        if d_bias is not None:
            returned_bias = d_bias.to(bias_V.dtype)
        returned_rows = [d_row.to(weight_Vd.dtype) for d_row in d_rows.values()]
        d_inputs = (d_hidden.to(hidden_Nd.dtype), returned_weight, returned_bias)
        return *d_inputs, None, None, None, None, *returned_rows


@dataclass(frozen=True)
class _Tiles:
    """Logits and their gradients in tiles of [tokens × vocabulary]."""

    weight_Vd: Tensor
    bias_V: Tensor | None
    scale: float
    softcap: float | None

    def token_slices(self, N: int) -> Iterator[slice]:
        return _slices(N, self._tokens_per_tile(len(self.weight_Vd)))

    def vocabulary_slices(self, V: int) -> Iterator[slice]:
        """Yield the columns of each tile.

        If there are several, the last one has what is left beyond a multiple of ALIGNMENT, so that
        all others have aligned rows.
        """
        size = max(1, self._tile_size // self._tokens_per_tile(V))
        is_split = ALIGNMENT <= size < V
        aligned = V - V % ALIGNMENT if is_split else V
        yield from _slices(aligned, size)
        if aligned < V:
            yield slice(aligned, V)

    def logits(self, hidden: Tensor, columns: slice) -> Tensor:
        """Return the logits of a tile, float32."""
        logits = _matmul(hidden, self.weight_Vd[columns].T)
        if self.bias_V is not None:
            logits += self.bias_V[columns]
        if self.scale != 1.0:
            logits *= self.scale
        if self.softcap is not None:
            logits = logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def gradient(
        self,
        hidden: Tensor,
        columns: slice,
        target: Tensor,
        lse: Tensor,
        grad: Tensor,
        temperature: Tensor | None,
    ) -> Tensor:
        """Return d log p(target) / d (h Wᵀ + b) times `grad` for a tile.

        It is (one-hot − p) · grad, times the derivatives of temperature, softcap and scale.
        """
        logits = self.logits(hidden, columns)
        slope = None if self.softcap is None else 1 - (logits / self.softcap).square_()
        if temperature is not None:
            logits /= temperature[:, None]
            grad = grad / temperature
        d_logits = logits.sub_(lse[:, None]).exp_().mul_(-grad[:, None])
        is_inside, index = _locate(target, columns)
        d_logits.scatter_add_(1, index[:, None], (grad * is_inside)[:, None])
        if slope is not None:
            d_logits *= slope
        return d_logits if self.scale == 1.0 else d_logits.mul_(self.scale)

    @property
    def _tile_size(self) -> int:
        return TILE.get(self.weight_Vd.device.type, TILE["cuda"])

    def _tokens_per_tile(self, V: int) -> int:
        minimum = TILE_TOKENS.get(self.weight_Vd.device.type, TILE_TOKENS["cuda"])
        return max(minimum, self._tile_size // V)


@dataclass
class _OnlineSoftmax:
    """Running sums of each token's logits l: m = max l, s = Σ e^(l−m) and t = Σ e^(l−m) (l−m)."""

    sums: tuple[Tensor, Tensor, Tensor] | None = None

    def add(self, logits: Tensor) -> None:
        """Add a tile of logits, which this overwrites."""
        m = logits.amax(1)
        if self.sums is not None:
            m = torch.maximum(m, self.sums[0])
        shifted = logits.sub_(m[:, None])
        e = shifted.exp()
        s = e.sum(1)
        t = e.mul_(shifted).sum(1)
        if self.sums is not None:
            m_old, s_old, t_old = self.sums
            shift = m_old - m
            scale = shift.exp()
            s = s + scale * s_old
            t = t + scale * (t_old + shift * s_old)
        self.sums = (m, s, t)

    def results(self) -> tuple[Tensor, Tensor]:
        """Return (log-sum-exp, entropy)."""
        assert self.sums is not None
        m, s, t = self.sums
        return m + s.log(), s.log() - t / s


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b in float32, accumulated in float32 for inputs of any type."""
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


def _locate(target: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Return (True if the target is among the columns, its index there or 0) of each target."""
    is_inside = (target >= columns.start) & (target < columns.stop)
    return is_inside, torch.where(is_inside, target - columns.start, 0)


def _fill_banned(
    tile: Tensor, banned_N: Tensor | None, rows: slice, columns: slice, value: float
) -> None:
    """Set the banned token's entry in each row of a tile, if the tile contains it."""
    if banned_N is None:
        return
    is_inside, index = _locate(banned_N[rows], columns)
    kept = tile.gather(1, index[:, None])
    tile.scatter_(1, index[:, None], torch.where(is_inside[:, None], value, kept))


def _slices(total: int, size: int) -> Iterator[slice]:
    return (slice(start, min(total, start + size)) for start in range(0, total, size))
