"""Writes an ordinary Hugging Face folder, whole or not at all."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from nrt.durable import at_once
from nrt.models.load import described, quiet
from nrt.models.lora import has_adapters, merged
from nrt.models.markers import end_token_ids


def save_model(model: PreTrainedModel, tokenizer: Any, folder: str | os.PathLike[str], *, template: str | dict[str, str] | None) -> None:
    """Saves weights (safetensors), config, tokenizer, `template` as its chat template (or several by name), and a generation config.

    The generation config names every end token and nothing else: sampling defaults of the base would hide what was trained. The folder
    appears, or is replaced, by a rename: a half-written one is never seen under its name. Model and tokenizer stay as they are.
    """
    generation = _generation_config(model, tokenizer)
    with (
        at_once(Path(folder)) as new,
        quiet(),
        _replaced(model, "generation_config", generation),
        _replaced(tokenizer, "chat_template", template),
    ):
        _plain(model).save_pretrained(new, state_dict=dict(merged(model)) if has_adapters(model) else None)
        tokenizer.save_pretrained(new)


def save_config(model: PreTrainedModel, folder: str | os.PathLike[str]) -> None:
    """Its config.json alone, as the model is now: with rows for the markers."""
    config = _unquantised(model.config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)


def _plain(model: PreTrainedModel) -> Any:
    """A model of its form without adapters and without weights in 4 bits, to save merged weights by; itself, where it has neither."""
    if not has_adapters(model):
        return model
    with torch.device("meta"):
        plain = type(model)(_unquantised(model.config))
    plain.generation_config = model.generation_config
    return plain.to(next(p.dtype for p in model.parameters() if p.requires_grad))


def _unquantised(config: Any) -> Any:
    """A copy that claims no weights in 4 bits: what is saved and pushed has none."""
    config = copy.deepcopy(config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


def complete_folder(folder: Path, tokenizer: Any, *, template: str | dict[str, str] | None) -> None:
    """Writes what `save_model` writes besides weights and config into a folder that holds these already, in place of what is there."""
    _generation_config(described(str(folder)), tokenizer).save_pretrained(folder)
    with _replaced(tokenizer, "chat_template", template):
        tokenizer.save_pretrained(folder)


def _generation_config(model: Any, tokenizer: Any) -> GenerationConfig:
    ends = sorted(end_token_ids(model, tokenizer))
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ends[0] if len(ends) == 1 else ends or None,
        pad_token_id=tokenizer.pad_token_id,
    )


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
