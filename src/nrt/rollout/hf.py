"""Sampler with transformers alone: its own decode loop over the model's forward.

It never calls `generate`, so no generation_config (temperature, top-k, penalties, forced tokens)
can change samples.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nrt.errors import InputError, is_out_of_memory
from nrt.models import has_adapters, named_tensors
from nrt.models.attention import has_installed_attention
from nrt.rollout.base import Request, cut
from nrt.rollout.drawing import banned_ids, cdf_type, choose_tokens, distribution, uniform_numbers
from nrt.rollout.float32_head import float32_logits
from nrt.rollout.kv_cache import Decoder
from nrt.rollout.shared_prefix import SharedDecoder
from nrt.types import Sample

COMPACT_AT = 0.75
"""Finished rows leave the batch once at most this share of it still runs: each time costs a copy of
the cache.
"""
LOOK_EVERY = 8
"""Tokens between two looks at which rows still run, on devices where looking synchronizes with the
host.
"""
MAX_PREFILL = 65_536
"""Tokens of different prompts, padded to the longest, that are forwarded before the first token is
drawn. Their keys and values take 7.5 GB in a 3B model in bfloat16.
"""
MAX_REST = 64
"""Tokens that a row may read one by one after what prompts have in common, on a CPU. More are
forwarded at once. On other devices all are: a forward of many tokens takes little longer there than
one of a single token.
"""


@dataclass
class HFSampler:
    """Samples with the trainer's own module, or with a copy of it.

    Rows are decoded in lock step, at most `max_rows` at a time, which is halved if memory runs out.
    Each prompt is forwarded once. Its traces share its keys and values where the model has nrt's
    attention installed, else each trace gets a copy.

    Each token is drawn with a uniform number that belongs to its (prompt, sample, step). So neither
    `max_rows` nor rows that finish early change what is drawn, except for rounding: a row's logits
    depend on its batch in the last bits.
    """

    model: nn.Module  # a Hugging Face causal LM
    pad_id: int  # any id of the vocabulary: nothing attends to it
    max_rows: int = 512
    share: bool = True  # keep a prompt's keys and values once for all traces, if possible
    warn: Callable[[str], None] = lambda message: None  # receives a message if memory runs out

    def load_weights(
        self, weights: Iterable[tuple[str, Tensor]], version: int | None = None
    ) -> None:
        """Copy the weights into the module, unless it is the trainer's own. A module with adapters
        always is.
        """
        if has_adapters(self.model):
            return
        own = dict(named_tensors(self.model))
        with torch.no_grad():
            for name, value in weights:
                if own[name] is not value:
                    own[name].copy_(value)

    def sample(self, request: Request) -> list[list[Sample]]:
        """See `Sampler.sample`. Does not use the global random state. Raises InputError for an
        empty prompt.
        """
        if not all(request.prompts):
            raise InputError(
                "a prompt without tokens has nothing to predict from; give it at least a BOS token"
            )
        n, places = request.n, request.places
        on_cpu = next(self.model.parameters()).device.type == "cpu"
        split = _split_prompts(request, MAX_REST if on_cpu else 0)
        prompts = [split[b] for b in places for _ in range(n)]
        uniforms_RC = None if request.greedy else uniform_numbers(request)
        samples: dict[int, Sample] = {}
        # Similar lengths need less padding, and rows with a common part belong together
        order = sorted(range(len(prompts)), key=lambda row: prompts[row].sort_key)
        with _eval_mode(self.model), float32_logits(self.model), torch.no_grad():
            todo = deque(_batches(order, prompts, self.max_rows))
            while todo:
                rows = todo.popleft()
                if len(rows) > self.max_rows:
                    todo.extendleft((rows[self.max_rows :], rows[: self.max_rows]))
                    continue
                uniforms = None if uniforms_RC is None else uniforms_RC[rows]
                decoded = self._decode_if_possible(
                    [prompts[row] for row in rows], uniforms, request
                )
                if decoded is None:
                    half = len(rows) // 2
                    if torch.cuda.is_initialized():
                        torch.cuda.empty_cache()
                    # A batch that was cut for its long prompts says nothing about others.
                    if len(rows) == min(self.max_rows, len(order)):
                        self._lower_max_rows(half)
                    todo.extendleft((rows[half:], rows[:half]))
                else:
                    samples |= zip(rows, decoded, strict=True)
        return [[samples[b * n + k] for k in range(n)] for b in range(len(places))]

    @torch.no_grad()
    def stream(self, request: Request) -> Iterator[int]:
        """Yield the ids of one sample of the request's only prompt, each as soon as it is drawn."""
        (prompt,) = request.prompts
        uniforms_C = None if request.greedy else uniform_numbers(request)[0]
        with _eval_mode(self.model), float32_logits(self.model):
            decoder = self._decoder([prompt], request.cap)
            banned = banned_ids(request, decoder.logits_RV.device)
            for step in range(request.cap):
                logp_RV = distribution(decoder.logits_RV.float(), request, banned)
                uniform_R = None
                if uniforms_C is not None:
                    device = logp_RV.device
                    uniform_R = uniforms_C[step : step + 1].to(device, cdf_type(device))
                token_R = choose_tokens(logp_RV, uniform_R)
                token = int(token_R)
                yield token
                if token in request.stop_ids or step == request.cap - 1:
                    return
                decoder.advance(token_R)

    def sleep(self) -> None:
        """Do nothing: between requests only the module takes memory."""

    def _decoder(self, prompts: Sequence[tuple[int, ...]], cap: int) -> Decoder | SharedDecoder:
        shares = self.share and has_installed_attention(self.model)
        make_decoder = SharedDecoder if shares else Decoder
        return make_decoder(self.model, prompts, self.pad_id, cap)

    def _decode_if_possible(
        self, prompts: Sequence[_Prompt], uniforms_RC: Tensor | None, request: Request
    ) -> list[Sample] | None:
        """Return `_decode` of the prompts, or None if memory ran out and they can be divided.

        The error ends here: its traceback holds the tensors of the failed batch.
        """
        try:
            return self._decode(prompts, uniforms_RC, request)
        except RuntimeError as error:
            if len(prompts) == 1 or not is_out_of_memory(error):
                raise
            return None

    def _lower_max_rows(self, rows: int) -> None:
        """Decode at most so many rows at a time from now on."""
        self.max_rows = rows
        self.warn(
            f"out of memory while sampling: sampler_rows is {rows} from now on; samples stay the "
            f"same but for rounding; set sampler_rows={rows} to start with it"
        )

    def _decode(
        self, prompts: Sequence[_Prompt], uniforms_RC: Tensor | None, request: Request
    ) -> list[Sample]:
        """Return one sample for each prompt.

        The decoder forwards what prompts have in common. The rest of each is read token by token,
        so a row's first sample comes later, the longer its rest. Tokens drawn for a row between its
        stop and its leaving the batch are cut off at the end.
        """
        stop_ids, cap = request.stop_ids, request.cap
        longest_rest = max(len(prompt.rest) for prompt in prompts)
        decoder = self._decoder([prompt.common for prompt in prompts], longest_rest + cap)
        device = decoder.logits_RV.device
        stops = torch.tensor(sorted(stop_ids), dtype=torch.long, device=device)
        banned = banned_ids(request, device)
        uniforms_CR = None if uniforms_RC is None else uniforms_RC.T.to(device, cdf_type(device))
        rest_LR, rest_length_R = _rests(prompts, longest_rest, device)
        # Two more places than tokens: for draws before a row's first token and after its last.
        ids_CR = torch.zeros(cap + 2, len(prompts), dtype=torch.long, device=device)
        logps_CR = torch.zeros(cap + 2, len(prompts), device=device)
        rows = torch.arange(len(prompts), device=device)  # samples that the decoder still holds
        running = torch.ones_like(rows, dtype=torch.bool)
        look_every = 1 if device.type == "cpu" else LOOK_EVERY
        for step in range(longest_rest + cap):
            index_R = step - rest_length_R[rows]  # of the row's own tokens; below 0: of its rest
            logp_RV = distribution(decoder.logits_RV.float(), request, banned)
            uniform_R = None
            if uniforms_CR is not None:
                uniform_R = uniforms_CR[index_R.clamp(0, cap - 1), rows]
            token_R = choose_tokens(logp_RV, uniform_R)
            place_R = index_R.clamp(-1, cap) + 1
            ids_CR[place_R, rows] = token_R
            logps_CR[place_R, rows] = logp_RV.gather(-1, token_R.unsqueeze(-1)).squeeze(-1)
            running &= torch.isin(token_R, stops, invert=True) & (index_R < cap - 1) | (index_R < 0)
            if step < longest_rest:
                token_R = torch.where(index_R < 0, rest_LR[step, rows], token_R)
            if step == longest_rest + cap - 1:
                break
            if step % look_every == 0:
                left = int(running.sum())
                if left == 0:
                    break
                if left <= COMPACT_AT * len(rows):
                    keep = running.nonzero().squeeze(-1)
                    rows, running, token_R = rows[keep], running[keep], token_R[keep]
                    decoder.select(keep)
            decoder.advance(token_R)
        samples = []
        for ids, logps in zip(ids_CR[1:-1].T.tolist(), logps_CR[1:-1].T.tolist(), strict=True):
            kept = cut(ids, stop_ids, cap)
            samples.append(Sample(kept, tuple(logps[: len(kept)])))
        return samples


@dataclass(frozen=True)
class _Prompt:
    """A prompt in two parts."""

    common: tuple[int, ...]  # forwarded once for all prompts that begin with it
    rest: tuple[int, ...]  # read token by token

    @property
    def sort_key(self) -> tuple[int, tuple[int, ...], int]:
        return len(self.common), self.common, len(self.rest)


def _batches(
    order: Sequence[int], prompts: Sequence[_Prompt], max_rows: int
) -> Iterator[list[int]]:
    """Cut the rows into batches of at most `max_rows`, whose different prompts together, each
    padded to the longest, have at most MAX_PREFILL tokens, or which have one prompt.
    """
    batch: list[int] = []
    different: set[tuple[int, ...]] = set()
    longest = 0
    for row in order:
        common = prompts[row].common
        tokens = len({*different, common}) * max(longest, len(common))
        if batch and (len(batch) == max_rows or (tokens > MAX_PREFILL and common not in different)):
            yield batch
            batch, different, longest = [], set(), 0
        batch.append(row)
        different.add(common)
        longest = max(longest, len(common))
    if batch:
        yield batch


def _split_prompts(request: Request, max_rest: int) -> list[_Prompt]:
    """Split prompts at their prefix lengths, where several begin alike and the rest is short."""
    if not request.prefix_lengths or not max_rest:
        return [_Prompt(ids, ()) for ids in request.prompts]
    pairs = zip(request.prompts, request.prefix_lengths, strict=True)
    split = [_Prompt(ids[:length], ids[length:]) for ids, length in pairs]
    count = Counter(prompt.common for prompt in split)
    return [
        prompt
        if count[prompt.common] > 1 and len(prompt.rest) <= max_rest
        else _Prompt(prompt.common + prompt.rest, ())
        for prompt in split
    ]


def _rests(prompts: Sequence[_Prompt], longest: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the tokens that each row reads after what prompts have in common: (ids [L, R], padded
    with 0, and their number [R]).
    """
    padded = [[*prompt.rest, *[0] * (longest - len(prompt.rest))] for prompt in prompts]
    ids_RL = torch.tensor(padded, dtype=torch.long, device=device).view(len(prompts), longest)
    return ids_RL.T, torch.tensor([len(prompt.rest) for prompt in prompts], device=device)


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Context in evaluation mode: no dropout, and no gradient checkpointing, which would disable
    the cache.
    """
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
