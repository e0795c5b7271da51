"""Hugging Face models: load, add the two markers, save."""

from nrt.models.load import load_model, pick_device, quiet
from nrt.models.markers import add_markers, check_markers, end_token_ids
from nrt.models.save import save_model

__all__ = ["add_markers", "check_markers", "end_token_ids", "load_model", "pick_device", "quiet", "save_model"]
