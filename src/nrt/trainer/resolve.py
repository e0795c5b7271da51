"""Resolve the names of a config, and refuse settings that exclude one another, before anything is
loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from nrt.config import Config, ObjectiveConfig, dump_yaml, flat_settings
from nrt.data import find_tables
from nrt.data.checkers import Checker, resolve_checker, resolve_dotted
from nrt.errors import InputError, unknown_name
from nrt.objective import METHODS, NOT_OFFERED, Method, with_weight_norm
from nrt.run import Run
from nrt.run.metrics import describe
from nrt.trainer.hub import check_hub
from nrt.trainer.signals import check_signal
from nrt.trainer.tracking import check_trackers

Observer = Callable[[Any, Any], Mapping[str, float]]
"""(rollout, tokenizer) → further metrics of a step."""


@dataclass(frozen=True)
class ResolvedNames:
    """The objects that names in a config refer to."""

    method: Method
    checker: Checker | None
    observer: Observer | None


def resolve_names(config: Config) -> ResolvedNames:
    """Return the method, checker and observer of a config.

    Raises InputError for an unknown name, with the nearest known one, and for settings that exclude
    one another.
    """
    for plugin in config.plugins:
        import_plugin(plugin)
    method = resolve_method(config.method, config.objective)
    if method.samples:
        method.check_traces(config.traces)
        method.check_rules()
        method.check_reward()
    if method.own_rules and config.profile == "release":
        raise InputError(
            f"profile=release replaces a method's rules by the release's, and {method.name} has "
            "its own; set "
            "profile=paper"
        )
    if config.vllm.urls and config.sampler != "vllm":
        raise InputError("vllm.urls names rollout servers, which sampler=vllm asks; set it")
    if config.engine == "local" and config.nodes * config.gpus_per_node > 1:
        raise InputError(
            "nodes and gpus_per_node are for engine=verl; with engine=local, torchrun starts a "
            "process for each GPU (docs/several-gpus.md)"
        )
    if config.overlap:
        _check_overlap(config, method)
    if method.samples and method.ratio == "none":
        _check_uncorrected(config, method)
    if method.samples_answers:
        _check_sampled_answers(config, method)
    if not config.initial_reference:
        _check_without_initial_model(method)
    if method.token_advantages and config.engine == "verl":
        raise InputError(
            f"method {method.name} has an advantage for each token, which engine=verl does not "
            "carry to its workers; set engine=local"
        )
    if method.checks_answers and not config.heldout.checker:
        raise InputError(
            f"method {method.name} checks sampled answers; set heldout.checker=exact, last-number "
            "or contains"
        )
    checker = resolve_checker(config.heldout.checker) if config.heldout.checker else None
    observer = resolve_dotted(config.observer, "observer") if config.observer else None
    check_trackers(config.trackers)
    check_hub(config)
    check_signal(config.save_signal)
    if config.keep_best:
        _check_keep_best_setting(config, config.keep_best.removeprefix("-"))
    return ResolvedNames(method, checker, observer)


def _check_without_initial_model(method: Method) -> None:
    """Raise InputError for a method that needs the initial model."""
    if method.needs_initial_model:
        use = "takes its baseline" if method.base_policy == "initial" else "scores its traces"
        raise InputError(
            f"method {method.name} {use} under the initial model; set initial_reference=true"
        )


def _check_overlap(config: Config, method: Method) -> None:
    """Raise InputError for settings that do not work with traces sampled one step ahead."""
    if not method.samples or method.keep or method.samples_answers:
        raise InputError(
            f"overlap=true samples traces one step ahead, which {method.name} does not allow; set "
            "overlap=false"
        )
    if config.lora.rank:
        raise InputError(
            "overlap=true samples with a copy of the weights, which lora.rank does not make; set "
            "overlap=false"
        )
    if config.data.difficulty.skip_above is not None or config.data.difficulty.pool > 1:
        raise InputError(
            "overlap=true needs to know the next step's prompts, and data.difficulty chooses them "
            "later; turn one of "
            "them off"
        )
    if method.importance_cap is not None:
        raise InputError(
            "under overlap=true the ratio is to what the sampler reported already; unset "
            "objective.importance_cap"
        )


def _check_uncorrected(config: Config, method: Method) -> None:
    """Raise InputError for traces of earlier weights if no ratio corrects for them."""
    is_loose = config.sampler == "vllm" and not config.vllm.strict
    stale = {
        "overlap=true": config.overlap,
        "vllm.strict=false": is_loose,
        f"updates_per_rollout={config.updates_per_rollout}": config.updates_per_rollout > 1,
    }
    for setting, is_set in stale.items():
        if is_set:
            fix = "set it to 1" if setting.startswith("updates") else "unset it"
            raise InputError(
                f"{setting} trains on traces of earlier weights, which {method.name} does not "
                f"correct for; {fix}, or set objective.ratio=ppo"
            )


def _check_sampled_answers(config: Config, method: Method) -> None:
    """Raise InputError for settings that act on reference answers or traces only."""
    weights = {
        "objective.answer_weight": config.objective.answer_weight,
        "objective.answer_coef": config.objective.answer_coef,
    }
    for setting, value in weights.items():
        if value is not None:
            raise InputError(
                f"{setting} weighs reference answers in the loss, and {method.name} trains on "
                "sampled ones; unset it"
            )
    corrections = {
        "objective.importance_cap": method.importance_cap is not None,
        "vllm.strict=false": not config.vllm.strict,
    }
    for setting, is_set in corrections.items():
        if is_set:
            raise InputError(
                f"{setting} corrects traces, and {method.name} trains on sampled answers too; "
                "unset it"
            )


def import_plugin(module: str) -> None:
    """Import a module of the user, also from the working folder. Raises InputError if there is no
    such module.
    """
    if "" not in sys.path:
        sys.path.insert(0, "")  # the `nrt` command, unlike `python -m`, does not look there
    try:
        import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise
        raise InputError(
            f"plugins={module}: there is no such module; put it into the working folder or install "
            "it"
        ) from None


def check_method_known(run: Run) -> None:
    """Raise InputError for a run whose method was passed to Python and is not known here."""
    if run.config.method not in METHODS and not run.config.plugins:
        raise InputError(
            f"{run.path} was trained with the method '{run.config.method}', which is defined in "
            "Python; pass it again: nrt.resume(run, method=METHOD)"
        )


def resolve_method(name: str, values: ObjectiveConfig) -> Method:
    """Return the method with the config's values over its own. SFT has no reward, so it ignores
    them.

    Raises InputError for a name without a method; for one that nrt leaves out, with the reason.
    """
    if name in NOT_OFFERED and name not in METHODS:
        raise InputError(f"method {name} is not offered: {NOT_OFFERED[name]}")
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    method = METHODS[name]
    if not method.samples:
        return method
    answer_weight = values.answer_weight
    if answer_weight is None and method.answer_weight == "signal":
        answer_weight = values.signal_weight
    overrides = {
        "clip": values.baseline_clip,
        "base_layout": values.base_layout,
        "base_policy": values.base_policy,
        "centre": values.centre,
        "scale": values.scale,
        "ratio": values.ratio,
        "ratio_clip": values.ratio_clip,
        "answer_weight": answer_weight,
        "signal_floor": values.signal_floor,
        "trace_coef": values.trace_coef,
        "answer_coef": values.answer_coef,
        "format_coef": values.format_coef,
        "format_on": values.format_on,
        "importance_cap": values.importance_cap,
        "appended_end_acts": values.appended_end_acts,
    }
    changes = {field: value for field, value in overrides.items() if value is not None}
    for field in ("centre", "scale"):
        if changes.get(field) == "none":
            changes[field] = None
    if method.reward is not None:
        changes["reward"] = with_weight_norm(method.reward, values.weight_norm)
    return replace(method, **changes)


def check_keep_best(config: Config, metrics: Mapping[str, Any]) -> None:
    """Raise InputError if an evaluation lacks the metric of keep_best, such as that of a family."""
    if config.keep_best and config.keep_best.removeprefix("-") not in metrics:
        names = [name for name in metrics if name.startswith("heldout/")]
        raise InputError(
            f"keep_best={config.keep_best}: the evaluation has no such metric; it has "
            f"{', '.join(names)}"
        )


def _check_keep_best_setting(config: Config, metric: str) -> None:
    describe(metric)
    if not metric.startswith("heldout/"):
        raise InputError(
            f"keep_best={config.keep_best} is not a held-out metric; set "
            "keep_best=heldout/accuracy or another "
            "heldout/… metric"
        )
    if not config.data.valid:
        raise InputError(f"keep_best={config.keep_best} needs held-out rows; set data.valid=FILE")
    if metric.startswith("heldout/accuracy") and not config.heldout.checker:
        raise InputError(
            f"keep_best={config.keep_best} needs a checker; set heldout.checker=exact, last-number "
            "or contains"
        )


FREE_ON_RESUME = {
    "run",
    "resume",
    "steps",
    "epochs",
    "eval_every",
    "save_every",
    "keep",
    "keep_best",
    "save_signal",
    "max_skipped",
    "watch",
    "log_traces",
    "trackers",
    "tracking",
    "hub",
    "threads",
    "device",
    "tokens_per_batch",
    "gradient_checkpointing",
    "compile",
    "parallel",
    "sampler_rows",
    "sampler_tolerance",
    "vllm",
    "verl",
}
"""Settings that may change when a run is resumed. Any other would make it a different run."""


def check_resumable(config: Config, before: Config) -> None:
    """Raise InputError if a run would resume with other settings than it began with."""
    new, old = config.model_dump(exclude=FREE_ON_RESUME), before.model_dump(exclude=FREE_ON_RESUME)
    old_settings = flat_settings(old)
    for key, value in flat_settings(new).items():
        old_value = old_settings.get(key)
        if value != old_value:
            raise InputError(
                f"the run to resume has {key}={old_value!r:.200}, not {value!r:.200}; leave the "
                "setting out, or start a new run with it"
            )


def settings_of(config: Config) -> str:
    """Return the settings of a run as YAML: nrt's, or with engine=verl those that override verl's
    defaults.

    Raises InputError for what the settings alone show to be wrong; with verl installed also for
    keys that its config does not have.
    """
    method = resolve_names(config).method
    if config.engine != "verl":
        return dump_yaml(config)
    from nrt.backends.verl.bridge import check_supported, compose_config, verl_overrides

    check_supported(config)
    updates = config.steps and config.steps * config.updates_per_rollout
    reference = config.initial_reference and method.samples
    values = verl_overrides(config, model=str(config.model), updates=updates, reference=reference)
    if find_spec("verl"):
        compose_config(values)
    return yaml.safe_dump(values, sort_keys=False)


def check_model_setting(config: Config) -> str:
    """Return the model's name.

    Raises InputError if model or data are not given, or a data file does not exist, before a large
    model is loaded.
    """
    if config.model is None:
        raise InputError(
            "no model given; set model=FOLDER (any Hugging Face causal language model)"
        )
    if config.data.train is None:
        raise InputError(
            "no training data given; set data.train=FILE (JSONL, JSON, CSV or parquet)"
        )
    for source in (*config.data.sources("train"), *config.data.sources("valid")):
        try:
            find_tables(source.path)
        except InputError as error:
            if not config.resume or Path(source.path).is_absolute():
                raise
            raise InputError(
                f"{error}; the path is relative to the folder where the run was started: resume it "
                "there"
            ) from None
    return config.model
