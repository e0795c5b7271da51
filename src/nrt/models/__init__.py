"""Hugging Face models: load, add the two markers, add adapters, save."""

from nrt.models.load import described, load_model, load_tokenizer, pick_device, quiet
from nrt.models.lora import Adapters, add_adapters, has_adapters, initial, merged, trained_rows
from nrt.models.marker_rows import MarkerRow, settle_marker_rows
from nrt.models.markers import absent_markers, add_marker_tokens, add_markers, check_markers, end_token_ids
from nrt.models.positions import position_limit
from nrt.models.save import complete_folder, save_config, save_model

__all__ = [
    "Adapters",
    "MarkerRow",
    "absent_markers",
    "add_adapters",
    "add_marker_tokens",
    "add_markers",
    "check_markers",
    "complete_folder",
    "described",
    "end_token_ids",
    "has_adapters",
    "initial",
    "load_model",
    "load_tokenizer",
    "merged",
    "pick_device",
    "position_limit",
    "quiet",
    "save_config",
    "save_model",
    "settle_marker_rows",
    "trained_rows",
]
