"""The parts of a run whose engine is a cluster: no weights in this process, everything else as on one machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from nrt.config import Config
from nrt.data import Chat, ensure_template, load_pairs
from nrt.durable import at_once, copy_plain, damage, write_manifest
from nrt.engine.verl.bridge import refuse, rollout_name
from nrt.engine.verl.engine import VerlEngine
from nrt.engine.verl.requirements import check_installed
from nrt.models import (
    absent_markers,
    add_marker_tokens,
    add_markers,
    complete_folder,
    described,
    end_token_ids,
    load_model,
    load_tokenizer,
    save_model,
    settle_marker_rows,
)
from nrt.run import Run
from nrt.run.layout import BASE
from nrt.training.context import check_context
from nrt.training.resolve import check_given, resolve_names
from nrt.training.setup import Parts, assemble, make_policy, steps_of
from nrt.types import Pair


def prepare_cluster(config: Config, *, checkpoint: Path | None = None) -> Parts:
    """See `nrt.training.setup.prepare`. The engine starts with `running`."""
    names = resolve_names(config)
    refuse(config)
    check_installed(rollout_name(config))
    name = check_given(config)
    tokenizer = load_tokenizer(name, config.trust_remote_code)
    model, knows_markers = described(name), not absent_markers(tokenizer, config.markers)
    add_marker_tokens(tokenizer, config.markers)
    ensure_template(tokenizer)
    chat = Chat(tokenizer, config.markers, extra_end_ids=end_token_ids(model, tokenizer))
    template = chat.exported_template(open_trace=names.method.samples)
    data = load_pairs(config, "train", chat)
    valid = load_pairs(config, "valid", chat) if config.data.valid else None
    check_context(config, names.method, model.config, data, valid)
    steps = steps_of(config, len(data.pairs))
    engine = VerlEngine(
        config=config,
        method=names.method,
        updates=steps * config.updates_per_rollout,
        prepare_model=lambda run: _initial_model(config, chat, model, run, data.pairs, knows_markers=knows_markers),
        finish_model=lambda folder: complete_folder(folder, tokenizer, template=template),
    )
    policy = make_policy(config, chat, engine, sampler=engine)
    return assemble(
        config,
        names,
        chat,
        tokenizer,
        data=data,
        valid=valid,
        steps=steps,
        policy=policy,
        evaluated=policy,
        save_model=_copy_last_checkpoint,
        notes=(engine.scorer_why,),
    )


def _initial_model(config: Config, chat: Chat, model: Any, run: Path, pairs: Sequence[Pair], *, knows_markers: bool) -> Path:
    """Folder of the initial model: the one that was given if it has rows for the markers, else a copy with them in the run."""
    given, base = Path(str(config.model)).expanduser(), run / BASE
    rows = model.config.get_text_config().vocab_size
    if given.is_dir() and max(chat.end_id, chat.start_id or 0) < rows and knows_markers:
        return given.resolve()
    if damage(base):  # or not there
        weights, tokenizer = load_model(
            str(config.model), dtype=getattr(torch, config.dtype), device="cpu", trust_remote_code=config.trust_remote_code
        )
        new = add_markers(weights, tokenizer, config.markers)
        settle_marker_rows(weights, tokenizer, config.markers, new, pairs, chat.start_id, chat.end_id)
        ensure_template(tokenizer)
        save_model(weights, tokenizer, base, template=tokenizer.chat_template)
        write_manifest(base)
    return base


def _copy_last_checkpoint(folder: Path) -> None:
    """The run's model: that of its last step's checkpoint, which is there when the run ends."""
    with at_once(folder) as new:
        copy_plain(Run(folder.parent).checkpoints()[-1] / "model", new)
