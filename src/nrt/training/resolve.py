"""What a config's names stand for, and which settings exclude one another: seen before anything is loaded."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from nrt.checkers import Checker, resolve_checker, resolve_dotted
from nrt.config import Config, ObjectiveConfig, dump_yaml
from nrt.data import find_tables
from nrt.errors import InputError, unknown
from nrt.metrics import describe
from nrt.objective import METHODS, Method, with_weight_norm
from nrt.trackers import check_trackers
from nrt.training.signals import check_signal

Observer = Callable[[Any, Any], Mapping[str, float]]


@dataclass(frozen=True)
class Names:
    """What the config's names stand for."""

    method: Method
    checker: Checker | None
    observer: Observer | None


def resolve_names(config: Config) -> Names:
    """Raises InputError with the nearest known name on a miss, and where method and K do not fit."""
    for plugin in config.plugins:
        import_plugin(plugin)
    method = resolve_method(config.method, config.objective)
    if method.samples:
        method.check_traces(config.traces)
    if method.own_rules and config.profile == "release":
        raise InputError(f"profile=release sets the release's rules over a method, and {method.name} has its own; set profile=paper")
    if config.overlap and (not method.samples or method.keep or method.samples_answers):
        raise InputError(f"overlap=true samples a step's traces beforehand, which {method.name} does not allow; set overlap=false")
    if config.overlap and config.lora.rank:
        raise InputError("overlap=true samples with a copy of the weights, and lora.rank has none to spare; set overlap=false")
    if config.overlap and (config.data.difficulty.skip_above is not None or config.data.difficulty.pool > 1):
        raise InputError("overlap=true and data.difficulty exclude one another: which prompts come next is not known beforehand")
    _check_sampler(config, method)
    if method.base_policy == "initial" and not config.initial_reference:
        raise InputError(f"method {method.name} takes its baseline under the initial model; set initial_reference=true")
    if method.checks_answers and not config.heldout.checker:
        raise InputError(f"method {method.name} checks sampled answers; set heldout.checker=exact, last-number or contains")
    checker = resolve_checker(config.heldout.checker) if config.heldout.checker else None
    observer = resolve_dotted(config.observer, "observer") if config.observer else None
    check_trackers(config.trackers)
    check_signal(config.save_signal)
    if config.keep_best:
        _check_keep_best(config, config.keep_best.removeprefix("-"))
    return Names(method, checker, observer)


def _check_sampler(config: Config, method: Method) -> None:
    if config.overlap and method.importance_cap is not None:
        raise InputError("under overlap=true the ratio is to what the sampler reported already; unset objective.importance_cap")
    if not method.samples_answers:
        return
    for setting, is_set in (("objective.importance_cap", method.importance_cap is not None), ("vllm.strict=false", not config.vllm.strict)):
        if is_set:
            raise InputError(f"{setting} corrects traces, and {method.name} trains on sampled answers too; unset it")


def import_plugin(module: str) -> None:
    """Imports a module of the user's, from the working folder too. Raises InputError if there is none of that name."""
    if "" not in sys.path:
        sys.path.insert(0, "")  # the `nrt` command, unlike `python -m`, does not look there
    try:
        import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise
        raise InputError(f"plugins={module}: there is no such module; it must lie in the working folder or be installed") from None


def resolve_method(name: str, values: ObjectiveConfig) -> Method:
    """The method of that name with the config's values over it. SFT has no reward, so none of them concerns it."""
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    method = METHODS[name]
    if not method.samples:
        return method
    weight = values.signal_weight if method.answer_weight == "signal" and values.answer_weight is None else values.answer_weight
    given = {
        "clip": values.baseline_clip,
        "base_layout": values.base_layout,
        "base_policy": values.base_policy,
        "centre": values.centre,
        "scale": values.scale,
        "ratio": values.ratio,
        "ratio_clip": values.ratio_clip,
        "answer_weight": weight,
        "trace_coef": values.trace_coef,
        "answer_coef": values.answer_coef,
        "format_coef": values.format_coef,
        "format_on": values.format_on,
        "importance_cap": values.importance_cap,
        "appended_end_acts": values.appended_end_acts,
    }
    changes = {key: None if value == "none" and key in ("centre", "scale") else value for key, value in given.items() if value is not None}
    if method.reward is not None:
        changes["reward"] = with_weight_norm(method.reward, values.weight_norm)
    return replace(method, **changes)


def _check_keep_best(config: Config, metric: str) -> None:
    describe(metric)
    if not metric.startswith("heldout/"):
        raise InputError(f"keep_best={config.keep_best} is not a held-out metric; set keep_best=heldout/accuracy or another heldout/…")
    if not config.data.valid:
        raise InputError(f"keep_best={config.keep_best} needs held-out rows; set data.valid=FILE")
    if metric.startswith("heldout/accuracy") and not config.heldout.checker:
        raise InputError(f"keep_best={config.keep_best} needs a checker; set heldout.checker=exact, last-number or contains")


FREE_ON_RESUME = {
    "run", "resume", "steps", "eval_every", "save_every", "keep", "keep_best", "save_signal", "max_skipped", "watch", "log_traces",
    "trackers", "threads", "device", "tokens_per_batch", "gradient_checkpointing", "parallel", "sampler_rows", "sampler_tolerance", "vllm",
    "verl",
}  # fmt: skip
"""Settings that may change when a run goes on; any other would make it a different run."""


def check_resumable(config: Config, before: Config) -> None:
    """Raises InputError where a run would go on under other settings than it began with."""
    new, old = config.model_dump(), before.model_dump()
    for key in new:
        if key not in FREE_ON_RESUME and new[key] != old[key]:
            raise InputError(
                f"the run to resume has {key}={old[key]!r}, not {new[key]!r}; `nrt train resume=RUN` takes the run's own settings"
            )


def settings_of(config: Config) -> str:
    """What a run of this config would be told, as YAML: nrt's settings, or with engine=verl those that lie over verl's own defaults.

    Raises InputError for what settings alone show to be wrong; with verl installed also for keys that its config does not have.
    """
    method = resolve_names(config).method
    if config.engine != "verl":
        return dump_yaml(config)
    from nrt.engine.verl.bridge import as_yaml, compose, overrides, refuse

    refuse(config)
    updates = config.steps and config.steps * config.updates_per_rollout
    values = overrides(config, model=str(config.model), updates=updates, reference=config.initial_reference and method.samples)
    if find_spec("verl"):
        compose(values)
    return as_yaml(values)


def check_given(config: Config) -> str:
    """The model's name. Raises InputError where model or data are not given, or data are not there, before a large model is loaded."""
    if config.model is None:
        raise InputError("no model given; set model=FOLDER (any Hugging Face causal language model)")
    if config.data.train is None:
        raise InputError("no training data given; set data.train=FILE (JSONL, JSON, CSV or parquet)")
    for source in (*config.data.sources("train"), *config.data.sources("valid")):
        find_tables(source.path)
    return config.model
