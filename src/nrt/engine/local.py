"""A model, its optimiser, and the two things a step asks of them: score rows, update on rows. In one process, or in several that share
the rows out among themselves, group by group; then all of them call with the same rows, and get the same results."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from nrt.config import OptimizerConfig
from nrt.engine.memory import auto_tokens
from nrt.engine.optimizers import make_optimizer, make_schedule
from nrt.engine.processes import ALONE, Processes
from nrt.engine.sharded import ShardedWeights, Spread, fits, gathered
from nrt.engine.weights import Weights, layers_of, recomputing
from nrt.errors import InputError, RunError
from nrt.models import has_adapters, initial, merged
from nrt.models.attention import carry
from nrt.objective import Method, RowCredit, nrt_loss, streams
from nrt.scoring import Choice, PackedScorer, Scorer, choose_scorer, same_choice, score_all
from nrt.scoring.layout import by_prompt
from nrt.types import Row, TokenScores


@dataclass(frozen=True)
class LossSums:
    """The loss and its terms, and sums over sampled tokens, of all rows of an update."""

    total: float
    trace: float
    answer: float
    format: float
    ratio: float
    clipped: float
    sampled: float
    tokens: int  # of the rows, a shared prompt counted in each


@dataclass(frozen=True)
class UpdateStats:
    """One optimiser update: the loss and its terms, the ratio, the gradient norm before clipping."""

    total: float
    trace: float
    answer: float
    format: float
    ratio_mean: float  # over sampled tokens; 1 if there are none
    ratio_clipped: float  # share of sampled tokens
    grad_norm: float
    lr: float
    tokens: int  # of the rows, a shared prompt counted in each
    skipped: bool = False  # loss or gradient were not finite: nothing was updated


T = TypeVar("T")

Crediting = Callable[[Sequence[int], TokenScores], Sequence[RowCredit | None]]
"""(which rows were forwarded together, their scores) → the credit of each; None: the row takes no part in the loss."""


def known(credits: Sequence[RowCredit]) -> Crediting:
    """Credit that was there before the rows were forwarded."""
    return lambda batch, scores: [credits[i] for i in batch]


@dataclass
class LocalEngine:
    """Scores and updates `model`. `reference` is the frozen initial model, or None."""

    model: nn.Module
    reference: nn.Module | None
    reference_whole: Callable[[], AbstractContextManager[None]]  # while it is needed with all of its weights
    processes: Processes
    scorer: Scorer
    scorer_choice: Choice  # why it is this one, and how far exact scorers of this model may differ
    weights: Weights | ShardedWeights
    recomputed: Sequence[nn.Module]  # layers whose activations are made again in the backward
    optimizer: Optimizer
    scheduler: LRScheduler
    tokens_per_batch: int
    may_halve: bool  # tokens_per_batch, once, when memory runs out
    max_grad_norm: float
    warn: Callable[[str], None] = print  # hears of it
    halved: bool = False

    def score(self, rows: Sequence[Row], *, initial: bool = False) -> TokenScores:
        """Log-probabilities and entropies of the rows' tails on the CPU, without gradient, under the current or initial model."""
        model = self.reference if initial else self.model
        if model is None:
            raise InputError("the initial model was not kept; set initial_reference=true")
        if not rows:
            raise InputError("there are no rows to score; give at least one")
        mine = self._shares(rows)[self.processes.rank]
        with (self.reference_whole if initial else self.weights.whole)():
            scores = self.within_memory(lambda: self._alike(lambda: self._score(model, [rows[i] for i in mine])))
        tails: dict[int, tuple[Tensor, Tensor]] = {}
        for places, part in self.processes.gather((mine, scores)):
            tails |= zip(places, part.rows(), strict=True)
        logps, entropies = zip(*(tails[i] for i in range(len(rows))), strict=True)
        return TokenScores(torch.cat(logps), torch.cat(entropies), tuple(map(len, logps)))

    def train(self, rows: Sequence[Row], credits: Sequence[RowCredit], method: Method, *, denominator: float) -> UpdateStats:
        """One optimiser update on the rows."""
        return self.update(self.within_memory(lambda: self.gradient(rows, known(credits), method, denominator=denominator)))

    def gradient(self, rows: Sequence[Row], credit: Crediting, method: Method, *, denominator: float) -> LossSums:
        """The gradient of all rows, in place of what was there; accumulated over micro-batches and processes.

        `credit` hears of each micro-batch of this process once it was forwarded. Sums over rows: how they are cut changes nothing.
        """
        batches = [self._batches(rows, share) for share in self._shares(rows)]
        mine = batches[self.processes.rank]
        idle = max(map(len, batches)) - len(mine) if self.weights.lockstep else 0

        def accumulate() -> Tensor:
            self.weights.forget_gradients()
            sums = torch.zeros(7, dtype=torch.float64)
            with recomputing(self.recomputed):
                for batch in mine:
                    sums += self._accumulate(batch, [rows[i] for i in batch], credit, method, denominator)
                for _ in range(idle):
                    self._pass_for_others(min(rows, key=lambda row: len(row.ids)))
            return sums

        sums = self._alike(accumulate)
        self.weights.reduce()
        self.processes.add([sums])
        return LossSums(*sums.tolist(), tokens=sum(len(row.ids) for row in rows))

    def update(self, sums: LossSums) -> UpdateStats:
        """One optimiser update by the gradient that is there; none, in any process, where it or the loss is not finite in one."""
        grad_norm = gathered(nn.utils.clip_grad_norm_(self.weights.masters.values(), self.max_grad_norm))
        lr = float(self.scheduler.get_last_lr()[0])
        skipped = self.processes.any(not (math.isfinite(sums.total) and math.isfinite(grad_norm)))
        if not skipped:
            self.optimizer.step()
            self.scheduler.step()
            self.weights.publish()
        return UpdateStats(
            total=sums.total,
            trace=sums.trace,
            answer=sums.answer,
            format=sums.format,
            ratio_mean=sums.ratio / sums.sampled if sums.sampled else 1.0,
            ratio_clipped=sums.clipped / sums.sampled if sums.sampled else 0.0,
            grad_norm=float(grad_norm),
            lr=lr,
            tokens=sums.tokens,
            skipped=skipped,
        )

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of the weights as an ordinary model has them: adapters merged, one tensor at a time."""
        return merged(self.model) if has_adapters(self.model) else self.model.named_parameters()

    def within_memory(self, work: Callable[[], T]) -> T:
        """The work's result; where memory runs out it is done again from its beginning, once, in batches of half the tokens.

        Raises InputError where it may not, or where that did not help; RunError where others wait for this process in the midst of it.
        """
        try:
            return work()
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
            if self.halved or not self.may_halve:
                mend = f"lower tokens_per_batch, which is {self.tokens_per_batch}, or set gradient_checkpointing=true"
                raise (RunError if self.weights.lockstep else InputError)(f"out of memory: {mend}") from error
        # Out of the handler, whose traceback holds the tensors of the failed pass.
        self.halve()
        self.weights.forget_gradients()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.warn(f"out of memory: tokens_per_batch is {self.tokens_per_batch} from now on; the gradient stays the same")
        return self.within_memory(work)

    @property
    def scorer_why(self) -> str:
        """In words, how rows are forwarded."""
        return self.scorer_choice.why

    @property
    def version(self) -> int:
        """Of the weights: the updates that they have seen."""
        return self.scheduler.last_epoch

    def whole(self) -> AbstractContextManager[None]:
        """While the model is needed with all of its weights."""
        return self.weights.whole()

    def halve(self) -> None:
        """Batches of half the tokens from now on."""
        self.halved, self.tokens_per_batch = True, max(1, self.tokens_per_batch // 2)

    def forwards_whole(self, groups: Sequence[Sequence[Row]]) -> bool:
        """Whether the rows of each group would be forwarded together."""
        place = [g for g, group in enumerate(groups) for _ in group]
        rows = [row for group in groups for row in group]
        seen = [{place[i] for i in batch} for share in self._shares(rows) for batch in self._batches(rows, share)]
        return sum(map(len, seen)) == len(groups)

    def _shares(self, rows: Sequence[Row]) -> list[list[int]]:
        """Places of the rows of each process; those of one prompt go to one."""
        groups = list(by_prompt(rows).values())
        costs = [len(rows[group[0]].prompt_ids) + sum(len(rows[i].tail_ids) for i in group) for group in groups]
        return [sorted(i for g in share for i in groups[g]) for share in self.processes.share(costs)]

    def _batches(self, rows: Sequence[Row], share: Sequence[int]) -> list[list[int]]:
        """Micro-batches of a process's rows, as places among all."""
        batches = self.scorer.batches([rows[i] for i in share], self.tokens_per_batch)
        return [[share[i] for i in batch] for batch in batches]

    def _score(self, model: nn.Module, rows: Sequence[Row]) -> TokenScores:
        """On the CPU."""
        if not rows:
            return TokenScores(torch.empty(0), torch.empty(0), ())
        scores = score_all(self.scorer, model, rows, self.tokens_per_batch)
        return TokenScores(scores.logp_N.cpu(), scores.entropy_N.cpu(), scores.lengths)

    def _alike(self, work: Callable[[], T]) -> T:
        """The result of work of this process's own; where memory runs out in one of them it does in all, and all go on alike."""
        result, short = None, ""
        try:
            result = work()
        except RuntimeError as error:
            if self.weights.lockstep or not _out_of_memory(error):
                raise  # ends this process, and so the others
            short = str(error)  # the error itself holds the tensors of the failed pass
        if self.processes.any(bool(short)):
            raise torch.OutOfMemoryError(short or "out of memory in another process")
        return cast(T, result)

    def _pass_for_others(self, row: Row) -> None:
        """A forward and backward that add nothing, so that others find this process where they wait for it."""
        (self.weights.scores(self.scorer, [row]).logp_N.sum() * 0.0).backward()

    def _accumulate(self, batch: Sequence[int], rows: Sequence[Row], credit: Crediting, method: Method, denominator: float) -> Tensor:
        """Adds the gradient of rows forwarded together; returns their `LossSums` but for the tokens, in float64."""
        scores = self.weights.scores(self.scorer, rows)
        credited = zip(rows, credit(batch, scores), scores.logp_N.split(scores.lengths), strict=True)
        kept = [(row, credit, logp) for row, credit, logp in credited if credit is not None]
        logp_N = torch.cat([logp for _, _, logp in kept])
        parts = nrt_loss(
            logp_N,
            streams(method, [row for row, _, _ in kept], [credit for _, credit, _ in kept], logp_N),
            ratio=method.ratio,
            ratio_clip=method.ratio_clip,
            denominator=denominator,
        )
        parts.total.backward()
        terms = (parts.total.detach(), parts.trace, parts.answer, parts.format, parts.ratio_sum, parts.clipped)
        return torch.cat([torch.stack([t.double() for t in terms]).cpu(), torch.tensor([parts.sampled], dtype=torch.float64)])


def build_engine(
    model: Any,
    config: OptimizerConfig,
    *,
    pad_id: int,
    updates: int,
    tokens_per_batch: int | Literal["auto"],
    reference: nn.Module | None = None,
    gradient_checkpointing: bool = False,
    processes: Processes = ALONE,
    parallel: Literal["auto", "ddp", "fsdp"] = "auto",
    probe: Sequence[Row] = (),
    packed: bool | None = None,
) -> LocalEngine:
    """Engine with the optimiser and its schedule over `updates` updates. Of several processes each holds all weights ("ddp") or a part
    ("fsdp"). A model with adapters is its own `reference`, with them off. `probe` are the rows that scorers are tried on; `packed`
    names the scorer that a resumed run began with.

    Raises InputError where a model has nothing that could be computed again, or cannot be held in parts.
    """
    if gradient_checkpointing and not layers_of(model):
        raise InputError(f"{type(model).__name__} has no layers that could be computed again; set gradient_checkpointing=false")
    processes.copy_main(p for one in {id(m): m for m in (model, reference) if m is not None}.values() for p in one.parameters())
    choose = partial(choose_scorer, rows=probe) if packed is None else partial(same_choice, packed=packed)
    reference_whole = partial(initial, model) if reference is model else nullcontext
    if has_adapters(model) and parallel == "fsdp":
        raise InputError(
            "adapters are not held in parts; set parallel=ddp (each process holds the frozen model, in 4 bits with quantize=nf4)"
        )
    if processes.size > 1 and not has_adapters(model) and (parallel == "fsdp" or (parallel == "auto" and not fits(model, reference))):
        choice = choose(model, pad_id)  # while the model still has its weights
        weights = ShardedWeights(model, processes)
        if reference is not None:
            reference_whole = Spread.evenly(reference, processes).whole
    else:
        weights = Weights(model, processes)
        choice = choose(model, pad_id, weights.gradient_of)
    if reference is not None and isinstance(choice.scorer, PackedScorer):
        carry(reference)  # it is the same architecture
    optimizer = make_optimizer(config, list(weights.masters.values()))
    most = auto_tokens(model, next(model.parameters()).device, recompute=gradient_checkpointing)
    return LocalEngine(
        model=model,
        reference=reference,
        reference_whole=reference_whole,
        processes=processes,
        scorer=choice.scorer,
        scorer_choice=choice,
        weights=weights,
        recomputed=layers_of(weights.module) if gradient_checkpointing else (),
        optimizer=optimizer,
        scheduler=make_schedule(config, optimizer, updates),
        tokens_per_batch=most if tokens_per_batch == "auto" else tokens_per_batch,
        may_halve=tokens_per_batch == "auto" and not weights.lockstep,
        max_grad_norm=config.max_grad_norm,
    )


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy that takes no gradient: the initial model, kept for a metric."""
    return copy.deepcopy(model).requires_grad_(False)


def _out_of_memory(error: RuntimeError) -> bool:
    """CUDA's allocator has a class of its own; CUDA itself and MPS, the CPU's allocator and cuBLAS only have words."""
    words = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)
