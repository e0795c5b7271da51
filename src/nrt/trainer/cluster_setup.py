"""Build the parts of a run on a cluster.

This process holds no weights; everything else is as on one machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nrt.backends.verl.bridge import check_supported, rollout_name
from nrt.backends.verl.engine import VerlEngine
from nrt.backends.verl.requirements import check_installed
from nrt.config import Config
from nrt.data import Chat, ensure_template, load_pairs
from nrt.models import (
    add_marker_tokens,
    add_markers,
    complete_model_folder,
    end_token_ids,
    initialize_marker_rows,
    load_configs,
    load_model,
    load_tokenizer,
    missing_markers,
    save_model,
)
from nrt.run import Run
from nrt.run.layout import BASE_FOLDER
from nrt.system.files import atomic_folder, copy_plain_files
from nrt.system.manifest import find_damage, write_manifest
from nrt.trainer.context import check_context, longest
from nrt.trainer.loading import template_notes
from nrt.trainer.resolve import check_model_setting, resolve_names
from nrt.trainer.samplers import Samplers
from nrt.trainer.setup import Parts, assemble, steps_of
from nrt.types import Pair


def prepare_cluster(config: Config) -> Parts:
    """Build the parts of a run with engine=verl; see `nrt.trainer.setup.prepare`.

    The cluster starts with `VerlEngine.running`.
    """
    names = resolve_names(config)
    check_supported(config)
    check_installed(rollout_name(config))
    name = check_model_setting(config)
    tokenizer = load_tokenizer(name, config.trust_remote_code)
    model_configs = load_configs(name, config.trust_remote_code)
    knows_markers = not missing_markers(tokenizer, config.markers)
    add_marker_tokens(tokenizer, config.markers)
    ensure_template(tokenizer)
    chat = Chat(tokenizer, config.markers, extra_end_ids=end_token_ids(model_configs, tokenizer))
    template = chat.exported_template(open_trace=names.method.samples)
    data = load_pairs(config, "train", chat)
    valid = load_pairs(config, "valid", chat) if config.data.valid else None
    check_context(config, names.method, model_configs.config, *longest(data, valid))
    steps = steps_of(config, len(data.pairs))

    def prepare_model(run_folder: Path) -> Path:
        return _initial_model(
            config, chat, model_configs, run_folder, data.pairs, knows_markers=knows_markers
        )

    engine = VerlEngine(
        config=config,
        method=names.method,
        updates=steps * config.updates_per_rollout,
        prepare_model=prepare_model,
        finish_model=lambda folder: complete_model_folder(
            folder, tokenizer, template=template, end_ids=chat.turn_end_ids
        ),
    )
    parts = assemble(
        config,
        names,
        chat,
        tokenizer,
        engine=engine,
        samplers=Samplers(engine, engine),
        data=data,
        valid=valid,
        save_model=_copy_last_checkpoint,
    )
    return replace(parts, notes=(engine.scorer_why, *template_notes(config, tokenizer)))


def _initial_model(
    config: Config,
    chat: Chat,
    model_configs: Any,
    run_folder: Path,
    pairs: Sequence[Pair],
    *,
    knows_markers: bool,
) -> Path:
    """Return the folder of the initial model.

    That is the config's folder if its model has rows for the markers, else a copy in the run.
    """
    source = Path(str(config.model)).expanduser()
    rows = model_configs.config.get_text_config().vocab_size
    if source.is_dir() and max(chat.end_id, chat.start_id or 0) < rows and knows_markers:
        return source.resolve()
    base = run_folder / BASE_FOLDER
    if find_damage(base):  # also if there is no folder
        weights, tokenizer = load_model(
            str(config.model),
            dtype=getattr(torch, config.dtype),
            device="cpu",
            trust_remote_code=config.trust_remote_code,
        )
        new = add_markers(weights, tokenizer, config.markers)
        initialize_marker_rows(
            weights, tokenizer, config.markers, new, pairs, chat.start_id, chat.end_id
        )
        ensure_template(tokenizer)
        save_model(weights, tokenizer, base, template=tokenizer.chat_template)
        write_manifest(base)
    return base


def _copy_last_checkpoint(folder: Path) -> None:
    """Copy the model of the run's last checkpoint, which exists when the run ends."""
    with atomic_folder(folder) as new:
        copy_plain_files(Run(folder.parent).checkpoints()[-1] / "model", new)
