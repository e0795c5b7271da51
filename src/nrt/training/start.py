"""`train`: a run begins, or goes on from its newest whole checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError

from nrt.config import Config
from nrt.durable import told_of_disk
from nrt.engine.local import LocalEngine
from nrt.engine.processes import Processes, processes_of
from nrt.errors import InputError
from nrt.models import pick_device
from nrt.rollout import AheadSampler
from nrt.run import Bystander, Run, RunWriter, as_nrt_writes, released_on_error, run_folder
from nrt.training.checkpoint import load_checkpoint, newest_whole, set_aside
from nrt.training.cluster import prepare_cluster
from nrt.training.loop import Listener, Loop, Silent, next_request
from nrt.training.progress import Progress, read_progress
from nrt.training.resolve import check_resumable, resolve_names
from nrt.training.sampler import PROBE, check_agreement
from nrt.training.setup import Parts, prepare
from nrt.training.signals import heeded


def train(config: Config, *, listener: Listener | None = None) -> Run:
    """Trains as the config says and returns the finished run.

    Raises InputError (nothing was written) for anything in config, data or model that cannot be used, and Interrupted after
    SIGINT or SIGTERM, with a checkpoint saved; `train(config with resume=run)` then goes on as if nothing had happened.
    Under torchrun each process calls it; they train together, and the main one writes and has a listener.
    """
    resolve_names(config)
    with processes_of(pick_device(config.device)) as processes:
        return _train(config, processes, listener if listener and processes.main else Silent())


@dataclass(frozen=True)
class Started:
    """A run that can be gone through."""

    parts: Parts
    progress: Progress
    writer: RunWriter
    damages: list[str]  # what is wrong with the checkpoints that were passed over
    checkpoint: str = ""  # the one that it goes on from
    cut: Callable[[], None] = lambda: None  # of a run that is gone on with, what was written beyond the checkpoint; when all is loaded


def _train(config: Config, processes: Processes, listener: Listener) -> Run:
    run = _resumed(config, config.resume, processes) if config.resume else _begun(config, processes)
    folder = run.writer.path
    with run.writer as writer, _running(run, begun=not config.resume), heeded(config.save_signal) as signals, told_of_disk(folder):
        run.cut()
        if config.resume and not writer.resumed:
            listener.say("it was cut before its first checkpoint: from the beginning")
        for found in run.damages:
            message = f"damaged checkpoint: {found}; it is set aside, and the run goes on from {run.checkpoint}"
            writer.warn("damaged-checkpoint", message, run.progress.step)
            listener.say(message)
        if not writer.resumed:
            writer.skipped("train", [asdict(bad) for bad in run.parts.data.bad])
            writer.skipped("valid", [asdict(bad) for bad in run.parts.valid.bad] if run.parts.valid else [])
        Loop(config, run.parts, writer, run.progress, listener, signals).run()
    return Run(folder)


def _begun(config: Config, processes: Processes) -> Started:
    folder = run_folder(config.run)
    parts, progress = _from_the_beginning(config, processes)
    with told_of_disk(folder):
        writer = RunWriter.create(folder, config) if processes.main else Bystander(folder, resumed=False)
    return Started(parts, progress, writer, [])


def _from_the_beginning(config: Config, processes: Processes) -> tuple[Parts, Progress]:
    parts = _prepare(config, processes)
    _check_sampler(parts, config)
    memory = parts.stepper.method.memory
    return parts, Progress(memory=memory.initial() if memory else None)


def _resumed(config: Config, name: str, processes: Processes) -> Started:
    """The lock comes first: what is read then changes no more."""
    folder = run_folder(name)
    before = Run(folder).config
    check_resumable(config, before)
    again = config.model_copy(update={"run": before.run, "resume": None})
    writer = RunWriter.hold(folder) if processes.main else Bystander(folder, resumed=True)
    with released_on_error(writer):
        return _gone_on(config, again, writer, processes)


def _gone_on(config: Config, again: Config, writer: RunWriter, processes: Processes) -> Started:
    """From the newest whole checkpoint; from the beginning where the run was cut before its first."""
    checkpoints = Run(writer.path).checkpoints()
    if not checkpoints:
        if found := [name for name in ("model", "checkpoints/latest") if (writer.path / name).exists()]:
            raise InputError(
                f"{writer.path} has {found[0]} but no checkpoint to go on from: bring one back, or begin a run of another name"
            )
        parts, progress = _from_the_beginning(config, processes)
        return Started(parts, progress, writer, [], cut=lambda: writer.go_on(None, again))
    checkpoint, damages = _newest_whole(checkpoints, processes)
    parts = _prepare(config, processes, checkpoint)
    with _readable(checkpoint):
        state = load_checkpoint(checkpoint, parts.stepper.policy.engine)
        progress = read_progress(state, parts)
    _check_sampler(parts, config)
    with _readable(checkpoint):
        best = progress.best
        if best and (best.metric != config.keep_best or checkpoint.with_name(best.checkpoint) not in checkpoints):
            progress.best = None  # of another metric, or deleted by hand
        if ahead := state.get("ahead"):
            sampler = parts.stepper.policy.sampler
            assert isinstance(sampler, AheadSampler)
            at = progress.position + (progress.in_hand.rollout.drawn if progress.in_hand else 0)
            sampler.restore(next_request(config, parts, progress.step + (progress.in_hand is not None), at), ahead)

    def cut() -> None:
        writer.go_on(progress.step, again)
        if processes.main:
            set_aside(checkpoints, checkpoint)

    return Started(parts, progress, writer, damages, checkpoint.name, cut)


@contextmanager
def _readable(checkpoint: Path) -> Iterator[None]:
    """Raises InputError where a checkpoint whose hashes are right holds something else: another nrt's, or made by hand."""
    try:
        with as_nrt_writes(checkpoint):
            yield
    except torch.OutOfMemoryError:
        raise
    except (SafetensorError, FileNotFoundError, RuntimeError) as error:
        said = " ".join(str(error).split())
        raise InputError(f"{checkpoint} is no checkpoint of this run ({said:.200}); bring it back from a copy, or remove it") from error


def _prepare(config: Config, processes: Processes, checkpoint: Path | None = None) -> Parts:
    if config.engine == "local":
        return prepare(config, checkpoint=checkpoint, processes=processes)
    if processes.size > 1:
        raise InputError("engine=verl starts workers of its own; start nrt without torchrun")
    return prepare_cluster(config, checkpoint=checkpoint)


@contextmanager
def _running(run: Started, *, begun: bool) -> Iterator[None]:
    """An engine that lives elsewhere, as long as the run goes on. A run that is begun leaves nothing where it cannot be started."""
    engine, writer = run.parts.stepper.policy.engine, run.writer
    with ExitStack() as running:
        try:
            if not isinstance(engine, LocalEngine):
                running.enter_context(engine.running(writer.path))
        except InputError:
            if begun:
                writer.discard()
            raise
        yield


def _newest_whole(checkpoints: list[Path], processes: Processes) -> tuple[Path, list[str]]:
    """See `newest_whole`. The main process reads the files, and the others hear of it."""
    found = None
    if processes.main:
        try:
            found = newest_whole(checkpoints)
        except InputError as error:
            found = error
    found = processes.gather(found)[0]
    if isinstance(found, InputError):
        raise found
    assert found is not None
    return found


def _check_sampler(parts: Parts, config: Config) -> None:
    """Before anything is written: whether sampler and trainer agree, where they are two or a bound is set. A cluster is not there yet."""
    if config.engine == "local" and parts.names.method.samples and (config.sampler != "hf" or config.sampler_tolerance is not None):
        check_agreement(parts.stepper.policy, parts.draw(0, min(config.batch, PROBE[0])), config)
