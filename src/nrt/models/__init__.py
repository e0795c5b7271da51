"""Hugging Face models: load, add the two markers, save."""

from nrt.models.load import described, load_model, load_tokenizer, pick_device, quiet
from nrt.models.markers import add_marker_tokens, add_markers, check_markers, end_token_ids
from nrt.models.save import save_model

__all__ = [
    "add_marker_tokens",
    "add_markers",
    "check_markers",
    "described",
    "end_token_ids",
    "load_model",
    "load_tokenizer",
    "pick_device",
    "quiet",
    "save_model",
]
