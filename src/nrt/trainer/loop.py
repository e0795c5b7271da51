"""The training loop: step, write metrics, evaluate, save."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from nrt.config import Config
from nrt.data.checkers import exact
from nrt.data.order import ORDER
from nrt.errors import Interrupted, RunError
from nrt.run import Record, Run, RunWriter
from nrt.trainer import heldout
from nrt.trainer.agreement import max_gap
from nrt.trainer.callbacks import Callback, CallbackGroup, Control
from nrt.trainer.checkpoint import point_and_prune, save_checkpoint
from nrt.trainer.guard import report_skipped, skipped_in_a_row
from nrt.trainer.hub import HubUploads
from nrt.trainer.listener import Listener, warn
from nrt.trainer.metrics import trace_record, update_metrics
from nrt.trainer.progress import (
    Progress,
    RolloutUpdates,
    advanced_state,
    improved,
    progress_json,
)
from nrt.trainer.readout import readout_metrics
from nrt.trainer.requests import next_request, seed_of
from nrt.trainer.resolve import check_keep_best
from nrt.trainer.setup import Parts
from nrt.trainer.signals import Signals
from nrt.trainer.start_warnings import warn_at_start
from nrt.trainer.step import StepHooks, nothing, train_step
from nrt.trainer.tracking import Tracking
from nrt.trainer.watch import Watch
from nrt.types import Pair


class Loop:
    """The steps of one run. Under torchrun every process runs the loop; only rank 0 writes and has
    a listener, callbacks, trackers and uploads to the hub.
    """

    def __init__(
        self,
        config: Config,
        parts: Parts,
        writer: RunWriter,
        progress: Progress,
        listener: Listener,
        signals: Signals,
        callbacks: Iterable[Callback],
        tracking: Tracking | None,
        hub: HubUploads | None,
    ) -> None:
        self.config, self.parts, self.writer, self.progress = config, parts, writer, progress
        self.listener, self.signals = listener, signals
        self.folder = writer.path
        self.processes = parts.engine.processes
        self.control = Control(progress.step, parts.steps)
        self.callbacks = CallbackGroup(callbacks, self.control)
        self.last_checkpoint = progress.name if writer.resumed else ""
        self.current_step = progress.step  # written with warnings
        earlier = Run(writer.path).metrics() if writer.resumed else ()
        self.watch = Watch(config.watch, earlier, max_gap=max_gap(config))
        self.tracking, self.hub = tracking or Tracking(), hub
        self.tracking.warn = partial(self._warn, "tracker")
        if self.hub:
            self.hub.warn = partial(self._warn, "hub")

    def run(self) -> None:
        """Run the steps that are left, unless a callback stops the run, and write the model."""
        engine = self.parts.engine
        self.listener.start(self.folder, self.progress.step, self.parts.steps)
        for note in self.parts.notes:
            self.listener.say(note)
        engine.warn = partial(self._warn, "out-of-memory")
        if self.parts.servers:
            self.parts.servers.warn = partial(self._warn, "rollout-server")
        if self.processes.is_main:  # the others may be here before the folder is
            self.callbacks("on_start", Run(self.folder))
        if self.writer.resumed:
            self._point_and_prune()
        else:
            warn_at_start(self.config, self.parts, self.writer, self.listener)
            self._evaluate_before_training()
        while self.progress.step < self.parts.steps and not self._asked("stop"):
            self._step()
        if self.progress.step < self.parts.steps:
            self._save()
            self.listener.say(
                f"callback {self.callbacks.stopped_by} stopped the run at step "
                f"{self.progress.step} of {self.parts.steps}; continue with "
                f"nrt resume {shlex.quote(str(self.folder))}, or in Python "
                f"nrt.resume({str(self.folder)!r})"
            )
        self.listener.phase("saving")
        with engine.gathered_parameters():
            if self.processes.is_main:
                self.parts.save_model(self.folder / "model")
        if self.processes.is_main:
            self.callbacks("on_end", Run(self.folder))
        self.processes.barrier()
        if self.hub:  # last, because it waits and no other process may wait for it
            self.hub.push(self.folder / "model", self.progress.step, final=True)

    def _step(self) -> None:
        """Train one step, then report it, evaluate and save as the config says."""
        start = time.perf_counter()
        progress, config, learner = self.progress, self.config, self.parts.learner
        self.current_step = progress.step + 1
        hooks = StepHooks(
            checkpoint_here=self._checkpoint_here,
            traces_ready=self._start_prefetch,
            updated=self._stop_if_all_skipped,
            wait_for_traces=self.parts.prefetch.wait if self.parts.prefetch else nothing,
        )
        seed = seed_of(config.seed, progress.step + 1)
        pending = train_step(learner, progress, self._draw, seed=seed, hooks=hooks)
        self._report_skipped(pending)
        self.progress = replace(
            progress,
            step=progress.step + 1,
            position=progress.position + pending.rollout.drawn,
            method_state=advanced_state(progress, learner.method, pending.rollout),
            pending=None,
            skipped=progress.skipped + sum(update.skipped for update in pending.updates),
            in_a_row=skipped_in_a_row(progress.in_a_row, pending.updates),
        )
        self.control.step = self.progress.step
        metrics = self._metrics(pending)
        groups = self._write_traces(pending)
        metrics["time/step"] = time.perf_counter() - start
        self.callbacks("on_step", metrics)
        last = self.progress.step == self.parts.steps
        if self._asked("evaluate") or last or _due(self.progress.step, config.eval_every):
            metrics |= self._evaluate()
        self._write(metrics, groups)
        due = self._asked("save") or last or _due(self.progress.step, config.save_every)
        if self._is_best(metrics) or due:
            self._save()
            if self.hub and config.hub.when == "save" and not last:
                checkpoint = self.folder / "checkpoints" / self.progress.name
                self.hub.push(checkpoint / "model", self.progress.step)

    def _draw(self, offset: int, n: int) -> list[Pair]:
        """Return the pairs that come next in the stream."""
        return self.parts.draw(self.progress.position + offset, n)

    def _checkpoint_here(self) -> None:
        """Save or stop if a signal asks for it, before sampling and before each update."""
        self._handle_signals()
        self.listener.phase("updating" if self.progress.pending else "sampling")

    def _start_prefetch(self) -> None:
        """Start to sample the next step's traces, now that this step's are there."""
        progress, config = self.progress, self.config
        if self.parts.prefetch and progress.step + 1 < self.parts.steps:
            position = progress.position + config.batch
            self.parts.prefetch.start(next_request(config, self.parts, progress.step + 1, position))
        self.listener.phase("updating")

    def _asked(self, request: str) -> bool:
        """Return whether a callback made the request, and clear it. Rank 0 decides for all."""
        asked = self.processes.all_gather(request in self.control.requests)[0]
        self.control.requests.discard(request)
        return asked

    def _write_traces(self, pending: RolloutUpdates) -> list[Record]:
        records: list[Record] = []
        for group in pending.rollout.groups[: self.config.log_traces]:
            record = trace_record(group, self.parts.chat.decode)
            records.append({"step": self.progress.step, **record})
            self.writer.trace(records[-1])
        self.callbacks("on_traces", records)
        return records

    def _metrics(self, pending: RolloutUpdates) -> dict[str, Any]:
        """Return the metrics of the step that has just been trained."""
        step, data, parts = self.progress.step, self.parts.data, self.parts
        metrics: dict[str, Any] = {"step": step, **pending.rollout.metrics}
        metrics |= update_metrics(pending.updates, pending.seconds)
        metrics["optim/updates"] = step * self.config.updates_per_rollout - self.progress.skipped
        metrics |= {
            "data/epoch": self.progress.position / len(data.pairs),
            "data/dropped_prompts": data.dropped_prompts,
            "data/dropped_answers": data.dropped_answers,
            "data/truncated_answers": data.truncated_answers,
            "data/bad_rows": len(data.bad),
        }
        rule, state = parts.learner.method.state_rule, self.progress.method_state
        if rule and state is not None:
            metrics |= rule.report(state)
        if self.processes.is_main:  # the others write none
            if parts.names.checker and parts.names.checker is not exact:  # no trace is an answer
                groups = pending.rollout.groups
                metrics |= readout_metrics(groups, parts.names.checker, parts.chat.decode)
            if parts.names.observer:
                metrics |= parts.names.observer(pending.rollout, parts.tokenizer)
        return metrics

    def _evaluate_before_training(self) -> None:
        metrics = self._evaluate()
        if not metrics:
            return
        self._write({"step": 0, **metrics})
        check_keep_best(self.config, metrics)

    def _evaluate(self) -> dict[str, float]:
        if self.parts.heldout is None:
            return {}
        self.listener.phase("evaluating")
        step = self.progress.step
        records = self.parts.heldout(seed=seed_of(self.config.seed, -1 - step))
        rows, metrics = heldout.as_json(records), heldout.summary(records)
        self.writer.heldout(step, rows)
        self.callbacks("on_evaluate", {"step": step, **metrics}, rows)
        return metrics

    def _write(self, metrics: dict[str, Any], groups: Sequence[Record] = ()) -> None:
        self.writer.metrics(metrics)
        for warning in self.watch.see(metrics):
            self._warn(warning.kind, warning.message, metric=warning.metric)
        self.tracking.log(metrics, groups)
        self.listener.step(metrics)

    def _stop_if_all_skipped(self, pending: RolloutUpdates) -> None:
        """Raise RunError after `max_skipped` skipped updates in a row. All processes have the same
        updates.
        """
        if skipped_in_a_row(self.progress.in_a_row, pending.updates) >= self.config.max_skipped:
            self._report_skipped(pending)
            raise RunError(
                f"max_skipped={self.config.max_skipped} updates in a row had a loss or gradient "
                f"that is not finite, the last in step {self.progress.step + 1}; nrt replay shows "
                f"where, for each file in {self.folder / 'skipped'}; a lower optimizer.lr or "
                "dtype=float32 may help"
            )

    def _report_skipped(self, pending: RolloutUpdates) -> None:
        step, state = self.progress.step + 1, self.progress.method_state
        facts = {
            "seed": self.config.seed,
            "sampling_seed": seed_of(self.config.seed, step),
            "checkpoint": self.last_checkpoint or None,
            "memory": None if state is None else state.tolist(),
        }
        mini_batches = pending.rollout.split(self.config.updates_per_rollout)
        report_skipped(self.writer, self.listener, step, pending, mini_batches, facts)

    def _is_best(self, metrics: Mapping[str, Any]) -> bool:
        """True if an evaluation was the best so far, which `progress.best` then remembers."""
        metric = self.config.keep_best
        if not metric or metric.removeprefix("-") not in metrics:  # there was no evaluation
            return False
        better = improved(self.progress.best, metric, self.progress.name, metrics)
        if better:
            self.progress.best = better
        return better is not None

    def _save(self) -> None:
        """Save a checkpoint, unless this state is saved already."""
        if self.last_checkpoint == self.progress.name:
            return
        self.listener.phase("saving")
        folder = self.folder / "checkpoints" / self.progress.name
        if self.processes.is_main:
            folder.parent.mkdir(exist_ok=True)
            self.writer.sync()  # the metrics of a checkpoint must be on the disk before it
        state = progress_json(self.progress)
        state["data"] = self.parts.data.content_hash
        state["valid"] = self.parts.valid.content_hash if self.parts.valid else None
        state["order"] = ORDER
        state["ahead"] = self.parts.prefetch.state() if self.parts.prefetch else None
        state["ways"] = dict(self.parts.resolved)
        save_checkpoint(folder, self.parts.engine, state, self.parts.save_model)
        self.last_checkpoint = self.progress.name
        self._point_and_prune()

    def _point_and_prune(self) -> None:
        """Name the latest and the best checkpoint, and delete others; a killed run repeats it."""
        if self.processes.is_main:
            checkpoints, best = Run(self.folder).checkpoints(), self.progress.best
            point_and_prune(checkpoints, self.last_checkpoint, best, keep=self.config.keep)

    def _handle_signals(self) -> None:
        """Save or stop in all processes if any of them received a signal."""
        received = self.processes.all_gather(
            (self.signals.stop.is_set(), self.signals.save.is_set())
        )
        stop, save = map(any, zip(*received, strict=True))
        if stop or save:
            self.signals.save.clear()
            self._save()
        if stop:
            raise Interrupted(
                f"stopped at step {self.progress.step} of {self.parts.steps}; continue with "
                f"nrt resume {shlex.quote(str(self.folder))}, or in Python "
                f"nrt.resume({str(self.folder)!r})"
            )

    def _warn(self, kind: str, message: str, **details: Any) -> None:
        warn(self.writer, self.listener, kind, message, self.current_step, **details)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
