"""From a config to the parts of a run: every name is resolved, and every input read, before the disk is touched."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nrt.checkers import Checker, is_right
from nrt.config import AUTO_TOKENS, Config
from nrt.data import Chat, Encoded, Markers, Pairs, Stream, bare_row, ensure_template, load_pairs, null_row
from nrt.durable import read_bounded
from nrt.engine.base import Engine
from nrt.engine.local import LocalEngine, build_engine, frozen_copy
from nrt.engine.processes import ALONE, Processes
from nrt.engine.sampling import MainSampler, SharedSampler
from nrt.errors import InputError
from nrt.models import (
    Adapters,
    add_adapters,
    add_markers,
    check_markers,
    end_token_ids,
    load_model,
    pick_device,
    save_model,
    settle_marker_rows,
)
from nrt.models.attention import carries
from nrt.objective import NOISE, Method
from nrt.rollout import AheadSampler, HFSampler, RemoteSampler, Sampler
from nrt.rollout.probe import sharing_fault
from nrt.scoring import PackedScorer
from nrt.scoring.probe import probe_rows
from nrt.training.collect import Collector, Judge
from nrt.training.context import check_context
from nrt.training.difficulty import ByDifficulty, InOrder
from nrt.training.heldout import Heldout
from nrt.training.policy import Policy
from nrt.training.resolve import Names, check_given, resolve_names
from nrt.training.sampler import vllm_sampler
from nrt.training.step import Stepper
from nrt.training.uncertainty import cuts_by_entropy, model_entropies
from nrt.types import Pair, Row

Load = Callable[[str], tuple[Any, Any]]
"""Model and tokenizer of a folder or hub name."""


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
    notes: tuple[str, ...] = ()  # how rows are forwarded and sampled, what new markers start from
    ways: Mapping[str, bool] = field(default_factory=dict)  # scorer and decoder, which a resumed run takes again (`_ways_of`)
    padded_by_surprise: bool = False  # rows are padded although other models of this type share prompts

    def draw(self, position: int, count: int) -> list[Pair]:
        """The pairs at the stream's positions `position` … `position + count − 1`."""
        return [self.data.pairs[i] for i in self.stream.indices(position, count)]


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
    model, tokenizer, chat, new_markers = _opened(load, base, config, checkpoint)
    initial = model if checkpoint is None or config.lora.rank else None  # its weights are still the first ones
    entropies = None
    if cuts_by_entropy(config):
        tokens = AUTO_TOKENS if config.tokens_per_batch == "auto" else config.tokens_per_batch
        first = _initial_model(load, config, chat) if initial is None else initial
        entropies = model_entropies(first, chat.opening, config.max_prompt_tokens, tokens)
    with processes.main_first():
        data = load_pairs(config, "train", chat, entropies)
        valid = load_pairs(config, "valid", chat, entropies) if config.data.valid else None
    marker_rows = settle_marker_rows(model, tokenizer, config.markers, new_markers, data.pairs, chat.start_id, chat.end_id)
    if config.lora.rank:
        add_adapters(model, _adapters(config), [token for token in (chat.start_id, chat.end_id) if token is not None])
    probe = probe_rows(data.pairs, model.config, check_context(config, names.method, model.config, data, valid))
    steps = steps_of(config, len(data.pairs))
    reference = None
    if config.initial_reference and names.method.samples:
        if config.lora.rank:
            reference = model
        elif initial is not None:
            reference = frozen_copy(model)
        else:
            reference = _initial_model(load, config, chat, data.pairs)
    ways = _ways_of(checkpoint)
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
        probe=probe,
        packed=ways.get("packed"),
    )
    sampling_fault: tuple[str, ...] = ()
    if "share" not in ways:
        sampling_fault = _sampling_fault(config, names.method, engine, pad_id, probe)
    share = ways.get("share", not sampling_fault)
    sampler = _sampler(config, names.method, engine, pad_id, share=share)
    servers = sampler if isinstance(sampler, RemoteSampler) else None
    policy, evaluated = _policies(config, chat, engine, sampler)
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
        padded_by_surprise=engine.scorer_choice.surprising,
        ways={"packed": isinstance(engine.scorer, PackedScorer), "share": share},
        notes=(engine.scorer_why, *sampling_fault, *map(str, marker_rows)),
    )


def _opened(load: Load, base: str, config: Config, checkpoint: Path | None) -> tuple[Any, Any, Chat, tuple[str, ...]]:
    """Model with markers, tokenizer, chat, and the markers whose rows are new."""
    adapted, new = config.lora.rank > 0, ()
    if checkpoint and not adapted:  # a checkpoint's model is merged: adapters begin anew, and get their values with the optimiser's
        model, tokenizer = load(str(checkpoint / "model"))
        check_markers(tokenizer, config.markers)
    else:
        model, tokenizer = load(base)
        new = add_markers(model, tokenizer, config.markers)
    ensure_template(tokenizer)
    chat = Chat(tokenizer, config.markers, extra_end_ids=end_token_ids(model, tokenizer))
    return model, tokenizer, chat, new


def _ways_of(checkpoint: Path | None) -> dict[str, bool]:
    """How the run in `checkpoint` scores and samples: "packed" and "share". Empty for a new run, and one that did not write it.

    Probed again under other weights the choice could come out otherwise, and a resumed run would no longer be the uninterrupted one.
    """
    if checkpoint is None or not (checkpoint / "state.json").is_file():
        return {}
    try:
        state = json.loads(read_bounded(checkpoint / "state.json"))
    except ValueError:  # `load_checkpoint` says what is wrong with it
        return {}
    ways = state.get("ways") if isinstance(state, dict) else None
    if not isinstance(ways, dict):
        return {}
    return {name: ways[name] for name in ("packed", "share") if isinstance(ways.get(name), bool)}


def _sampling_fault(config: Config, method: Method, engine: LocalEngine, pad_id: int, probe: Sequence[Row]) -> tuple[str, ...]:
    """In words, why traces cannot share their prompts' keys and values; nothing where they can, or are not sampled here.

    Raises InputError for a model that cannot be sampled from here.
    """
    if config.sampler != "hf" or not method.samples:
        return ()
    with engine.whole():
        fault = sharing_fault(engine.model, pad_id, probe, engine.scorer_choice.tolerance)
    if not fault or not carries(engine.model):
        return ()
    return (f"each trace is sampled with keys and values of its own: {type(engine.model).__name__} cannot share them, {fault}",)


def _sampler(config: Config, method: Method, engine: LocalEngine, pad_id: int, *, share: bool) -> Sampler:
    if config.sampler == "vllm" and method.samples:
        return vllm_sampler(engine, config)
    return HFSampler(engine.model, pad_id, config.sampler_rows, share)


def _policies(config: Config, chat: Chat, engine: LocalEngine, sampler: Sampler) -> tuple[Policy, Policy]:
    """The one that writes a step's traces, and the one that is evaluated: another only where traces are sampled beforehand."""
    processes = engine.processes
    if processes.size > 1:
        if isinstance(sampler, RemoteSampler):
            sampler = MainSampler(sampler, processes, engine.whole)
        else:
            sampler = SharedSampler(sampler, processes, engine.whole, lent=isinstance(sampler, HFSampler))
    if not config.overlap:
        policy = make_policy(config, chat, engine, sampler)
        return policy, policy
    if isinstance(sampler, HFSampler):  # it samples with the trainer's own weights
        ahead = AheadSampler(replace(sampler, model=frozen_copy(engine.model)))
    else:
        sampler = ahead = AheadSampler(sampler)
    evaluated = make_policy(config, chat, engine, sampler)
    return replace(evaluated, sampler=ahead, behind=True), evaluated


def steps_of(config: Config, rows: int) -> int:
    """Those that were asked for, else one epoch."""
    return config.steps or max(1, rows // config.batch)


def make_policy(config: Config, chat: Chat, engine: Engine, sampler: Sampler) -> Policy:
    """What is written by this sampler is laid out and cut as the config says."""
    markers = Markers(chat.start_id, chat.end_id)
    return Policy(
        engine=engine,
        sampler=sampler,
        markers=markers,
        banned=frozenset(markers.opener),
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
    notes: tuple[str, ...] = (),
    padded_by_surprise: bool = False,
    ways: Mapping[str, bool] | None = None,
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
            collector=Collector(
                method, policy, config.traces, config.initial_reference and method.samples, judge=judge, noise=NOISE[config.dtype]
            ),
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
        notes=notes,
        padded_by_surprise=padded_by_surprise,
        ways=ways or {},
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
    return lambda pair, ids: is_right(checker, chat.decode(ids), pair.example)


def _initial_model(load: Load, config: Config, chat: Chat, pairs: Sequence[Pair] = ()) -> Any:
    """The model as the run began, frozen; without pairs the markers' rows are not settled (where no marker is read)."""
    model, tokenizer = load(str(config.model))
    new = add_markers(model, tokenizer, config.markers)
    if pairs:
        settle_marker_rows(model, tokenizer, config.markers, new, pairs, chat.start_id, chat.end_id)
    return model.requires_grad_(False)
