"""`train`: start a run, or resume it from its newest undamaged checkpoint."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from nrt.config import Config
from nrt.data.order import ORDER
from nrt.distributed import ProcessGroup, process_group
from nrt.errors import InputError, is_out_of_memory
from nrt.models import pick_device
from nrt.run import (
    NullWriter,
    Run,
    RunWriter,
    check_free,
    close_on_error,
    explain_unreadable_files,
    fresh_run_name,
    run_folder,
)
from nrt.system.disk_errors import explain_disk_errors
from nrt.trainer.agreement import PROMPTS, check_agreement
from nrt.trainer.callbacks import Callback, checked_callbacks
from nrt.trainer.checkpoint import load_checkpoint, newest_undamaged, set_damaged_aside
from nrt.trainer.cluster_setup import prepare_cluster
from nrt.trainer.hub import HubUploads, open_hub
from nrt.trainer.listener import Listener, NullListener, warn
from nrt.trainer.loop import Loop
from nrt.trainer.progress import Progress, read_progress
from nrt.trainer.requests import next_request
from nrt.trainer.resolve import check_keep_best, check_resumable, resolve_names
from nrt.trainer.setup import Parts, prepare
from nrt.trainer.signals import handle_signals
from nrt.trainer.tracking import Tracking, open_tracking


def train(
    config: Config, *, callbacks: Iterable[Callback] = (), listener: Listener | None = None
) -> Run:
    """Train as the config says, and return the finished run.

    Under torchrun every process calls it; they train together, and only rank 0 writes files and has
    a listener and callbacks.

    Raises:
        InputError: config, data or model cannot be used. Nothing was written, unless it showed only
            in a step or an evaluation, such as too little memory.
        Interrupted: SIGINT or SIGTERM came, and a checkpoint was saved. `train` with `resume=run`
            then gives the run that was not interrupted.
    """
    resolve_names(config)
    callbacks = checked_callbacks(callbacks, config)
    with process_group(pick_device(config.device)) as processes:
        if listener is None or not processes.is_main:
            listener = NullListener()
        if not processes.is_main:
            callbacks = ()
        if config.resume:
            run = _prepare_resumed(config, config.resume, processes)
        else:
            config = with_run_name(config, processes)
            run = _prepare_new(config, processes)
        return _train(config, run, listener, callbacks)


def with_run_name(config: Config, processes: ProcessGroup) -> Config:
    """Return the config with a free name if its run has none; rank 0 chooses for all."""
    if config.run is not None:
        return config
    return config.model_copy(update={"run": processes.all_gather(fresh_run_name())[0]})


@dataclass(frozen=True)
class PreparedRun:
    """A run that is ready to train."""

    parts: Parts
    progress: Progress
    writer: RunWriter
    damages: tuple[str, ...] = ()  # problems of the checkpoints that were skipped
    checkpoint: str = ""  # name of the checkpoint to resume from
    cut: Callable[[], None] = lambda: None  # delete what a resumed run wrote after its checkpoint


def _train(
    config: Config, run: PreparedRun, listener: Listener, callbacks: Iterable[Callback]
) -> Run:
    folder = run.writer.path
    with ExitStack() as stack:
        writer = stack.enter_context(run.writer)
        tracking, hub = stack.enter_context(_services(config, run))
        signals = stack.enter_context(handle_signals(config.save_signal))
        stack.enter_context(explain_disk_errors(folder))
        run.cut()
        if writer.resumed and run.progress.step < run.parts.steps:
            writer.remove_model()  # of an earlier stop; a model marks a finished run
        if config.resume and not writer.resumed:
            listener.say("the run has no checkpoint: it starts from the beginning, with new logs")
        for damage in run.damages:
            message = (
                f"damaged checkpoint: {damage}; the run resumes from {run.checkpoint} and keeps "
                "the damaged one aside"
            )
            warn(writer, listener, "damaged-checkpoint", message, run.progress.step)
        if run.progress.step >= run.parts.steps:
            more = "epochs=null steps=N" if config.epochs else "steps=N"
            listener.say(
                f"nothing to do: the run is at step {run.progress.step} of {run.parts.steps}; to "
                f"train further: nrt resume {shlex.quote(str(folder))} {more}"
            )
        if not writer.resumed:
            writer.skipped("train", [asdict(row) for row in run.parts.data.bad])
            writer.skipped(
                "valid", [asdict(row) for row in run.parts.valid.bad] if run.parts.valid else []
            )
        loop = Loop(
            config, run.parts, writer, run.progress, listener, signals, callbacks, tracking, hub
        )
        loop.run()
    return Run(folder)


def _prepare_new(config: Config, processes: ProcessGroup) -> PreparedRun:
    folder = run_folder(str(config.run))
    processes.on_main(lambda: check_free(folder))  # before a large model is loaded
    parts, progress = _from_the_beginning(config, processes)
    with explain_disk_errors(folder):
        if processes.is_main:
            writer = RunWriter.create(folder, config)
        else:
            writer = NullWriter(folder, resumed=False)
    return PreparedRun(parts, progress, writer)


def _from_the_beginning(config: Config, processes: ProcessGroup) -> tuple[Parts, Progress]:
    parts = _prepare(config, processes)
    _check_sampler(parts, config)
    state = parts.learner.method.state_rule
    return parts, Progress(method_state=state.initial() if state else None)


def _prepare_resumed(config: Config, name: str, processes: ProcessGroup) -> PreparedRun:
    """Resume a run. It is locked first, so that nothing in its folder changes afterwards."""
    folder = run_folder(name)
    before = Run(folder).config
    check_resumable(config, before)
    for record in Run(folder).metrics()[:1]:  # that of the evaluation before training
        if record["step"] == 0:
            check_keep_best(config, record)
    resumed_config = config.model_copy(update={"run": before.run, "resume": None})
    writer = (
        RunWriter.lock_existing(folder) if processes.is_main else NullWriter(folder, resumed=True)
    )
    with close_on_error(writer):
        checkpoints = Run(folder).checkpoints()
        if checkpoints:
            return _from_checkpoint(config, resumed_config, writer, checkpoints, processes)
        _check_nothing_lost(folder)
        parts, progress = _from_the_beginning(config, processes)
        return PreparedRun(parts, progress, writer, cut=lambda: writer.resume(None, resumed_config))


def _from_checkpoint(
    config: Config,
    resumed_config: Config,
    writer: RunWriter,
    checkpoints: list[Path],
    processes: ProcessGroup,
) -> PreparedRun:
    checkpoint, damages = processes.on_main(lambda: newest_undamaged(checkpoints))
    parts = _prepare(config, processes, checkpoint)
    with _checkpoint_errors(checkpoint):
        state = load_checkpoint(checkpoint, parts.engine)
        progress = read_progress(
            state,
            data=parts.data.content_hash,
            valid=parts.valid.content_hash if parts.valid else None,
            draw=parts.draw,
            method=parts.learner.method,
            markers=parts.policy.markers,
        )
    if config.data.group_by_length and state.get("order") != ORDER:
        raise InputError(
            "an earlier nrt began this run, with another order of rows (data.group_by_length); "
            "train it with that nrt, or start a new run"
        )
    begun = progress.step + (progress.pending is not None)
    if begun > parts.steps:
        raise InputError(
            f"steps={parts.steps} is below the {begun} steps that the run has done or begun; give "
            f"more, or take an earlier model with nrt export {writer.path} FOLDER --step N"
        )
    _check_sampler(parts, config)
    with _checkpoint_errors(checkpoint):
        best = progress.best
        if best and (
            best.metric != config.keep_best
            or checkpoint.with_name(best.checkpoint) not in checkpoints
        ):
            progress.best = None  # of another metric, or deleted by hand
        if state.get("ahead"):
            _restore_prefetch(config, parts, progress, state["ahead"])

    def cut() -> None:
        writer.resume(progress.step, resumed_config)
        if processes.is_main:
            set_damaged_aside(checkpoints, checkpoint)

    return PreparedRun(parts, progress, writer, tuple(damages), checkpoint.name, cut)


def _check_nothing_lost(folder: Path) -> None:
    """Raise InputError if a run without checkpoints has results that a start would replace."""
    for name in ("model", "checkpoints/latest"):
        if (folder / name).exists():
            raise InputError(
                f"{folder} has {name} but no checkpoint to resume from: restore one, or start a "
                "run under another name"
            )


def _restore_prefetch(
    config: Config, parts: Parts, progress: Progress, samples: dict[str, Any]
) -> None:
    """Give the prefetching sampler the traces that the run had sampled ahead."""
    assert parts.prefetch is not None
    step, position = progress.step, progress.position
    if progress.pending:
        step, position = step + 1, position + progress.pending.rollout.drawn
    parts.prefetch.restore(next_request(config, parts, step, position), samples)


@contextmanager
def _checkpoint_errors(checkpoint: Path) -> Iterator[None]:
    """Raise InputError for a checkpoint with the right hashes and wrong content: another version's,
    or made by hand.
    """
    try:
        with explain_unreadable_files(checkpoint):
            yield
    except (SafetensorError, FileNotFoundError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        message = " ".join(str(error).split())
        raise InputError(
            f"{checkpoint} is no checkpoint of this run ({message:.200}); restore it from a copy, "
            "or remove it"
        ) from error


def _prepare(config: Config, processes: ProcessGroup, checkpoint: Path | None = None) -> Parts:
    if config.engine == "local":
        return prepare(config, checkpoint=checkpoint, processes=processes)
    if processes.size > 1:
        raise InputError("engine=verl starts its own workers; start nrt without torchrun")
    return prepare_cluster(config)


@contextmanager
def _services(
    config: Config, run: PreparedRun
) -> Iterator[tuple[Tracking | None, HubUploads | None]]:
    """Run the engine's own processes, and on rank 0 the trackers and the uploads to the hub.

    A new run leaves nothing in its folder if one of them cannot start.
    """
    folder = run.writer.path
    tracking = hub = None
    with explain_disk_errors(folder, "" if config.resume else "start the run again"):
        try:
            with ExitStack() as starting:
                starting.enter_context(run.parts.engine.running(folder))
                if run.parts.engine.processes.is_main:
                    first = run.progress.step + 1 if run.checkpoint else 0
                    tracking = starting.enter_context(open_tracking(config, folder, first=first))
                    hub = open_hub(config, folder)  # last: nothing removes a repository again
                stack = starting.pop_all()
        except (InputError, OSError):  # after the services were closed, which write too
            if not config.resume:
                run.writer.discard()
            raise
    with stack:
        if hub:
            stack.enter_context(hub)
        yield tracking, hub


def _check_sampler(parts: Parts, config: Config) -> None:
    """Compare sampler and trainer before anything is written. A cluster has not started yet, so it
    is not compared.
    """
    separate = config.sampler != "hf" or config.sampler_tolerance is not None
    if config.engine == "local" and parts.learner.method.samples and separate:
        check_agreement(parts.policy, parts.draw(0, min(config.batch, PROMPTS)), config)
