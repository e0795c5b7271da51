"""Load what a run trains: the model with its markers and adapters, and the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nrt.config import Config
from nrt.data import Chat, LoadedPairs, ensure_template, load_pairs
from nrt.data.template import has_default_template
from nrt.distributed import ProcessGroup
from nrt.engine.build import frozen_copy
from nrt.errors import InputError
from nrt.models import (
    AdapterConfig,
    MarkerRow,
    add_adapters,
    add_markers,
    check_markers,
    end_token_ids,
    initialize_marker_rows,
    load_model,
    pick_device,
)
from nrt.trainer.entropies import cuts_by_entropy, model_entropies
from nrt.trainer.resolve import check_model_setting
from nrt.types import Pair

Load = Callable[[str], tuple[Any, Any]]
"""Folder or hub name → (model, tokenizer)."""


@dataclass(frozen=True, kw_only=True)
class ModelAndData:
    """Model and data of a run."""

    model: Any  # with adapters, if the run trains adapters
    tokenizer: Any
    chat: Chat
    data: LoadedPairs  # to train on
    valid: LoadedPairs | None  # held out
    marker_rows: Sequence[MarkerRow]  # what new markers start from
    has_initial_weights: bool  # the model, without adapters, is the one with which the run began


def load_model_and_data(
    config: Config, checkpoint: Path | None, processes: ProcessGroup
) -> ModelAndData:
    """Load model and data as the config says.

    Args:
        checkpoint: the folder of a checkpoint whose weights to load.
    """
    base = check_model_setting(config)
    load = _loader(config, processes)
    model, tokenizer, chat, new_markers = _load_with_markers(load, base, config, checkpoint)
    if getattr(model, "is_quantized", False) and not config.lora.rank:
        raise InputError(
            f"model {base} has quantised weights, which cannot be trained; set lora.rank=16, or "
            "give the model that was quantised"
        )
    has_initial_weights = checkpoint is None or config.lora.rank > 0
    entropies = None
    if cuts_by_entropy(config):
        initial = model if has_initial_weights else _initial_model(load, config, chat)
        entropies = model_entropies(
            initial, chat.opening, config.max_prompt_tokens, config.token_limit
        )
    with processes.main_process_first():
        data = load_pairs(config, "train", chat, entropies)
        valid = load_pairs(config, "valid", chat, entropies) if config.data.valid else None
    marker_rows = initialize_marker_rows(
        model, tokenizer, config.markers, new_markers, data.pairs, chat.start_id, chat.end_id
    )
    if config.lora.rank:
        marker_ids = [i for i in (chat.start_id, chat.end_id) if i is not None]
        add_adapters(model, _adapters(config), marker_ids)
    return ModelAndData(
        model=model,
        tokenizer=tokenizer,
        chat=chat,
        data=data,
        valid=valid,
        marker_rows=marker_rows,
        has_initial_weights=has_initial_weights,
    )


def template_notes(config: Config, tokenizer: Any) -> list[str]:
    """Return a note if turns are written in nrt's own chat template, or in one with the date."""
    sources = config.data.sources("train")
    has_turns = any(source.rows_config(config.data).text is None for source in sources)
    if not has_turns:
        return []
    if has_default_template(tokenizer):
        return [
            "the model has no chat template; nrt's own puts <|system|>, <|user|> or <|assistant|> "
            "before each turn"
        ]
    if "strftime_now" in tokenizer.get_chat_template():
        return [
            "the model's chat template writes today's date into prompts; they keep the date of the "
            "first run on these data, as long as the cache keeps their tokens"
        ]
    return []


def load_reference(config: Config, loaded: ModelAndData, processes: ProcessGroup) -> Any:
    """Return the frozen initial model. A model with adapters is its own."""
    if config.lora.rank:
        return loaded.model
    if loaded.has_initial_weights:
        return frozen_copy(loaded.model)
    load = _loader(config, processes)
    return _initial_model(load, config, loaded.chat, loaded.data.pairs)


def _loader(config: Config, processes: ProcessGroup) -> Load:
    """Return the function that loads models as the config says."""
    return partial(
        load_model,
        dtype=getattr(torch, config.dtype),
        device=processes.local_device(pick_device(config.device)),
        trust_remote_code=config.trust_remote_code,
        quantize=config.quantize,
    )


def _load_with_markers(
    load: Load, base: str, config: Config, checkpoint: Path | None
) -> tuple[Any, Any, Chat, tuple[str, ...]]:
    """Return model with markers, tokenizer, chat, and the markers whose rows are new."""
    new: tuple[str, ...] = ()
    if checkpoint and not config.lora.rank:
        model, tokenizer = load(str(checkpoint / "model"))
        check_markers(tokenizer, config.markers)
    else:
        # Adapters too are restored with the optimizer: a checkpoint's model has them merged.
        model, tokenizer = load(base)
        new = add_markers(model, tokenizer, config.markers)
    ensure_template(tokenizer)
    chat = Chat(tokenizer, config.markers, extra_end_ids=end_token_ids(model, tokenizer))
    return model, tokenizer, chat, new


def _initial_model(load: Load, config: Config, chat: Chat, pairs: Sequence[Pair] = ()) -> Any:
    """Load the model with which the run began, frozen. Without pairs its new marker rows are
    arbitrary.
    """
    model, tokenizer = load(str(config.model))
    new = add_markers(model, tokenizer, config.markers)
    if pairs:
        initialize_marker_rows(
            model, tokenizer, config.markers, new, pairs, chat.start_id, chat.end_id
        )
    return model.requires_grad_(False)


def _adapters(config: Config) -> AdapterConfig:
    lora = config.lora
    alpha = 2.0 * lora.rank if lora.alpha is None else lora.alpha
    return AdapterConfig(lora.rank, alpha, lora.targets, config.seed)
