"""Build the parts of a run from its config. Every name is resolved and every input read before a
file is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nrt.config import Config
from nrt.data import Chat, LoadedPairs, Markers, Pairs, RowOrder, bare_row, null_row
from nrt.data.checkers import Checker, is_right
from nrt.distributed import SINGLE_PROCESS, ProcessGroup
from nrt.engine.build import build_engine
from nrt.engine.compiled import COMPILED
from nrt.engine.interface import Engine
from nrt.engine.local import LocalEngine
from nrt.models import save_model
from nrt.objective import NOISE, Method
from nrt.rollout import PrefetchSampler, RemoteSampler, Sampler
from nrt.scoring.probe import probe_rows
from nrt.trainer.checkpoint import saved_choices
from nrt.trainer.context import check_context, longest
from nrt.trainer.difficulty import ByDifficulty, InOrder
from nrt.trainer.heldout import Heldout
from nrt.trainer.learner import CheckAnswer, Learner
from nrt.trainer.loading import (
    ModelAndData,
    load_model_and_data,
    load_reference,
    template_notes,
)
from nrt.trainer.policy import Policy
from nrt.trainer.resolve import ResolvedNames, resolve_names
from nrt.trainer.samplers import (
    Samplers,
    build_samplers,
    check_sampler_installed,
    prompt_sharing_fault,
)
from nrt.types import Pair


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of a run that is ready to start."""

    names: ResolvedNames
    learner: Learner
    heldout: Heldout | None
    data: LoadedPairs  # to train on
    valid: LoadedPairs | None  # held out
    stream: RowOrder
    steps: int
    chat: Chat
    tokenizer: Any
    save_model: Callable[[Path], None]  # writes model and tokenizer as a Hugging Face folder
    prefetch: PrefetchSampler | None = None  # under overlap
    servers: RemoteSampler | None = None  # client of rollout servers
    # How rows are forwarded and sampled, and what new markers start from
    notes: tuple[str, ...] = ()
    # Choices that a resumed run repeats (`saved_choices`)
    resolved: Mapping[str, bool] = field(default_factory=dict)
    padded_by_surprise: bool = False  # padded rows, where this model type usually shares prompts
    compile_fault: str = ""  # why layers do not run compiled, where they usually do

    @property
    def engine(self) -> Engine:
        return self.learner.policy.engine

    @property
    def policy(self) -> Policy:
        """The policy of training."""
        return self.learner.policy

    def draw(self, position: int, count: int) -> list[Pair]:
        """Return `count` pairs of the stream from `position` on."""
        return [self.data.pairs[i] for i in self.stream.indices(position, count)]


def in_one_process(config: Config) -> Config:
    """Return the config of a run with the engine and the sampler of one ordinary process, to look
    at what the run wrote on whatever machines.
    """
    alone = {
        "engine": "local",
        "nodes": 1,
        "gpus_per_node": 1,
        "sampler": "hf",
        "vllm": {"urls": ()},
        "overlap": False,
    }
    return config.model_copy(update=alone)


def prepare(
    config: Config, *, checkpoint: Path | None = None, processes: ProcessGroup = SINGLE_PROCESS
) -> Parts:
    """Read data and model, and build the parts of a run. Writes nothing.

    Under torchrun all processes call it; each gets parts that work together with those of the
    others.

    Args:
        checkpoint: the folder of a checkpoint whose weights to load.
    """
    names = resolve_names(config)
    method = names.method
    check_sampler_installed(config, method)  # before a large model is loaded
    if config.threads:
        torch.set_num_threads(config.threads)
    loaded = load_model_and_data(config, checkpoint, processes)
    model, tokenizer, chat = loaded.model, loaded.tokenizer, loaded.chat
    data, valid = loaded.data, loaded.valid
    longest_row = check_context(config, method, model.config, *longest(data, valid))
    probe = probe_rows(data.pairs, model.config, longest_row)
    steps = steps_of(config, len(data.pairs))
    reference = None
    if config.initial_reference and method.samples:
        reference = load_reference(config, loaded, processes)
    saved = saved_choices(checkpoint)
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
        packed=saved.get("packed"),
        compile_layers=config.compile,
        compiled_before=saved.get("compiled", False) if saved else None,
        beside_sampler=config.overlap and config.sampler == "hf",
    )
    fault = "" if "share" in saved else prompt_sharing_fault(config, method, engine, pad_id, probe)
    share = saved.get("share", not fault)
    template = chat.exported_template(open_trace=method.samples)
    parts = assemble(
        config,
        names,
        chat,
        tokenizer,
        engine=engine,
        samplers=build_samplers(config, method, engine, pad_id, share_prompts=share),
        data=data,
        valid=valid,
        save_model=lambda folder: save_model(
            engine.model, tokenizer, folder, template=template, end_ids=chat.turn_end_ids
        ),
    )
    return replace(
        parts,
        notes=_notes(config, engine, fault, loaded),
        padded_by_surprise=engine.scorer_choice.surprising,
        compile_fault=engine.compiled.fault,
        resolved={
            "packed": engine.scorer_choice.packed,
            "share": share,
            "compiled": engine.compiled.is_on,
        },
    )


def assemble(
    config: Config,
    names: ResolvedNames,
    chat: Chat,
    tokenizer: Any,
    *,
    engine: Engine,
    samplers: Samplers,
    data: LoadedPairs,
    valid: LoadedPairs | None,
    save_model: Callable[[Path], None],
) -> Parts:
    """Build the parts of a run around an engine and its samplers, local or on a cluster."""
    method = names.method
    evaluated = _policy(config, chat, engine, samplers.evaluation)
    policy = replace(evaluated, sampler=samplers.training, off_policy=samplers.prefetch is not None)
    learner = Learner(
        method=method,
        policy=policy,
        select=_selection(policy, method, config),
        batch=config.batch,
        traces=config.traces,
        updates=config.updates_per_rollout,
        loss_tokens=config.objective.loss_tokens
        or config.max_trace_tokens + config.max_answer_tokens,
        initial_reference=config.initial_reference and method.samples,
        check_answer=_check_answer(chat, names.checker) if names.checker else None,
        noise=NOISE[config.dtype],
    )
    return Parts(
        names=names,
        learner=learner,
        heldout=_heldout(config, names, chat, evaluated, valid.pairs) if valid else None,
        data=data,
        valid=valid,
        stream=_stream(data.pairs, config),
        steps=steps_of(config, len(data.pairs)),
        chat=chat,
        tokenizer=tokenizer,
        save_model=save_model,
        prefetch=samplers.prefetch,
        servers=samplers.servers,
    )


def steps_of(config: Config, rows: int) -> int:
    """Return the steps of a run: the setting, else those of its epochs, rounded down."""
    return config.steps or max(1, int((config.epochs or 1) * rows) // config.batch)


def _notes(
    config: Config, engine: LocalEngine, sampling_fault: str, loaded: ModelAndData
) -> tuple[str, ...]:
    """Return how rows are written, forwarded and sampled, in words."""
    notes = [engine.scorer_why, *template_notes(config, loaded.tokenizer)]
    if engine.compiled.is_on:
        notes.append(COMPILED)
    if engine.recomputed:
        by_need = engine.recompute_by_need
        every = "gradient checkpointing: the layers of all micro-batches are recomputed"
        notes.append(by_need.description if by_need else every)
    if sampling_fault:
        notes.append(sampling_fault)
    notes += map(str, loaded.marker_rows)
    if engine.processes.size > 1:
        notes.append(f"{engine.processes.size} processes: {engine.weights.description}")
    return tuple(notes)


def _policy(config: Config, chat: Chat, engine: Engine, sampler: Sampler) -> Policy:
    markers = Markers(chat.start_id, chat.end_id)
    return Policy(
        engine=engine,
        sampler=sampler,
        markers=markers,
        banned=frozenset(markers.opener),
        stop_ids=chat.stop_ids,
        max_trace_tokens=config.max_trace_tokens,
        max_answer_tokens=config.max_answer_tokens,
        temperature=config.temperature,
    )


def _heldout(
    config: Config, names: ResolvedNames, chat: Chat, policy: Policy, pairs: Pairs
) -> Heldout:
    settings = config.heldout
    return Heldout(
        policy,
        pairs.first(settings.rows),
        chat,
        names.checker,
        settings.greedy,
        with_traces=names.method.samples,
        with_swapped=settings.swapped,
    )


def _selection(policy: Policy, method: Method, config: Config) -> InOrder | ByDifficulty:
    settings = config.data.difficulty
    if settings.skip_above is None and settings.pool == 1:
        return InOrder()
    row_of = partial(null_row, markers=policy.markers) if method.samples else bare_row
    return ByDifficulty(policy, row_of, settings)


def _stream(pairs: Pairs, config: Config) -> RowOrder:
    data = config.data
    weights = tuple(source.weight for source in data.sources("train") if source.weight)
    lengths = pairs.lengths if data.group_by_length else None
    return RowOrder(
        pairs.sizes, config.seed, data.shuffle, weights=weights, lengths=lengths, batch=config.batch
    )


def _check_answer(chat: Chat, checker: Checker) -> CheckAnswer:
    return lambda pair, ids: is_right(checker, chat.decode(ids), pair.example)
