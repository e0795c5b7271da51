"""Arguments that the forward of a causal language model must take."""

from __future__ import annotations

import inspect

from torch import nn

from nrt.errors import InputError

REQUIRED_ARGUMENTS = ("attention_mask", "position_ids", "logits_to_keep")
"""Arguments beside the KV cache that a model's forward must accept.

They make left-padded batches exact and restrict the output head to the tokens that need it.
"""

CACHE_ARGUMENTS = ("cache", "past_key_values")
"""Names of the KV cache in transformers from 5.24 on, and before."""


def cache_argument(model: nn.Module) -> str | None:
    """Return the name under which the model's forward takes a KV cache; None if it takes none."""
    accepted = inspect.signature(model.forward).parameters
    return next((name for name in CACHE_ARGUMENTS if name in accepted), None)


def check_forward(name: str, model: nn.Module) -> None:
    """Raise InputError if the forward of the model `name` lacks an argument that nrt gives."""
    accepted = inspect.signature(model.forward).parameters
    absent = [argument for argument in REQUIRED_ARGUMENTS if argument not in accepted]
    if cache_argument(model) is None:
        absent.append(f"KV cache ({' or '.join(CACHE_ARGUMENTS)})")
    if absent:
        raise InputError(
            f"model {name}: the forward of {type(model).__name__} takes no "
            f"{' and no '.join(absent)}, so it cannot be trained on padded batches; "
            "use a decoder such as Llama, Mistral, Qwen or Gemma"
        )
