"""Models without weights: from a folder's config.json, or from the public configs of a few by name; no hub is asked for these."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from nrt.config import Config, LoraConfig, MarkersConfig
from nrt.errors import InputError, first_line
from nrt.models import Adapters, add_adapters, add_markers, load_tokenizer, quiet
from nrt.models.attention import Unsupported, carry

LLAMA_3 = {"model_type": "llama", "vocab_size": 128_256, "num_key_value_heads": 8, "max_position_embeddings": 131_072, "rope_theta": 5e5}

NAMED: dict[str, dict[str, Any]] = {
    "qwen2.5-0.5b": {"model_type": "qwen2", "vocab_size": 151_936, "num_key_value_heads": 2, "max_position_embeddings": 32_768}
    | {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14, "rope_theta": 1e6}
    | {"tie_word_embeddings": True},
    "llama-3.2-1b": LLAMA_3
    | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32, "head_dim": 64}
    | {"tie_word_embeddings": True},
    "llama-3.2-3b": LLAMA_3
    | {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24, "head_dim": 128}
    | {"tie_word_embeddings": True},
    "mistral-7b-v0.3": {"model_type": "mistral", "vocab_size": 32_768, "num_key_value_heads": 8, "max_position_embeddings": 32_768}
    | {"hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32, "head_dim": 128}
    | {"sliding_window": None, "rope_theta": 1e6},
    "llama-3.1-8b": LLAMA_3
    | {"hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32, "head_dim": 128},
    "llama-3.1-70b": LLAMA_3
    | {"hidden_size": 8192, "intermediate_size": 28_672, "num_hidden_layers": 80, "num_attention_heads": 64, "head_dim": 128},
}
"""The paper's three models (Section 4.1), two smaller ones and a larger one, as their config.json on the hub has them."""


def empty_model(config: Config) -> Any:
    """The run's model on the meta device, in its type, with rows for the markers and adapters, ready for packed rows.

    Raises InputError: no model, one that neither the table, nor a folder, nor the hub has, and one whose rows cannot be packed.
    """
    given: Any = (config.model, config.dtype, config.markers, config.lora, config.trust_remote_code)
    return _empty(*given)


@lru_cache
def _empty(name: str | None, dtype: str, markers: MarkersConfig, lora: LoraConfig, trust_remote_code: bool) -> Any:
    shape = shape_of(name, trust_remote_code)
    with torch.device("meta"), quiet():
        model = AutoModelForCausalLM.from_config(shape, dtype=getattr(torch, dtype), trust_remote_code=trust_remote_code).eval()
    if name and (Path(name).expanduser() / "tokenizer.json").is_file():
        add_markers(model, load_tokenizer(name, trust_remote_code), markers)
    else:
        rows = model.get_input_embeddings().weight.shape[0] + (markers.start is not None) + 1
        model.resize_token_embeddings(rows, pad_to_multiple_of=None, mean_resizing=False)
    if lora.rank:
        with torch.device("meta"):
            add_adapters(model, Adapters(lora.rank, lora.alpha or 1.0, lora.targets), range(markers.start is None, 2))
    try:
        carry(model)
    except Unsupported as error:
        raise InputError(f"{type(model).__name__} cannot be planned: {error}, so rows are padded, which nrt plan does not count") from None
    return model


def shape_of(name: str | None, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The config of a folder, of a name in `NAMED` (with or without its owner), or of the hub."""
    if name is None:
        raise InputError(f"no model given; set model=FOLDER, or one of {', '.join(NAMED)}")
    known = NAMED.get(name.rpartition("/")[2].lower())
    if known and not Path(name).expanduser().is_dir():
        values = dict(known)
        return AutoConfig.for_model(values.pop("model_type"), **values)
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        first = first_line(error)
        raise InputError(f"model {name}: no config.json to plan by: {first}; give a folder, or one of {', '.join(NAMED)}") from error
