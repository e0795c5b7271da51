"""Callbacks: code of a user that sees the results of a run and can stop it, save or evaluate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from inspect import signature
from typing import Any

from nrt.config import Config
from nrt.errors import InputError, RunError, unknown_name
from nrt.run import Record, Run


class Control:
    """Requests of callbacks to a run.

    `step` is the number of finished steps, and `steps` the number of steps that the run has when it
    ends.
    """

    def __init__(self, step: int, steps: int) -> None:
        self.step, self.steps = step, steps
        self.requests: set[str] = set()

    def stop(self) -> None:
        """End the run after this step: save a checkpoint, write the model, call `on_end`.

        `nrt.resume` continues a stopped run.
        """
        self.requests.add("stop")

    def save(self) -> None:
        """Save a checkpoint after this step."""
        self.requests.add("save")

    def evaluate(self) -> None:
        """Evaluate on the held-out rows after this step, if the run has any.

        In `on_evaluate` the request is for the next step.
        """
        self.requests.add("evaluate")


class Callback:
    """Base class of callbacks. Override any of the methods; each does nothing here.

    Under torchrun only rank 0 calls them, and all processes follow its control. An exception ends
    the run with a RunError that names the callback; the last checkpoint stays.

    Unlike a `Listener`, which shows progress and messages, a callback receives results and control.
    """

    def check(self, config: Config) -> None:
        """Raise InputError if the callback cannot work in a run with this config.

        Called before the run is made.
        """

    def on_start(self, run: Run, control: Control) -> None:
        """Called once, before the first evaluation and step. Of a resumed run, `run` holds what is
        kept.
        """

    def on_traces(self, groups: Sequence[Record], control: Control) -> None:
        """Called after each step with its groups in traces.jsonl (`log_traces` of them)."""

    def on_step(self, metrics: Mapping[str, Any], control: Control) -> None:
        """Called after each step with its metrics, before any evaluation."""

    def on_evaluate(
        self, metrics: Mapping[str, Any], rows: Sequence[Record], control: Control
    ) -> None:
        """Called after each held-out evaluation with `step`, its metrics `heldout/…` and its rows.

        The rows are those of `Run.heldout`. Step 0 is the evaluation before training.
        """

    def on_end(self, run: Run, control: Control) -> None:
        """Called once, when all steps are done or the run was stopped, after the model is written.

        Not called after an error or a signal.
        """


_HOOKS = [name for name in vars(Callback) if name.startswith("on_")]


def checked_callbacks(callbacks: Iterable[Callback], config: Config) -> tuple[Callback, ...]:
    """Return the callbacks. Raises InputError for other objects, and as `Callback.check` does."""
    if isinstance(callbacks, Callback):
        raise InputError("callbacks is one callback; give a list, such as [EarlyStopping()]")
    checked = tuple(callbacks)
    for callback in checked:
        if not isinstance(callback, Callback):
            raise InputError(
                f"callbacks holds {callback!r:.80}; give objects of classes that derive from "
                "nrt.Callback"
            )
        unknown = [name for name in dir(callback) if name.startswith("on_") and name not in _HOOKS]
        if unknown:
            raise unknown_name("method of a callback", unknown[0], _HOOKS)
        _check_arguments(callback)
        callback.check(config)
    return checked


def _check_arguments(callback: Callback) -> None:
    """Raise InputError if a method of the callback takes other arguments than the base class's."""
    for name in _HOOKS:
        _, *arguments = signature(getattr(Callback, name)).parameters
        try:
            signature(getattr(callback, name)).bind(*arguments)
        except TypeError:
            raise InputError(
                f"callback {type(callback).__name__}.{name} takes other arguments; write "
                f"{name}(self, {', '.join(arguments)})"
            ) from None


class CallbackGroup:
    """The callbacks of a run. On other ranks than 0 the group is empty."""

    def __init__(self, callbacks: Iterable[Callback], control: Control) -> None:
        self._callbacks, self._control = list(callbacks), control
        self.stopped_by = ""  # name of the first callback that asked for it, on rank 0

    def __call__(self, hook: str, *arguments: Any) -> None:
        """Call the method `hook` of each callback, in order.

        Raises RunError, with the name of the callback, for an exception in it.
        """
        for callback in self._callbacks:
            try:
                getattr(callback, hook)(*arguments, self._control)
            except Exception as error:
                raise RunError(
                    f"callback {type(callback).__name__}.{hook} failed at step "
                    f"{self._control.step}: {type(error).__name__}: {error}"
                ) from error
            if "stop" in self._control.requests and not self.stopped_by:
                self.stopped_by = type(callback).__name__
