"""Engine in this process: scores rows and takes optimizer steps on this machine's devices.

Under torchrun the processes share the rows, group by group. All of them call the engine with the
same rows and get the same results.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from nrt.distributed import ProcessGroup
from nrt.engine.compiled import NOT_COMPILED, CompiledChoice
from nrt.engine.fsdp import ShardedWeights, full_tensor
from nrt.engine.gradient import N_SUMS, LossSums, RowCreditor, add_gradient, run_idle_pass
from nrt.engine.interface import G, GroupCreditor, UpdateStats, credit_scored_groups
from nrt.engine.memory import TokenBudget
from nrt.engine.recompute import RecomputeByNeed
from nrt.engine.state import collect_state, restore_state, write_state
from nrt.engine.weights import Weights, recomputing
from nrt.errors import InputError
from nrt.models import has_adapters, merged_parameters, named_tensors
from nrt.objective import Method, RowCredit
from nrt.scoring import Scorer, ScorerChoice, score_all
from nrt.scoring.packing import by_prompt, packed_tokens
from nrt.types import Row, TailScores, TokenScores

T = TypeVar("T")


@dataclass
class LocalEngine:
    """Scores and trains `model`; see `nrt.engine.interface.Engine` for what its methods promise."""

    model: Any  # a Hugging Face causal language model
    reference: nn.Module | None  # the frozen initial model
    gathered_reference: Callable[[], AbstractContextManager[None]]  # in which it has all weights
    processes: ProcessGroup
    scorer: Scorer
    scorer_choice: ScorerChoice  # why it is this scorer, and how far exact scorers may differ
    weights: Weights | ShardedWeights
    recomputed: Sequence[nn.Module]  # layers under gradient checkpointing
    optimizer: Optimizer
    scheduler: LambdaLR
    budget: TokenBudget  # of a micro-batch
    max_grad_norm: float
    recompute_by_need: RecomputeByNeed | None = None  # None: recompute in all micro-batches
    compiled: CompiledChoice = NOT_COMPILED
    warn: Callable[[str], None] = print
    can_fuse: bool = True

    def running(self, folder: Path) -> AbstractContextManager[None]:
        """Return a context that does nothing: the engine needs no other process."""
        return nullcontext()

    def score(self, rows: Sequence[Row], *, initial: bool = False) -> TokenScores:
        """Return the scores of the rows' tails, on the CPU."""
        model = self.reference if initial else self.model
        if model is None:
            raise InputError("the initial model was not kept; set initial_reference=true")
        if not rows:
            raise InputError("there are no rows to score; give at least one")
        mine = self._shares(rows)[self.processes.rank]

        def score_mine() -> TokenScores:
            return self._score(model, [rows[i] for i in mine])

        gathered = self.gathered_reference if initial else self.weights.gathered_parameters
        with gathered():
            scores = self.retry_out_of_memory(lambda: self.budget.fail_together(score_mine))
        tails: dict[int, TailScores] = {}
        for indices, part in self.processes.all_gather((mine, scores)):
            tails |= zip(indices, part.rows(), strict=True)
        logps, entropies = zip(*(tails[i] for i in range(len(rows))), strict=True)
        return TokenScores(torch.cat(logps), torch.cat(entropies), tuple(map(len, logps)))

    def train(
        self,
        rows: Sequence[Row],
        credits: Sequence[RowCredit],
        method: Method,
        *,
        denominator: float,
    ) -> UpdateStats:
        """Take one optimizer step on the rows."""
        sums = self.retry_out_of_memory(
            lambda: self.compute_gradient(rows, credits, method, denominator=denominator)
        )
        return self.optimizer_step(sums)

    def score_and_train(
        self,
        groups: Sequence[Sequence[Row]],
        credit: GroupCreditor[G],
        method: Method,
        *,
        denominator: float,
    ) -> tuple[list[G], UpdateStats]:
        """Score groups of rows, credit them, and take one optimizer step."""

        def work() -> tuple[list[G], LossSums]:
            if self.keeps_groups_whole(groups):
                return self._score_within_update(groups, credit, method, denominator)
            return self._score_before_update(groups, credit, method, denominator)

        credited, sums = self.retry_out_of_memory(work)
        return credited, self.optimizer_step(sums)

    def compute_gradient(
        self,
        rows: Sequence[Row],
        credits: Sequence[RowCredit],
        method: Method,
        *,
        denominator: float,
    ) -> LossSums:
        """Compute the gradient of the rows' loss. It replaces the gradient that was there."""
        return self._accumulate_gradient(
            rows, lambda batch, _: [credits[i] for i in batch], method, denominator
        )

    def optimizer_step(self, sums: LossSums) -> UpdateStats:
        """Take one optimizer step along the current gradient, and free the gradient.

        No process takes it if the loss or the gradient is not finite in any of them.
        """
        masters = self.weights.masters.values()
        grad_norm = full_tensor(nn.utils.clip_grad_norm_(masters, self.max_grad_norm))
        lr = float(self.scheduler.get_last_lr()[0])
        skipped = self.processes.any(not (math.isfinite(sums.total) and math.isfinite(grad_norm)))
        if not skipped:
            self.optimizer.step()
            self.scheduler.step()
            self.weights.copy_to_model()
        self.weights.zero_grad()  # a rollout may come next, which needs their memory
        return sums.stats(grad_norm=float(grad_norm), lr=lr, skipped=skipped)

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, weight), persistent buffers included, as in a model without adapters; merge
        one tensor at a time.
        """
        if has_adapters(self.model):
            return merged_parameters(self.model)
        return named_tensors(self.model)

    def gathered_parameters(self) -> AbstractContextManager[None]:
        """Context in which the model has all of its weights."""
        return self.weights.gathered_parameters()

    def checkpoint_writer(
        self, save_model: Callable[[Path], None]
    ) -> Callable[[Path], Mapping[str, Any]]:
        """Collect the optimizer's state, to be written with model and schedule."""
        tensors, groups = collect_state(self.weights, self.optimizer, self.processes)

        def write(folder: Path) -> Mapping[str, Any]:
            save_model(folder / "model")
            write_state(folder, tensors)
            return {
                "optimizer": {"groups": groups},
                "scheduler": self.scheduler.state_dict(),
                "halved": self.budget.halved,
            }

        return write

    def load(self, folder: Path, state: Mapping[str, Any]) -> None:
        """Restore optimizer, schedule and random state from a checkpoint."""
        restore_state(folder, self.weights, self.optimizer, state["optimizer"]["groups"])
        self.scheduler.load_state_dict(dict(state["scheduler"]))
        # A run resumed with other `steps` has another schedule; else these are the same rates.
        updates = self.scheduler.last_epoch
        schedule = zip(self.scheduler.base_lrs, self.scheduler.lr_lambdas, strict=True)
        rates = [base * factor(updates) for base, factor in schedule]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self.scheduler._last_lr = rates
        if self.budget.may_halve and state.get("halved"):
            self.budget.halve()

    @property
    def scorer_why(self) -> str:
        """How rows are forwarded, in words."""
        return self.scorer_choice.why

    @property
    def version(self) -> int:
        """Version of the weights: the number of optimizer steps taken."""
        return self.scheduler.last_epoch

    def retry_out_of_memory(self, work: Callable[[], T]) -> T:
        """Call `work`; if memory runs out, call it again with smaller micro-batches."""
        return self.budget.retry(work, reset=self.weights.zero_grad, warn=self.warn)

    def keeps_groups_whole(self, groups: Sequence[Sequence[Row]]) -> bool:
        """True if the rows of each group are forwarded in one micro-batch."""
        rows, group_of_row = _flat(groups)
        pieces = 0
        for share in self._shares(rows):
            for batch in self._batches(rows, share):
                pieces += len({group_of_row[i] for i in batch})
        return pieces == len(groups)

    def _score_within_update(
        self,
        groups: Sequence[Sequence[Row]],
        credit: GroupCreditor[G],
        method: Method,
        denominator: float,
    ) -> tuple[list[G], LossSums]:
        """Credit each group within the forward of its micro-batch, in which it must be whole."""
        rows, group_of_row = _flat(groups)
        credited: dict[int, G] = {}  # the groups of this process

        def credit_rows(batch: Sequence[int], scores: TokenScores) -> list[RowCredit | None]:
            logp_N, entropy_N = scores.logp_N.detach().cpu(), scores.entropy_N.cpu()
            detached = TokenScores(logp_N, entropy_N, scores.lengths)
            tails = dict(zip(batch, detached.rows(), strict=True))
            credits: dict[int, RowCredit | None] = dict.fromkeys(batch)
            for g in {group_of_row[i] for i in batch}:
                members = sorted(i for i in batch if group_of_row[i] == g)
                credited[g] = credit(g, [tails[i] for i in members])
                # Rows without a credit, such as the null trace's, are the last ones of a group.
                credits |= zip(members, credited[g].row_credits(), strict=False)
            return [credits[i] for i in batch]

        sums = self._accumulate_gradient(rows, credit_rows, method, denominator)
        gathered: dict[int, G] = {}
        for part in self.processes.all_gather(credited):
            gathered |= part
        return [gathered[g] for g in range(len(groups))], sums

    def _score_before_update(
        self,
        groups: Sequence[Sequence[Row]],
        credit: GroupCreditor[G],
        method: Method,
        denominator: float,
    ) -> tuple[list[G], LossSums]:
        """Score all rows first, then forward those that got a credit again, with gradient."""
        scores = self.score(_flat(groups)[0])
        credited, rows, credits = credit_scored_groups(groups, scores, credit)
        return credited, self.compute_gradient(rows, credits, method, denominator=denominator)

    def _accumulate_gradient(
        self, rows: Sequence[Row], credit_rows: RowCreditor, method: Method, denominator: float
    ) -> LossSums:
        """Accumulate the gradient over micro-batches and processes.

        `credit_rows` is called after the forward of each micro-batch of this process.
        """
        batches = [self._batches(rows, share) for share in self._shares(rows)]
        mine = batches[self.processes.rank]
        idle = max(map(len, batches)) - len(mine) if self.weights.lockstep else 0

        def accumulate() -> Tensor:
            self.weights.zero_grad()
            sums = torch.zeros(N_SUMS, dtype=torch.float64)
            for batch in mine:
                with recomputing(self._recomputed([rows[i] for i in batch])):
                    sums += add_gradient(
                        self.weights, self.scorer, rows, batch, credit_rows, method, denominator
                    )
            for _ in range(idle):
                shortest = min(rows, key=lambda row: len(row.ids))
                with recomputing(self.recomputed):
                    run_idle_pass(self.weights, self.scorer, shortest)
            return sums

        with self.compiled.layers_of(self.weights.module):
            sums = self.budget.fail_together(accumulate)
        self.weights.all_reduce_gradients()
        self.processes.all_reduce([sums])
        return LossSums(*sums.tolist())

    def _recomputed(self, rows: Sequence[Row]) -> Sequence[nn.Module]:
        """Return the layers to recompute in a micro-batch: all, or none if it fits without."""
        by_need = self.recompute_by_need
        if by_need is None or self.budget.recomputes_all or self.budget.halved:
            return self.recomputed
        return self.recomputed if by_need(packed_tokens(rows)) else ()

    def _score(self, model: nn.Module, rows: Sequence[Row]) -> TokenScores:
        """Score rows in this process; results are on the CPU."""
        if not rows:
            return TokenScores(torch.empty(0), torch.empty(0), ())
        with self.compiled.layers_of(model):
            scores = score_all(self.scorer, model, rows, self.budget.tokens)
        return TokenScores(scores.logp_N.cpu(), scores.entropy_N.cpu(), scores.lengths)

    def _shares(self, rows: Sequence[Row]) -> list[list[int]]:
        """Return the indices of each process's rows. The rows of a prompt go to one process."""
        groups = list(by_prompt(rows).values())
        costs = []
        for group in groups:
            costs.append(len(rows[group[0]].prompt_ids) + sum(len(rows[i].tail_ids) for i in group))
        shares = self.processes.partition(costs)
        return [sorted(i for g in share for i in groups[g]) for share in shares]

    def _batches(self, rows: Sequence[Row], share: Sequence[int]) -> list[list[int]]:
        """Return the micro-batches of one process's rows, as indices among all rows."""
        batches = self.scorer.batches([rows[i] for i in share], self.budget.tokens)
        return [[share[i] for i in batch] for batch in batches]


def _flat(groups: Sequence[Sequence[Row]]) -> tuple[list[Row], list[int]]:
    """Return all rows, and the index of each row's group."""
    rows = [row for group in groups for row in group]
    return rows, [g for g, group in enumerate(groups) for _ in group]
