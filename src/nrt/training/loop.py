"""The loop: collect, update, write, evaluate, save."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from nrt.config import Config
from nrt.errors import InputError, NrtError, RunError
from nrt.rollout import AheadSampler, Request
from nrt.run import Run, RunWriter
from nrt.trackers import open_trackers
from nrt.training import heldout as held
from nrt.training.checkpoint import point, prune, save_checkpoint
from nrt.training.guard import in_a_row, report_skipped
from nrt.training.measure import trace_record, update_metrics
from nrt.training.progress import InHand, Progress, improved, progress_json
from nrt.training.sampler import most_gap
from nrt.training.setup import Parts
from nrt.training.signals import Signals
from nrt.training.watch import Watch
from nrt.types import Pair


class Interrupted(NrtError):
    """SIGINT or SIGTERM came; a checkpoint was saved."""

    exit_status = 130


class Listener(Protocol):
    """Hears of a run as it goes; the command line's live display is one.

    `start` is called once, with the run's folder and the steps done and wanted. `phase` names what is done from now on: sampling,
    updating, evaluating, saving. `step` brings the metrics of a step, or with step 0 those before training.
    """

    def start(self, path: Path, step: int, steps: int) -> None: ...
    def say(self, text: str) -> None: ...
    def phase(self, name: str) -> None: ...
    def step(self, metrics: Mapping[str, float]) -> None: ...


class Silent:
    """Hears and says nothing."""

    def start(self, path: Path, step: int, steps: int) -> None: ...
    def say(self, text: str) -> None: ...
    def phase(self, name: str) -> None: ...
    def step(self, metrics: Mapping[str, float]) -> None: ...


class Loop:
    """One run. Of several processes each goes through it, in the same steps; all but the main one write and say nothing."""

    def __init__(self, config: Config, parts: Parts, writer: RunWriter, progress: Progress, listener: Listener, signals: Signals) -> None:
        self.config, self.parts, self.writer, self.progress = config, parts, writer, progress
        self.listener, self.signals = listener, signals
        self.saved = progress.name if writer.resumed else ""  # the last checkpoint
        self.under_way = progress.step  # the step that a warning belongs to: a resume from before it has it again
        before = Run(writer.path).metrics() if writer.resumed else ()
        self.watch = Watch(config.watch, before, most_gap=most_gap(config))
        self.folder = writer.path
        sampler = parts.stepper.policy.sampler
        self.ahead = sampler if isinstance(sampler, AheadSampler) else None
        self.processes = parts.stepper.policy.engine.processes
        trackers = config.trackers if self.processes.main else ()
        self.trackers = open_trackers(trackers, self.folder.name, self.folder, config.model_dump(mode="json"), step=progress.step)

    def run(self) -> None:
        engine = self.parts.stepper.policy.engine
        self.listener.start(self.folder, self.progress.step, self.parts.steps)
        for note in self.parts.notes:
            self.listener.say(note)
        if self.processes.size > 1:
            self.listener.say(f"{self.processes.size} processes: {engine.weights.why}")
        engine.warn = partial(self._warn, "out-of-memory")
        if self.parts.servers:
            self.parts.servers.say = partial(self._warn, "rollout-server")
        if self.writer.resumed:
            self._tidy()
        else:
            self._warn_at_start()
            if before := self._evaluate():
                self._write({"step": 0, **before})
                if (metric := (self.config.keep_best or "").removeprefix("-")) and metric not in before:
                    raise InputError(f"keep_best={self.config.keep_best}: the evaluation has no such metric; it has {', '.join(before)}")
        while self.progress.step < self.parts.steps:
            self._step()
        self.listener.phase("saving")
        with engine.whole():
            if self.processes.main:
                self.parts.save_model(self.folder / "model")
        self.trackers.close()
        self.processes.meet()

    def _step(self) -> None:
        """One rollout batch and its updates; stops between updates if asked to."""
        start = time.perf_counter()
        self.under_way = self.progress.step + 1
        if self.progress.in_hand is None:
            self._heed_signals()
            self.progress.in_hand = self._begin()
        hand = self.progress.in_hand
        self.listener.phase("updating")
        parts = hand.rollout.split(self.config.updates_per_rollout)
        while len(hand.updates) < len(parts):
            self._heed_signals()
            began = time.perf_counter()
            hand.updates.append(self.parts.stepper.update(parts[len(hand.updates)]))
            hand.seconds += time.perf_counter() - began
            self._end_if_hopeless(hand)
        memory, statistics = self.parts.stepper.method.memory, hand.rollout.statistics
        state = self.progress.memory
        if memory is not None and state is not None and statistics is not None and statistics.isfinite().all():
            state = memory.advance(state, statistics)
        self._end_if_hopeless(hand)
        self._report_skipped(hand)
        self.progress = replace(
            self.progress,
            step=self.progress.step + 1,
            position=self.progress.position + hand.rollout.drawn,
            memory=state,
            in_hand=None,
            skipped=self.progress.skipped + sum(update.skipped for update in hand.updates),
            in_a_row=in_a_row(self.progress.in_a_row, hand.updates),
        )
        self._finish_step(hand, start)

    def _begin(self) -> InHand:
        """A rollout; with its update, where one forward can serve both."""
        self.listener.phase("sampling")
        config, progress, stepper = self.config, self.progress, self.parts.stepper

        def draw(offset: int, n: int) -> list[Pair]:
            return self.parts.draw(progress.position + offset, n)

        arguments: dict[str, Any] = {
            "seed": seed_of(config.seed, progress.step + 1),
            "state": progress.memory,
            "sampled": self._sampled,
        }
        if stepper.one_pass and config.updates_per_rollout == 1:
            rollout, stats, seconds = stepper.collect_and_update(draw, config.batch, **arguments)
            return InHand(rollout, seconds, [stats])
        return InHand(stepper.collect(draw, config.batch, **arguments))

    def _sampled(self) -> None:
        """This step's traces are there: the next step's may be sampled."""
        if self.ahead and self.progress.step + 1 < self.parts.steps:
            self.ahead.start(next_request(self.config, self.parts, self.progress.step + 1, self.progress.position + self.config.batch))
        self.listener.phase("updating")

    def _finish_step(self, hand: InHand, start: float) -> None:
        step, config = self.progress.step, self.config
        metrics: dict[str, Any] = {"step": step, **hand.rollout.metrics, **update_metrics(hand.updates, hand.seconds)}
        metrics["optim/updates"] = step * config.updates_per_rollout - self.progress.skipped
        data = self.parts.data
        metrics |= {
            "data/epoch": self.progress.position / len(data.pairs),
            "data/dropped_prompts": data.dropped_prompts,
            "data/dropped_answers": data.dropped_answers,
            "data/truncated_answers": data.truncated_answers,
            "data/bad_rows": len(data.bad),
        }
        if (memory := self.parts.stepper.method.memory) and self.progress.memory is not None:
            metrics |= memory.report(self.progress.memory)
        if self.parts.names.observer and self.processes.main:
            metrics |= self.parts.names.observer(hand.rollout, self.parts.tokenizer)
        for group in hand.rollout.groups[: config.log_traces]:
            self.writer.trace({"step": step, **trace_record(group, self.parts.chat.decode)})
        metrics["time/step"] = time.perf_counter() - start
        last = step == self.parts.steps
        if last or (config.eval_every and step % config.eval_every == 0):
            metrics |= self._evaluate()
        self._write(metrics)
        if self._is_best(metrics) or last or (config.save_every and step % config.save_every == 0):
            self._save()

    def _evaluate(self) -> dict[str, float]:
        if self.parts.heldout is None:
            return {}
        self.listener.phase("evaluating")
        records = self.parts.heldout(seed=seed_of(self.config.seed, -1 - self.progress.step))
        self.writer.heldout(self.progress.step, held.as_json(records))
        return held.summary(records)

    def _write(self, metrics: dict[str, Any]) -> None:
        self.writer.metrics(metrics)
        for warning in self.watch.see(metrics):
            self._warn(warning.kind, warning.message, metric=warning.metric)
        self.trackers.log({k: v for k, v in metrics.items() if k != "step"}, metrics["step"])
        self.listener.step(metrics)

    def _end_if_hopeless(self, hand: InHand) -> None:
        """All processes have the same updates, so they end together."""
        if in_a_row(self.progress.in_a_row, hand.updates) >= self.config.max_skipped:
            self._report_skipped(hand)
            raise RunError(
                f"max_skipped={self.config.max_skipped} updates in a row had a loss or gradient that is not finite, the last in step "
                f"{self.progress.step + 1}; nrt replay shows where, for each file in {self.folder / 'skipped'}; a lower "
                "optimizer.lr or dtype=float32 may help"
            )

    def _report_skipped(self, hand: InHand) -> None:
        step = self.progress.step + 1
        facts = {
            "seed": self.config.seed,
            "sampling_seed": seed_of(self.config.seed, step),
            "checkpoint": self.saved or None,
            "memory": None if self.progress.memory is None else self.progress.memory.tolist(),
        }
        parts = hand.rollout.split(self.config.updates_per_rollout)
        for message in report_skipped(self.writer, step, hand, parts, facts):
            self.listener.say(message)

    def _is_best(self, metrics: Mapping[str, Any]) -> bool:
        """Whether an evaluation was the best so far, which is then remembered."""
        metric = self.config.keep_best
        if not metric or self.parts.heldout is None or metric.removeprefix("-") not in metrics:
            return False
        better = improved(self.progress.best, metric, self.progress.name, metrics)
        self.progress.best = better or self.progress.best
        return better is not None

    def _save(self) -> None:
        """Unless this state was saved already."""
        if self.saved == self.progress.name:
            return
        self.listener.phase("saving")
        folder = self.folder / "checkpoints" / self.progress.name
        if self.processes.main:  # a checkpoint on the disk has its metrics there too
            folder.parent.mkdir(exist_ok=True)
            self.writer.sync()
        ahead = self.ahead.state() if self.ahead else None
        state = {**progress_json(self.progress), "data": self.parts.data.content, "ahead": ahead, "ways": dict(self.parts.ways)}
        save_checkpoint(folder, self.parts.stepper.policy.engine, state, self.parts.save_model)
        self.saved = self.progress.name
        self._tidy()

    def _tidy(self) -> None:
        """What is done when a checkpoint has its name, and done again at a resume, for a run killed in between."""
        if self.processes.main:
            folder, best = self.folder / "checkpoints", self.progress.best
            point(folder / "latest", self.saved)
            if best:
                point(folder / "best", best.checkpoint)
            else:
                (folder / "best").unlink(missing_ok=True)  # of a metric that was asked for before a resume
            prune(Run(self.folder).checkpoints(), self.config.keep, best)

    def _heed_signals(self) -> None:
        """What any process was asked for, all do."""
        asked = self.processes.gather((self.signals.stop.is_set(), self.signals.save.is_set()))
        stop, save = map(any, zip(*asked, strict=True))
        if stop or save:
            self.signals.save.clear()
            self._save()
        if stop:
            raise Interrupted(f"interrupted at step {self.progress.step}; go on with resume={self.folder}")

    def _warn(self, kind: str, message: str, **details: Any) -> None:
        self.writer.warn(kind, message, self.under_way, **details)
        self.listener.say(message)

    def _warn_at_start(self) -> None:
        data = self.parts.data
        if self.parts.padded_by_surprise:
            message = f"{self.parts.notes[0]}: prompts are forwarded once for each trace, which takes several times as long"
            self._warn("padded-rows", message)
        for kind, count, what in (
            ("dropped-prompts", data.dropped_prompts, f"prompts longer than max_prompt_tokens={self.config.max_prompt_tokens}"),
            ("dropped-answers", data.dropped_answers, f"answers longer than max_answer_tokens={self.config.max_answer_tokens}"),
            ("bad-rows", len(data.bad), "rows that cannot be used were skipped; skipped/train.jsonl lists them"),
            ("truncated-answers", data.truncated_answers, f"answers cut to max_answer_tokens={self.config.max_answer_tokens}"),
        ):
            if count:
                self.writer.warn(kind, f"{count} of {data.total} {what}", 0, count=count)
        if data.unknown_tokens:
            message = f"{data.unknown_tokens} tokens of the data are unknown: the model's vocabulary has nothing for this text"
            self.writer.warn("unknown-tokens", message, 0, count=data.unknown_tokens)
        method = self.parts.names.method
        if method.samples and self.config.traces == 1 and method.centre == "mean":
            self.writer.warn("single-trace", "K = 1: a group of one has no advantage, only answers and markers are trained", 0)


def next_request(config: Config, parts: Parts, step: int, position: int) -> Request:
    """What the step after `step` will ask of the sampler, if it begins at `position` of the stream."""
    return parts.stepper.policy.trace_request(parts.draw(position, config.batch), config.traces, seed=seed_of(config.seed, step + 1))


def seed_of(seed: int, step: int) -> int:
    """A sampling seed of its own for each step, so that no random state has to survive an interruption."""
    return (seed * 1_000_003 + step * 7_919) % 2**63
