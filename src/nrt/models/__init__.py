"""Hugging Face models: load them, add the markers START and END, add adapters, save them."""

from nrt.models.load import (
    hide_progress_bars,
    load_configs,
    load_model,
    load_tokenizer,
    pick_device,
)
from nrt.models.lora import (
    AdapterConfig,
    add_adapters,
    has_adapters,
    initial_weights,
    merged_parameters,
    trained_row_parameters,
)
from nrt.models.marker_rows import MarkerRow, initialize_marker_rows
from nrt.models.markers import (
    add_marker_tokens,
    add_markers,
    check_markers,
    end_token_ids,
    missing_markers,
)
from nrt.models.positions import position_limit
from nrt.models.save import complete_model_folder, save_config, save_model
from nrt.models.tensors import named_tensors

__all__ = [
    "AdapterConfig",
    "MarkerRow",
    "add_adapters",
    "add_marker_tokens",
    "add_markers",
    "check_markers",
    "complete_model_folder",
    "end_token_ids",
    "has_adapters",
    "hide_progress_bars",
    "initial_weights",
    "initialize_marker_rows",
    "load_configs",
    "load_model",
    "load_tokenizer",
    "merged_parameters",
    "missing_markers",
    "named_tensors",
    "pick_device",
    "position_limit",
    "save_config",
    "save_model",
    "trained_row_parameters",
]
