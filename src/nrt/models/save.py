"""Save a model as an ordinary Hugging Face folder that appears complete or not at all."""

from __future__ import annotations

import copy
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from nrt.models.load import hide_progress_bars, load_configs
from nrt.models.lora import has_adapters, merged_parameters
from nrt.models.markers import end_token_ids
from nrt.system.files import atomic_folder


def save_model(
    model: PreTrainedModel,
    tokenizer: Any,
    folder: str | os.PathLike[str],
    *,
    template: str | dict[str, str] | None,
    end_ids: Collection[int] = (),
) -> None:
    """Save weights (safetensors), config, generation config and tokenizer in a folder.

    The generation config holds the bos, end and pad tokens only: sampling defaults of the base
    model would hide what was trained. The folder appears, or is replaced, by a rename, so no
    process sees it half-written. Model and tokenizer are left unchanged.

    Args:
        template: the saved chat template, or several by name.
        end_ids: tokens that end the template's turns; they join the model's end tokens. Base models
            often name another token than their template writes, and would not stop.
    """
    generation = _generation_config(model, tokenizer, end_ids)
    with (
        atomic_folder(Path(folder)) as new_folder,
        hide_progress_bars(),
        _replaced_attribute(model, "generation_config", generation),
        _replaced_attribute(tokenizer, "chat_template", template),
    ):
        if has_adapters(model):
            # One merged tensor at a time on the GPU, which may have no room for all.
            weights = {name: tensor.cpu() for name, tensor in merged_parameters(model)}
            _without_adapters(model).save_pretrained(new_folder, state_dict=weights)
        else:
            model.save_pretrained(new_folder)
        tokenizer.save_pretrained(new_folder)


def save_config(model: PreTrainedModel, folder: str | os.PathLike[str]) -> None:
    """Save only the config.json of the model as it is now, with rows for the markers."""
    config = _unquantised_config(model.config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)


def complete_model_folder(
    folder: Path,
    tokenizer: Any,
    *,
    template: str | dict[str, str] | None,
    end_ids: Collection[int] = (),
) -> None:
    """Add what `save_model` writes besides weights and config to a folder that holds these.

    Existing files are replaced.
    """
    _generation_config(load_configs(str(folder)), tokenizer, end_ids).save_pretrained(folder)
    with _replaced_attribute(tokenizer, "chat_template", template):
        tokenizer.save_pretrained(folder)


def _without_adapters(model: PreTrainedModel) -> Any:
    """Return a model on the meta device by which merged weights are saved.

    It has no adapters, no 4-bit weights and the type of the trained parameters.
    """
    with torch.device("meta"):
        plain = type(model)(_unquantised_config(model.config))
    plain.generation_config = model.generation_config
    return plain.to(next(p.dtype for p in model.parameters() if p.requires_grad))


def _unquantised_config(config: Any) -> Any:
    """Return a copy that declares no 4-bit weights: saved and pushed weights have none."""
    config = copy.deepcopy(config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


def _generation_config(model: Any, tokenizer: Any, end_ids: Collection[int]) -> GenerationConfig:
    ends = sorted({*end_token_ids(model, tokenizer), *end_ids})
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ends[0] if len(ends) == 1 else ends or None,
        pad_token_id=tokenizer.pad_token_id,
    )


@contextmanager
def _replaced_attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)
