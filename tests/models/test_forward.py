"""Arguments that a model's forward must take."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from nrt.errors import InputError
from nrt.models.attention import softcap_attention
from nrt.models.forward import CACHE_ARGUMENTS, cache_argument, check_forward


class Newer(nn.Module):
    """As in transformers from 5.24 on, where the old name is still accepted with a warning."""

    def forward(
        self, input_ids, attention_mask, position_ids, cache=None, logits_to_keep=0, **rest
    ):
        return input_ids


class Older(nn.Module):
    """As in transformers before 5.24, and in models that bring their own code."""

    def forward(self, input_ids, attention_mask, position_ids, past_key_values, logits_to_keep):
        return input_ids


class Stateless(nn.Module):
    def forward(self, input_ids, attention_mask):
        return input_ids


def test_the_caches_name_is_that_of_the_forward():
    assert cache_argument(Newer()) == "cache"
    assert cache_argument(Older()) == "past_key_values"
    assert cache_argument(Stateless()) is None


def test_what_a_forward_lacks_is_named():
    check_forward("m", Newer())
    check_forward("m", Older())
    missing = r"no position_ids and no logits_to_keep and no KV cache \(cache or past_key_values\)"
    with pytest.raises(InputError, match=missing):
        check_forward("m", Stateless())


def test_the_installed_transformers_takes_a_cache():
    config = LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert cache_argument(model) in CACHE_ARGUMENTS
    check_forward("m", model)


def test_softcap_attention_without_a_mask_is_causal_to_the_last_query():
    """transformers gives no mask to one query after a cache, which sees all keys."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 4, 8, generator=generator) for _ in range(3))
    whole = softcap_attention(q, k, v, None, 0.3, 5.0)
    last = softcap_attention(q[:, :, -1:], k, v, None, 0.3, 5.0)
    torch.testing.assert_close(last, whole[:, :, -1:])
