"""The cluster as an engine: what training asks of it, and how it is started and ended."""

# pyright: reportMissingImports=false
from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from operator import index
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nrt.config import AUTO_TOKENS, Config
from nrt.engine.local import UpdateStats
from nrt.engine.processes import ALONE, Processes
from nrt.engine.verl.bridge import compose, is_megatron, overrides
from nrt.errors import InputError, NrtError, RunError
from nrt.objective import Method, RowCredit
from nrt.rollout import Request
from nrt.types import Row, Sample, TokenScores

VERL = "verl"
"""Of a checkpoint, the folder in verl's own format."""

PARTS = ("model", "optim", "extra_state")
"""What each FSDP2 worker writes there."""

MEND = "bring it back from a copy, or remove the checkpoint, and the one before it is taken"

CPUS = 3
"""Of Ray's CPUs, what verl reserves for each GPU."""


@dataclass
class VerlEngine:
    """Scores and updates on a Ray cluster while `running`; before and after there is nothing."""

    config: Config
    method: Method
    updates: int  # in the whole run, for the learning-rate schedule
    prepare_model: Callable[[Path], Path]  # run folder → folder of the initial model with its markers
    finish_model: Callable[[Path], None]  # a folder of weights becomes the run's model: tokenizer, template, generation config
    scorer_why: str = "verl's workers forward each row by itself"
    warn: Callable[[str], None] = print
    checkpoint: Path | None = None  # to go on from
    lr: float | None = None  # of the next update, where verl has told
    version: int = 0
    processes: Processes = ALONE
    trainer: Any = field(default=None, repr=False)

    @contextmanager
    def running(self, folder: Path) -> Iterator[None]:
        """Starts Ray, or joins the cluster that RAY_ADDRESS or `verl.ray_kwargs.ray_init.address` names, and lets go of it at the end.

        Raises InputError for a cluster that is too small, and RunError, with the mend, where a worker of it fails.
        """
        choose_platform(self.config)
        import ray

        model = self.prepare_model(folder.resolve())
        reference = self.config.initial_reference and self.method.samples
        composed = compose(overrides(self.config, model=str(model), updates=self.updates, reference=reference))
        try:
            _start_ray(composed, self.config)
            self.trainer = self._build(composed)
            yield
        except ray.exceptions.RayError as error:
            raise _explained(error, folder) from error
        finally:
            self.trainer = None
            ray.shutdown()

    def sample(self, request: Request) -> list[list[Sample]]:
        """See `Sampler.sample`."""
        from nrt.engine.verl.sampling import ClusterSampler

        return ClusterSampler(self.trainer.sample).sample(request)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int | None = None) -> None:
        """Nothing: servers wake up with the workers' current weights."""

    def rest(self) -> None:
        """The servers give their memory back to the workers on the same GPUs."""
        self.trainer.rest()

    def parameters(self) -> Iterable[tuple[str, Tensor]]:
        """None leave the cluster."""
        return ()

    def score(self, rows: Sequence[Row], *, initial: bool = False) -> TokenScores:
        """See `Engine.score`."""
        if initial and not self.config.initial_reference:
            raise InputError("the initial model was not kept; set initial_reference=true")
        logp, entropy = zip(*self.trainer.score(rows, initial=initial), strict=True)
        return TokenScores(torch.cat(logp).float(), torch.cat(entropy).float(), tuple(len(row.tail_ids) for row in rows))

    def train(self, rows: Sequence[Row], credits: Sequence[RowCredit], method: Method, *, denominator: float) -> UpdateStats:
        """See `Engine.train`. The method is the one that the workers were given when they started.

        An update is skipped where the norm of its gradient is not finite: verl's FSDP engine has left weights and moments as they were,
        and its schedule went on. Raises RunError where that is Megatron's, which has no such rule.
        """
        if method is not self.method:
            raise ValueError(f"the workers run {self.method.name}")
        said = self.trainer.update(rows, credits, denominator=denominator)
        skipped = not math.isfinite(said["grad_norm"])
        if skipped and is_megatron(self.config):
            raise RunError(
                "the gradient of an update was not finite, and Megatron does not skip such a one: its weights are not to be used; "
                "`nrt train resume=RUN` goes on from the last checkpoint; a lower optimizer.lr may help"
            )
        sampled, own = said["nrt/sampled"], self.config.optimizer
        lr = self.lr if self.lr is not None else (0.0 if own.warmup else own.lr)  # verl tells that of the next update
        self.lr, self.version = said["lr"], self.version + (not skipped)
        return UpdateStats(
            total=said["nrt/total"],
            trace=said["nrt/trace"],
            answer=said["nrt/answer"],
            format=said["nrt/format"],
            ratio_mean=said["nrt/ratio"] / sampled if sampled else 1.0,
            ratio_clipped=said["nrt/clipped"] / sampled if sampled else 0.0,
            grad_norm=said["grad_norm"],
            lr=lr,
            tokens=sum(len(row.ids) for row in rows),
            skipped=skipped,
        )

    def save(self, folder: Path) -> Mapping[str, Any]:
        """See `Remote.save`. `folder` must be one that all nodes share."""
        self.trainer.save(folder.resolve() / VERL)
        shutil.move(folder / VERL / "huggingface", folder / "model")
        self.finish_model(folder / "model")
        return {"lr": self.lr, "version": self.version}

    def load(self, folder: Path, state: Mapping[str, Any]) -> None:
        """See `Remote.load`. Raises InputError for a checkpoint of another number of workers, or of another engine."""
        workers = self.config.nodes * self.config.gpus_per_node
        names = {f"{kind}_world_size_{workers}_rank_{rank}.pt" for kind in PARTS for rank in range(workers)}
        if not is_megatron(self.config) and (absent := sorted(names - {file.name for file in (folder / VERL).glob("*")})):
            raise InputError(f"{folder / VERL} has no {absent[0]}, so it is not of engine=verl with {workers} workers; {MEND}")
        self.checkpoint = folder.resolve() / VERL
        self.lr, self.version = None if state["lr"] is None else float(state["lr"]), index(state["version"])

    def whole(self) -> AbstractContextManager[None]:
        """Nothing is needed: what is saved was gathered with the last checkpoint."""
        return nullcontext()

    def _build(self, composed: Any) -> Any:
        from nrt.engine.verl.trainer import NrtTrainer

        tokens = AUTO_TOKENS if self.config.tokens_per_batch == "auto" else self.config.tokens_per_batch
        trainer = NrtTrainer(composed, self.method, tokens=tokens)
        trainer.init()
        if self.checkpoint:
            self._read(trainer, self.checkpoint)
        return trainer

    def _read(self, trainer: Any, folder: Path) -> None:
        """Raises InputError for what a worker cannot read under hashes that fit: another version's, or made by hand."""
        import ray

        try:
            trainer.read(folder)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, torch.OutOfMemoryError):
                raise
            said = " ".join(str(error.cause).split())
            raise InputError(f"{folder} cannot be read by verl's workers ({type(error.cause).__name__}: {said:.200}); {MEND}") from error


def choose_platform(config: Config) -> None:
    """Before verl is imported, here and, as environment variables are handed down, in every worker."""
    if config.device == "cpu":
        os.environ |= {"VERL_PLATFORM": "cpu", "VERL_USE_EXTERNAL_MODULES": "nrt.engine.verl.cpu.platform"}
        os.environ["OMP_NUM_THREADS"] = str(config.threads or 1)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's coming default, of which it warns


def _start_ray(composed: Any, config: Config) -> None:
    """verl's own way to start Ray, without a task runner: this process is the controller."""
    import ray
    from omegaconf import OmegaConf
    from verl.trainer.constants_ppo import get_ppo_ray_runtime_env

    given = OmegaConf.to_container(composed.ray_kwargs.ray_init, resolve=True)
    assert isinstance(given, dict)
    own_env = {key: value for key, value in (given.pop("runtime_env", None) or {}).items() if value is not None}
    environment = get_ppo_ray_runtime_env(composed)
    handed = ("VERL_PLATFORM", "VERL_USE_EXTERNAL_MODULES", "OMP_NUM_THREADS", "PYTHONPATH", "HF_HUB_OFFLINE")
    environment["env_vars"] |= {name: os.environ[name] for name in handed if name in os.environ}
    runtime_env = OmegaConf.to_container(OmegaConf.merge(environment, own_env))
    given = {key: value for key, value in given.items() if value is not None}
    if config.device == "cpu":
        wanted = config.nodes * config.gpus_per_node
        local = {"num_gpus": wanted, "num_cpus": CPUS * wanted + 2, "include_dashboard": False}  # a count on paper, not of cores
        given = {**local, **given}
    elif config.nodes > 1:
        given.setdefault("address", "auto")
    try:
        ray.init(runtime_env=runtime_env, log_to_driver=False, **given)
    except ConnectionError as error:
        raise InputError(f"no Ray cluster was found ({error}); start one with `ray start` on every node (docs/cluster.md)") from error
    asked, there = config.nodes * config.gpus_per_node, ray.cluster_resources()
    for kind, wanted in (("GPU", asked), ("CPU", CPUS * asked)):  # verl would wait for them without a word
        if there.get(kind, 0) < wanted:
            raise InputError(
                f"the Ray cluster has {there.get(kind, 0):g} {kind}s, and nodes={config.nodes} × gpus_per_node={config.gpus_per_node} "
                f"needs {wanted}; start Ray on all nodes, or ask for less"
            )


def _explained(error: Exception, folder: Path) -> NrtError:
    """One line for people. An error of ours that was raised in a worker is that error."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, NrtError):
        return cause
    text = str(cause or error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    reason = lines[-1] if cause or "creation task" in text else lines[0]  # a traceback's last line; else Ray's own sentence
    return RunError(
        f"a worker of the cluster failed: {type(cause or error).__name__}: {reason:.300} — what was saved is whole: "
        f"`nrt train resume={folder}` goes on from the last checkpoint"
    )
