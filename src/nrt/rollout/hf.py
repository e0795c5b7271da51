"""The sampler that needs nothing but transformers: its own decode loop on the model's forward.

`generate` is never called, so no generation_config (temperature, top-k, penalties, forced tokens) can leak into the samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nrt.errors import InputError
from nrt.models import has_adapters
from nrt.models.attention import carries
from nrt.rollout.base import Request, cut
from nrt.rollout.decode import Decoder
from nrt.rollout.shared import SharedDecoder
from nrt.types import Sample

COMPACT_AT = 0.75
"""Finished rows leave the batch once no more than this share of it still runs: each leave-taking copies the cache."""
LOOK_EVERY = 8
"""Tokens between two looks at which rows still run, where looking makes the device wait for the host."""


@dataclass(frozen=True)
class HFSampler:
    """Samples with the trainer's own module.

    Rows are decoded in lock step, at most `max_rows` at a time. Each prompt is forwarded once; its keys and values are kept once for all
    of its traces where the model carries our attention, else each trace gets a copy. Every token is drawn with a uniform number that
    belongs to its (prompt, sample, step), so neither `max_rows` nor which rows finish early changes what is drawn (but for rounding: a
    row's logits depend on its batch in the last bits).
    """

    model: nn.Module  # a Hugging Face causal LM
    pad_id: int  # any id of the vocabulary: nothing attends to it
    max_rows: int = 512
    share: bool = True  # keep a prompt's keys and values once for all of its traces, where the model carries our attention

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int | None = None) -> None:
        """Copies the weights into the module; where it is the trainer's own, they are there already (one with adapters always is)."""
        if has_adapters(self.model):
            return
        own = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, value in weights:
                if own[name] is not value:
                    own[name].copy_(value)

    def sample(self, request: Request) -> list[list[Sample]]:
        """See `Sampler.sample`. Leaves the global random state alone. Raises InputError for an empty prompt."""
        if not all(request.prompts):
            raise InputError("a prompt without tokens has nothing to predict from; give it at least a BOS token")
        n, places = request.n, request.places
        owners = [request.prompts[b] for b in places for _ in range(n)]
        uniforms_RC = None if request.greedy else _uniforms(request)
        samples: dict[int, Sample] = {}
        order = sorted(range(len(owners)), key=lambda row: len(owners[row]))  # similar lengths together: less padding
        with _evaluating(self.model), torch.no_grad():
            for first in range(0, len(order), self.max_rows):
                rows = order[first : first + self.max_rows]
                uniforms = None if uniforms_RC is None else uniforms_RC[rows]
                samples |= zip(rows, self._decode([owners[row] for row in rows], uniforms, request), strict=True)
        return [[samples[b * n + k] for k in range(n)] for b in range(len(places))]

    def rest(self) -> None:
        """Holds nothing between two samplings but the module."""

    def _decode(self, prompts: Sequence[tuple[int, ...]], uniforms_RC: Tensor | None, request: Request) -> list[Sample]:
        """One sample a prompt. Tokens drawn for a row after it stopped, until it leaves the batch, are cut off at the end."""
        stop_ids, cap = request.stop_ids, request.cap
        decoder = (SharedDecoder if self.share and carries(self.model) else Decoder)(self.model, prompts, self.pad_id, cap)
        device = decoder.logits_RV.device
        stops = torch.tensor(sorted(stop_ids), dtype=torch.long, device=device)
        banned = torch.tensor(sorted(request.banned), dtype=torch.long, device=device) if request.banned else None
        uniforms_CR = None if uniforms_RC is None else uniforms_RC.T.to(device, _cdf_type(device))
        ids_CR = torch.zeros(cap, len(prompts), dtype=torch.long, device=device)
        logps_CR = torch.zeros(cap, len(prompts), device=device)
        rows = torch.arange(len(prompts), device=device)  # of the samples that the decoder still holds
        running = torch.ones_like(rows, dtype=torch.bool)
        every = 1 if device.type == "cpu" else LOOK_EVERY
        for step in range(cap):
            logp_RV = _shaped(decoder.logits_RV.float(), request, banned)
            token_R = logp_RV.argmax(-1) if uniforms_CR is None else _draw(logp_RV, uniforms_CR[step, rows])
            ids_CR[step, rows] = token_R
            logps_CR[step, rows] = logp_RV.gather(-1, token_R.unsqueeze(-1)).squeeze(-1)
            running &= torch.isin(token_R, stops, invert=True)
            if step == cap - 1:
                break
            if step % every == 0:
                left = int(running.sum())
                if left == 0:
                    break
                if left <= COMPACT_AT * len(rows):
                    keep = running.nonzero().squeeze(-1)
                    rows, running, token_R = rows[keep], running[keep], token_R[keep]
                    decoder.select(keep)
            decoder.advance(token_R)
        kept = [cut(ids, stop_ids, cap) for ids in ids_CR.T.tolist()]
        return [Sample(ids, tuple(logps[: len(ids)])) for ids, logps in zip(kept, logps_CR.T.tolist(), strict=True)]


def _uniforms(request: Request) -> Tensor:
    """Numbers in [0, 1) [places · n, cap], drawn on the CPU: the same on every device."""
    prompts, n, cap, places = len(request.prompts), request.n, request.cap, list(request.places)
    if isinstance(request.seed, int):
        return _noise(request.seed, prompts * n, cap).view(prompts, n, cap)[places].flatten(0, 1)
    if len(request.seed) != prompts:
        raise InputError(f"{len(request.seed)} seeds for {prompts} prompts; give one for all, or one each")
    return torch.cat([torch.empty(0, cap, dtype=torch.float64), *(_noise(request.seed[place], n, cap) for place in places)])


def _noise(seed: int, rows: int, cap: int) -> Tensor:
    return torch.rand(rows, cap, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _shaped(logits_RV: Tensor, request: Request, banned: Tensor | None = None) -> Tensor:
    """Log-probabilities [R, V] of the distribution that the request wants to be drawn from, nats; `banned` are its ids on the device."""
    if banned is not None:
        logits_RV = logits_RV.index_fill(-1, banned, -torch.inf)
    logp_RV = (logits_RV if request.temperature == 1 else logits_RV / request.temperature).log_softmax(-1)
    if request.top_p >= 1 or request.greedy:
        return logp_RV
    falling_RV, order_RV = logp_RV.sort(-1, descending=True)
    before_RV = falling_RV.exp().cumsum(-1) - falling_RV.exp()  # probability of all that is likelier
    left_out_RV = torch.zeros_like(before_RV, dtype=torch.bool).scatter(-1, order_RV, before_RV >= request.top_p)
    return logp_RV.masked_fill(left_out_RV, -torch.inf).log_softmax(-1)


def _cdf_type(device: torch.device) -> torch.dtype:
    """In float32 the running sum over a large vocabulary would lose tokens of small probability; MPS has nothing better."""
    return torch.float32 if device.type == "mps" else torch.float64


def _draw(logp_RV: Tensor, uniform_R: Tensor) -> Tensor:
    """Ids [R] by inversion: the first token at which the running sum of probabilities exceeds u times their total.

    One number a row instead of one a (row, token): on a CPU 5 to 20 times faster than `torch.multinomial`.
    """
    cdf_RV = logp_RV.exp().cumsum(-1, dtype=uniform_R.dtype)
    threshold_R = uniform_R * cdf_RV[:, -1]
    return torch.searchsorted(cdf_RV, threshold_R.unsqueeze(-1), right=True).squeeze(-1).clamp(max=logp_RV.shape[-1] - 1)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the while: no dropout, and no gradient checkpointing, which would switch the cache off."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
