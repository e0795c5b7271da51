"""Engine on a Ray cluster: verl's workers score and train, its rollout servers sample."""

# pyright: reportMissingImports=false
from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from operator import index
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nrt.backends.verl.bridge import (
    compose_config,
    dropout_keys,
    is_megatron,
    verl_overrides,
)
from nrt.backends.verl.ray_cluster import choose_platform, start_ray, worker_error
from nrt.config import Config
from nrt.distributed import SINGLE_PROCESS, ProcessGroup
from nrt.engine.gradient import LossSums
from nrt.engine.interface import G, GroupCreditor, UpdateStats, credit_scored_groups
from nrt.engine.optimizer import warmup_updates
from nrt.errors import InputError, RunError
from nrt.models import load_configs
from nrt.objective import Method, RowCredit
from nrt.rollout import Request
from nrt.types import Row, Sample, TokenScores

VERL_FOLDER = "verl"
"""Folder of a checkpoint that is in verl's own format."""

WORKER_FILES = ("model", "optim", "extra_state")
"""Files that each FSDP2 worker writes into `VERL_FOLDER`."""

FIX = "restore it from a copy, or remove the checkpoint to resume from the one before it"


@dataclass
class VerlEngine:
    """Scores, trains and samples on a Ray cluster. Implements `Engine` and `Sampler`.

    The cluster exists only within `running`.
    """

    config: Config
    method: Method
    updates: int  # in the whole run, for the learning-rate schedule
    prepare_model: Callable[[Path], Path]  # run folder → folder of the initial model with markers
    finish_model: Callable[[Path], None]  # adds tokenizer, template, generation config to weights
    scorer_why: str = "verl's workers forward each row by itself"
    warn: Callable[[str], None] = print
    checkpoint: Path | None = None  # to resume from
    lr: float | None = None  # of the next update; None until verl has reported it
    can_fuse: bool = False
    version: int = 0
    processes: ProcessGroup = SINGLE_PROCESS
    trainer: Any = field(default=None, repr=False)

    @contextmanager
    def running(self, folder: Path) -> Iterator[None]:
        """Start Ray, or join a cluster; disconnect at the end.

        RAY_ADDRESS or `verl.ray_kwargs.ray_init.address` names a cluster to join. Raises
        InputError if the cluster is too small, RunError if a worker fails.
        """
        choose_platform(self.config)
        import ray

        model = self.prepare_model(folder.resolve())
        reference = self.config.initial_reference and self.method.samples
        model_config = load_configs(str(model), self.config.trust_remote_code).config
        overrides = verl_overrides(
            self.config,
            model=str(model),
            updates=self.updates,
            reference=reference,
            dropout=() if is_megatron(self.config) else dropout_keys(model_config),
        )
        verl_config = compose_config(overrides)
        try:
            start_ray(verl_config, self.config)
            self.trainer = self._build_trainer(verl_config)
            yield
        except ray.exceptions.RayError as error:
            raise worker_error(error, folder) from error
        finally:
            self.trainer = None
            ray.shutdown()

    def sample(self, request: Request) -> list[list[Sample]]:
        """See `Sampler.sample`."""
        from nrt.backends.verl.sampling import ClusterSampler

        return ClusterSampler(self.trainer.sample).sample(request)

    def load_weights(
        self, weights: Iterable[tuple[str, Tensor]], version: int | None = None
    ) -> None:
        """Do nothing: the rollout servers wake up with the workers' current weights."""

    def sleep(self) -> None:
        """Let the rollout servers release memory for the workers on the same GPUs."""
        self.trainer.sleep()

    def parameters(self) -> Iterable[tuple[str, Tensor]]:
        """Return none: weights do not leave the cluster."""
        return ()

    def score(self, rows: Sequence[Row], *, initial: bool = False) -> TokenScores:
        """See `Engine.score`."""
        if initial and not self.config.initial_reference:
            raise InputError("the initial model was not kept; set initial_reference=true")
        logps, entropies = zip(*self.trainer.score(rows, initial=initial), strict=True)
        lengths = tuple(len(row.tail_ids) for row in rows)
        return TokenScores(torch.cat(logps).float(), torch.cat(entropies).float(), lengths)

    def train(
        self,
        rows: Sequence[Row],
        credits: Sequence[RowCredit],
        method: Method,
        *,
        denominator: float,
    ) -> UpdateStats:
        """Take one optimizer step; `method` must be the one that the workers started with.

        verl's FSDP engine skips an update whose gradient norm is not finite, but advances its
        schedule. Megatron does not skip it: then this method raises RunError.
        """
        if method is not self.method:
            raise ValueError(f"the workers run {self.method.name}")
        metrics = self.trainer.update(rows, credits, denominator=denominator)
        skipped = not math.isfinite(metrics["grad_norm"])
        if skipped and is_megatron(self.config):
            raise RunError(
                "the gradient of an update was not finite, and Megatron applied it: its weights "
                "are unusable; resume from the last checkpoint with `nrt resume RUN`; a "
                "lower optimizer.lr may help"
            )
        lr = self._current_lr()
        self.lr = metrics["lr"]  # verl reports that of the next update
        self.version += not skipped
        sums = LossSums(
            total=metrics["nrt/total"],
            trace=metrics["nrt/trace"],
            answer=metrics["nrt/answer"],
            format=metrics["nrt/format"],
            ratio=metrics["nrt/ratio"],
            clipped=metrics["nrt/clipped"],
            sampled=metrics["nrt/sampled"],
            tokens=sum(len(row.ids) for row in rows),
        )
        return sums.stats(grad_norm=metrics["grad_norm"], lr=lr, skipped=skipped)

    def score_and_train(
        self,
        groups: Sequence[Sequence[Row]],
        credit: GroupCreditor[G],
        method: Method,
        *,
        denominator: float,
    ) -> tuple[list[G], UpdateStats]:
        """Score all rows, credit the groups, and train on the rows that got a credit.

        The workers forward these rows twice.
        """
        scores = self.score([row for group in groups for row in group])
        credited, rows, credits = credit_scored_groups(groups, scores, credit)
        return credited, self.train(rows, credits, method, denominator=denominator)

    def checkpoint_writer(
        self, save_model: Callable[[Path], None]
    ) -> Callable[[Path], Mapping[str, Any]]:
        """Return a function that lets the workers write a checkpoint.

        All nodes must share its folder. `save_model` is not called: the workers hold the model.
        """

        def write(folder: Path) -> Mapping[str, Any]:
            self.trainer.save(folder.resolve() / VERL_FOLDER)
            shutil.move(folder / VERL_FOLDER / "huggingface", folder / "model")
            self.finish_model(folder / "model")
            return {"lr": self.lr, "version": self.version}

        return write

    def load(self, folder: Path, state: Mapping[str, Any]) -> None:
        """Resume from a checkpoint when the workers start.

        Raises InputError for a checkpoint of another number of workers, or of another engine.
        """
        workers = self.config.nodes * self.config.gpus_per_node
        expected = set()
        for rank in range(workers):
            expected |= {f"{kind}_world_size_{workers}_rank_{rank}.pt" for kind in WORKER_FILES}
        missing = sorted(expected - {file.name for file in (folder / VERL_FOLDER).glob("*")})
        if missing and not is_megatron(self.config):
            raise InputError(
                f"{folder / VERL_FOLDER} has no {missing[0]}, so it is not of engine=verl with "
                f"{workers} workers; {FIX}"
            )
        self.checkpoint = folder.resolve() / VERL_FOLDER
        self.lr = None if state["lr"] is None else float(state["lr"])
        self.version = index(state["version"])

    def gathered_parameters(self) -> AbstractContextManager[None]:
        """Return a context that does nothing: each checkpoint gathers the weights."""
        return nullcontext()

    def _current_lr(self) -> float:
        """Return the learning rate of this update."""
        if self.lr is not None:
            return self.lr
        optimizer = self.config.optimizer
        warms_up = warmup_updates(optimizer, self.updates) > 0
        return 0.0 if warms_up else optimizer.lr  # verl's warm-up begins at 0

    def _build_trainer(self, verl_config: Any) -> Any:
        from nrt.backends.verl.trainer import NrtTrainer

        tokens = self.config.token_limit
        trainer = NrtTrainer(verl_config, self.method, tokens=tokens)
        trainer.init()
        if self.checkpoint:
            self._load_checkpoint(trainer, self.checkpoint)
        return trainer

    def _load_checkpoint(self, trainer: Any, folder: Path) -> None:
        """Load the workers' checkpoint.

        Raises InputError for a file with the right hash that a worker cannot read: another
        version's, or made by hand.
        """
        import ray

        try:
            trainer.load(folder)
        except ray.exceptions.RayTaskError as error:
            # not `is_out_of_memory`: damaged files cause huge allocations, which fail on the CPU
            if isinstance(error.cause, torch.OutOfMemoryError):
                raise
            message = " ".join(str(error.cause).split())
            raise InputError(
                f"{folder} cannot be read by verl's workers ({type(error.cause).__name__}: "
                f"{message:.200}); {FIX}"
            ) from error
