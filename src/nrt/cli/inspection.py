"""Data inspection of `nrt data check` and `nrt data stats`, from command-line arguments to JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nrt.config import Config, build_config, load_config, packaged_recipes
from nrt.data import Chat, ensure_template, load_pairs
from nrt.data.stats import Inspection, TrainValidOverlap, find_overlap, inspect
from nrt.errors import InputError
from nrt.lab import RECIPES
from nrt.models import (
    MarkerRow,
    add_marker_tokens,
    add_markers,
    initialize_marker_rows,
    load_configs,
    load_model,
    load_tokenizer,
    pick_device,
)
from nrt.trainer.context import check_context
from nrt.trainer.resolve import import_plugin, resolve_method

Record = dict[str, Any]


def config_for(recipe: str, arguments: Sequence[str]) -> Config:
    """Return the config of a recipe, with `key=value` settings, and files as training data.

    An argument is a setting if its key is one of Config's; all others are files. Raises InputError
    if the first file is the name of a recipe and not a file.
    """
    settings = [text for text in arguments if _is_setting(text)]
    files = [text for text in arguments if not _is_setting(text)]
    if files and files[0] in packaged_recipes() and not Path(files[0]).exists():
        raise InputError(f"{files[0]} is a recipe and no file; give FILE --recipe {files[0]}")
    config = load_config(recipe or None, settings)
    if not files:
        return config
    return build_config(config.model_dump(), {"data": {"train": files}})


def train_arguments(recipe: str, arguments: Sequence[str], model: str | None) -> list[str]:
    """Return the arguments of `nrt train` for the data that were checked with these arguments.

    Args:
        model: the model of recipe and arguments, if they name one.

    >>> train_arguments("", ["train.jsonl", "data.valid=valid.jsonl"], None)
    ['model=MODEL', 'data.train=train.jsonl', 'data.valid=valid.jsonl']
    """
    settings = [text for text in arguments if _is_setting(text)]
    files = [text for text in arguments if not _is_setting(text)]
    parts = [recipe] if recipe else []
    if model is None and recipe not in RECIPES:
        parts.append("model=MODEL")
    if files:
        names = files[0] if len(files) == 1 else f"[{','.join(files)}]"
        parts.append(f"data.train={names}")
    return [*parts, *settings]


def _is_setting(text: str) -> bool:
    key, separator, _ = text.partition("=")
    return bool(separator) and key.split(".")[0] in Config.model_fields


def open_chat(config: Config) -> Chat | None:
    """Return the chat layout of the model's tokenizer; None without a model."""
    if config.model is None:
        return None
    tokenizer = load_tokenizer(config.model, config.trust_remote_code)
    add_marker_tokens(tokenizer, config.markers)
    ensure_template(tokenizer)
    return Chat(tokenizer, config.markers)


def inspect_all(config: Config) -> tuple[list[Inspection], TrainValidOverlap | None]:
    """Inspect the training data and, if given, the validation data and the overlap of both.

    Raises InputError for documents that are cut by entropy.
    """
    for kind in ("train", "valid"):
        for source in config.data.sources(kind):
            text = source.rows_config(config.data).text
            if text and text.at == "entropy":
                raise InputError(
                    "data.text.at=entropy needs the model's weights, which this command does not "
                    "load. Check the data with data.text.at=sentences."
                )
    chat = open_chat(config)
    train = inspect(config, "train", chat)
    if config.data.valid is None:
        return [train], None
    valid = inspect(config, "valid", chat)
    return [train, valid], find_overlap(train, valid)


def context_fault(config: Config, inspections: Sequence[Inspection]) -> str:
    """Return why rows of such data do not fit into the model's context.

    It is empty if they do, and if there is no model but at most a tokenizer. Raises InputError for
    an unknown method.
    """
    if config.model is None:
        return ""
    for plugin in config.plugins:
        import_plugin(plugin)
    method = resolve_method(config.method, config.objective)
    try:
        model_config = load_configs(config.model, config.trust_remote_code).config
    except InputError:
        return ""
    prompt = max(inspection.longest_prompt for inspection in inspections)
    answer = max(inspection.longest_answer for inspection in inspections)
    try:
        check_context(config, method, model_config, prompt, answer)
    except InputError as error:
        return str(error)
    return ""


def marker_rows(config: Config) -> list[MarkerRow]:
    """Load the model and return the initial rows of new markers, with their effect on it.

    Empty if the model has both markers. Raises InputError without a model, and for a model or data
    that cannot be read.
    """
    if config.model is None:
        raise InputError("--markers needs a model; set model=FOLDER")
    model, tokenizer = load_model(
        config.model,
        dtype=getattr(torch, config.dtype),
        device=pick_device(config.device),
        trust_remote_code=config.trust_remote_code,
    )
    new_markers = add_markers(model, tokenizer, config.markers)
    ensure_template(tokenizer)
    chat = Chat(tokenizer, config.markers)
    pairs = load_pairs(config, "train", chat).pairs
    return initialize_marker_rows(
        model, tokenizer, config.markers, new_markers, pairs, chat.start_id, chat.end_id
    )


def as_json(inspections: Sequence[Inspection], overlap: TrainValidOverlap | None) -> Record:
    """Return all results by kind of data, without the length of each row."""
    record: Record = {}
    for inspection in inspections:
        # asdict copies every value: replace the large ones before.
        small = replace(inspection, lengths=(np.empty(0), np.empty(0)), questions={})
        values = asdict(small)
        del values["lengths"], values["questions"]
        record[inspection.kind] = values | {"bad_rows": inspection.bad_rows}
    record["leakage"] = asdict(overlap) if overlap else None
    return record
