"""Memory that vLLM takes on the trainer's GPU. A run and its plan use the same functions."""

from __future__ import annotations

import math
from typing import Any

from nrt.config import Config
from nrt.models import position_limit

MARGIN = 0.07
"""Share of a GPU's memory that is left free: for gaps between the allocators' blocks, and for what
stays while vLLM sleeps, such as CUDA graphs and NCCL's buffers.
"""

VLLM_TOKENS = 16_384
"""Maximum tokens of one forward of vLLM on large GPUs (its max_num_batched_tokens)."""

BLOCK_TOKENS = 16
"""Tokens of a block of vLLM's KV cache. A sequence takes complete blocks."""

SPARE_BYTES = 2**30
"""Allocated outside torch by vLLM's kernels and libraries, and by versions that count CUDA graphs
into the share.
"""


def vllm_memory_share(used: int, total: int, *, sleeps: bool, needed: int) -> float:
    """Return the share of a GPU's `total` bytes for vLLM beside a trainer that keeps `used` bytes.

    vLLM gets the remaining memory if it sleeps during updates, else half of it, but not more than
    the bytes that it needs (`vllm_needed_bytes`): it would fill any share with empty KV cache.

    >>> vllm_memory_share(50, 100, sleeps=True, needed=90)
    0.43
    >>> vllm_memory_share(50, 100, sleeps=False, needed=90)
    0.21
    >>> vllm_memory_share(50, 100, sleeps=True, needed=30)
    0.3
    """
    left = (1 - MARGIN) * total - used
    share = math.floor(100 * (left if sleeps else left / 2) / total) / 100
    return min(share, math.ceil(100 * needed / total) / 100)


def vllm_needed_bytes(
    model_config: Any, config: Config, *, weights: int, width: int, prompts: int
) -> int:
    """Return the bytes that vLLM can use: weights, working memory, and the keys and values of all
    rows that it decodes together, each as long as the context.

    Requests with more rows wait their turn.

    Args:
        model_config: Hugging Face configuration of the model.
        weights: bytes of its weights in vLLM.
        width: bytes of a number in vLLM.
        prompts: prompts of a step in this process.
    """
    rows = min(config.sampler_rows, prompts * config.traces)
    blocks = -(-vllm_context(model_config, config) // BLOCK_TOKENS)
    cache = rows * blocks * BLOCK_TOKENS * cache_numbers(model_config) * width
    return weights + vllm_working_bytes(model_config, rows=rows, width=width) + cache + SPARE_BYTES


def vllm_working_bytes(model_config: Any, *, rows: int, width: int) -> int:
    """Return the bytes of the activations of vLLM's longest forward, and of the logits of `rows`.

    An MLP computes its gate and its input at once.
    """
    shape = model_config.get_text_config()
    inner = getattr(shape, "intermediate_size", None) or 4 * shape.hidden_size
    activations = width * VLLM_TOKENS * (2 * inner + 4 * shape.hidden_size)
    return activations + 8 * rows * shape.vocab_size


def cache_numbers(model_config: Any) -> int:
    """Return the numbers that a token's keys and values hold in all layers.

    An upper bound for models that cache less, such as those with latent or linear attention.
    """
    shape = model_config.get_text_config()
    heads = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
    width = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    return 2 * shape.num_hidden_layers * heads * width


def vllm_context(model_config: Any, config: Config) -> int:
    """Return vLLM's maximum sequence length in tokens: the setting, else all caps together, bounded
    by the model's positions.
    """
    caps = config.max_prompt_tokens + config.max_trace_tokens + config.max_answer_tokens
    needed = caps + 2  # START and END
    return config.vllm.context or min(needed, position_limit(model_config) or needed)
