"""From a config to the parts of a run: every name is resolved, and every input read, before the disk is touched."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from nrt.checkers import Checker, resolve_checker, resolve_dotted
from nrt.config import AUTO_TOKENS, Config, ObjectiveConfig, dump_yaml
from nrt.data import Chat, Encoded, Markers, Pairs, Stream, bare_row, ensure_template, find_tables, load_pairs, null_row
from nrt.engine.base import Engine
from nrt.engine.local import build_engine, frozen_copy
from nrt.engine.processes import ALONE, Processes
from nrt.engine.sampling import MainSampler, SharedSampler
from nrt.errors import InputError, unknown
from nrt.metrics import describe
from nrt.models import Adapters, add_adapters, add_markers, check_markers, end_token_ids, load_model, pick_device, save_model
from nrt.objective import METHODS, Method, with_weight_norm
from nrt.rollout import AheadSampler, HFSampler, RemoteSampler, Sampler
from nrt.trackers import check_trackers
from nrt.training.collect import Collector, Judge
from nrt.training.difficulty import ByDifficulty, InOrder
from nrt.training.heldout import Heldout
from nrt.training.policy import Policy
from nrt.training.sampler import vllm_sampler
from nrt.training.signals import check_signal
from nrt.training.step import Stepper
from nrt.training.uncertainty import cuts_by_entropy, model_entropies
from nrt.types import Pair

Observer = Callable[[Any, Any], Mapping[str, float]]


@dataclass(frozen=True)
class Names:
    """What the config's names stand for."""

    method: Method
    checker: Checker | None
    observer: Observer | None


@dataclass(frozen=True)
class Parts:
    """A run, ready to start."""

    names: Names
    stepper: Stepper
    heldout: Heldout | None
    data: Encoded  # to train on
    valid: Encoded | None  # held out
    stream: Stream
    steps: int
    chat: Chat
    tokenizer: Any
    save_model: Callable[[Path], None]
    servers: RemoteSampler | None = None  # that sample, if there are any

    def draw(self, position: int, count: int) -> list[Pair]:
        """The pairs at the stream's positions `position` … `position + count − 1`."""
        return [self.data.pairs[i] for i in self.stream.indices(position, count)]


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


def prepare(config: Config, *, checkpoint: Path | None = None, processes: Processes = ALONE) -> Parts:
    """Reads data and model and builds the parts; with `checkpoint`, weights come from there. Writes nothing.

    Several processes all call it; each gets parts that work together with the others'.
    """
    names = resolve_names(config)
    if config.overlap and processes.size > 1:
        raise InputError("overlap=true samples in one process only; set overlap=false, or start nrt without torchrun")
    if config.threads:
        torch.set_num_threads(config.threads)
    base = check_given(config)
    device, dtype = processes.place(pick_device(config.device)), getattr(torch, config.dtype)
    load = partial(load_model, dtype=dtype, device=device, trust_remote_code=config.trust_remote_code, quantize=config.quantize)
    adapted = config.lora.rank > 0
    if checkpoint and not adapted:  # a checkpoint's model is merged: adapters begin anew, and get their values with the optimiser's
        model, tokenizer = load(str(checkpoint / "model"))
        check_markers(tokenizer, config.markers)
    else:
        model, tokenizer = load(base)
        add_markers(model, tokenizer, config.markers)
    ensure_template(tokenizer)
    chat = Chat(tokenizer, config.markers, extra_end_ids=end_token_ids(model, tokenizer))
    if adapted:
        add_adapters(model, _adapters(config), [token for token in (chat.start_id, chat.end_id) if token is not None])
    entropies = None
    if cuts_by_entropy(config):
        initial = model if checkpoint is None or adapted else _initial_model(load, config)
        tokens = AUTO_TOKENS if config.tokens_per_batch == "auto" else config.tokens_per_batch
        entropies = model_entropies(initial, chat.opening, config.max_prompt_tokens, tokens)
    with processes.main_first():
        data = load_pairs(config, "train", chat, entropies)
        valid = load_pairs(config, "valid", chat, entropies) if config.data.valid else None
    steps = steps_of(config, len(data.pairs))
    keep_initial = config.initial_reference and names.method.samples
    reference = None
    if keep_initial:
        reference = model if adapted else frozen_copy(model) if checkpoint is None else _initial_model(load, config)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else chat.end_of_turn_id
    engine = build_engine(
        model,
        config.optimizer,
        pad_id=pad_id,
        updates=steps * config.updates_per_rollout,
        tokens_per_batch=config.tokens_per_batch,
        reference=reference,
        gradient_checkpointing=config.gradient_checkpointing,
        processes=processes,
        parallel=config.parallel,
    )
    sampler: Sampler = HFSampler(model, pad_id, config.sampler_rows)
    if config.sampler == "vllm" and names.method.samples:
        sampler = vllm_sampler(engine, config)
    servers = sampler if isinstance(sampler, RemoteSampler) else None
    if servers and processes.size > 1:
        sampler = MainSampler(sampler, processes, engine.whole)
    elif processes.size > 1:
        sampler = SharedSampler(sampler, processes, engine.whole, lent=isinstance(sampler, HFSampler))
    elif config.overlap and not isinstance(sampler, HFSampler):
        sampler = AheadSampler(sampler)
    policy = evaluated = make_policy(config, chat, engine, sampler)
    if config.overlap:
        ahead = sampler if isinstance(sampler, AheadSampler) else AheadSampler(HFSampler(frozen_copy(model), pad_id, config.sampler_rows))
        policy = replace(evaluated, sampler=ahead, behind=True)
    template = chat.exported_template(open_trace=names.method.samples)
    return assemble(
        config,
        names,
        chat,
        tokenizer,
        data=data,
        valid=valid,
        steps=steps,
        policy=policy,
        evaluated=evaluated,
        save_model=lambda folder: save_model(engine.model, tokenizer, folder, template=template),
        servers=servers,
    )


def steps_of(config: Config, rows: int) -> int:
    """Those that were asked for, else one epoch."""
    return config.steps or max(1, rows // config.batch)


def make_policy(config: Config, chat: Chat, engine: Engine, sampler: Sampler) -> Policy:
    """What is written by this sampler is laid out and cut as the config says."""
    return Policy(
        engine=engine,
        sampler=sampler,
        markers=Markers(chat.start_id, chat.end_id),
        stop_ids=chat.stop_ids,
        max_trace_tokens=config.max_trace_tokens,
        max_answer_tokens=config.max_answer_tokens,
    )


def assemble(
    config: Config,
    names: Names,
    chat: Chat,
    tokenizer: Any,
    *,
    data: Encoded,
    valid: Encoded | None,
    steps: int,
    policy: Policy,
    evaluated: Policy,
    save_model: Callable[[Path], None],
    servers: RemoteSampler | None = None,
) -> Parts:
    """The parts of a run around its policy, whatever its engine and samplers are."""
    method, how = names.method, config.heldout
    judge = _judge(chat, names.checker) if names.checker else None
    heldout = None
    if valid:
        heldout = Heldout(
            evaluated, valid.pairs[: how.rows], chat, names.checker, how.greedy, with_traces=method.samples, with_swapped=how.swapped
        )
    return Parts(
        names=names,
        stepper=Stepper(
            method=method,
            policy=policy,
            collector=Collector(method, policy, config.traces, config.initial_reference and method.samples, judge=judge),
            loss_tokens=config.objective.loss_tokens or config.max_trace_tokens + config.max_answer_tokens,
            choose=_chooser(policy, method, config),
        ),
        heldout=heldout,
        data=data,
        valid=valid,
        stream=_stream(data.pairs, config),
        steps=steps,
        chat=chat,
        tokenizer=tokenizer,
        save_model=save_model,
        servers=servers,
    )


def _adapters(config: Config) -> Adapters:
    lora = config.lora
    return Adapters(lora.rank, 2.0 * lora.rank if lora.alpha is None else lora.alpha, lora.targets, config.seed)


def _chooser(policy: Policy, method: Method, config: Config) -> InOrder | ByDifficulty:
    how = config.data.difficulty
    if how.skip_above is None and how.pool == 1:
        return InOrder()
    return ByDifficulty(policy, (lambda pair: null_row(pair, policy.markers)) if method.samples else bare_row, how)


def _stream(pairs: Pairs, config: Config) -> Stream:
    data = config.data
    weights = tuple(source.weight for source in data.sources("train") if source.weight)
    lengths = pairs.lengths if data.group_by_length else None
    return Stream(pairs.sizes, config.seed, data.shuffle, weights=weights, lengths=lengths, batch=config.batch)


def _judge(chat: Chat, checker: Checker) -> Judge:
    """Right or wrong, by the answer's text."""
    return lambda pair, ids: checker(chat.decode(ids), pair.example.answer)


def _initial_model(load: Callable[[str], tuple[Any, Any]], config: Config) -> Any:
    model, tokenizer = load(str(config.model))
    add_markers(model, tokenizer, config.markers)
    return model.requires_grad_(False)
