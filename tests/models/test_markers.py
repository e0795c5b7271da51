"""The markers' new rows start from the configured tokens, and no other row changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from nrt.config import MarkersConfig
from nrt.errors import InputError
from nrt.models import add_markers, check_markers, end_token_ids
from tests.tiny import EOS, tiny_model, tiny_tokenizer

MARKERS = MarkersConfig(
    start="<|think_start|>", end="<|think_end|>", start_from=".\n", end_from="eos"
)
PROBE = torch.tensor([[5, 6, 7, 8]])


def build(kind: str = "bytes", *, tied: bool = False, spare: int = 0) -> Any:
    """Return (model, tokenizer); the embedding has `spare` rows more than the tokenizer tokens."""
    tokenizer = tiny_tokenizer(kind)
    model = tiny_model("llama", vocab_size=len(tokenizer) + spare, tie_word_embeddings=tied)
    return model, tokenizer


def rows(model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    input_rows = model.get_input_embeddings().weight.detach().clone()
    return input_rows, model.get_output_embeddings().weight.detach().clone()


@pytest.mark.parametrize("spare", [0, 1, 2, 5])
@pytest.mark.parametrize("tied", [False, True])
def test_rows_start_from_the_mean_of_the_text(tied: bool, spare: int) -> None:
    model, tokenizer = build(tied=tied, spare=spare)
    before, known = rows(model), len(tokenizer)
    logits = model(input_ids=PROBE).logits
    text = tokenizer(".\n").input_ids
    assert len(text) == 2  # so that a mean is taken
    assert add_markers(model, tokenizer, MARKERS)
    start, end = tokenizer.convert_tokens_to_ids([MARKERS.start, MARKERS.end])
    assert (start, end) == (known, known + 1)
    for old, new in zip(before, rows(model), strict=True):
        assert len(new) == known + max(2, spare)
        torch.testing.assert_close(new[start], old[text].mean(0))
        torch.testing.assert_close(new[end], old[EOS])
        assert torch.equal(new[:known], old[:known])
    assert torch.equal(model(input_ids=PROBE).logits[..., :known], logits[..., :known])
    assert model.config.vocab_size == known + max(2, spare)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert (embedding.weight is head.weight) == tied


def test_output_bias_starts_from_the_same_tokens() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model("phi", vocab_size=len(tokenizer))
    bias = torch.nn.init.normal_(model.get_output_embeddings().bias).detach().clone()
    add_markers(model, tokenizer, MARKERS)
    text = tokenizer(".\n").input_ids
    expected = torch.stack([bias[text].mean(), bias[EOS]])
    torch.testing.assert_close(model.get_output_embeddings().bias[-2:], expected)


def test_mean_is_over_the_tokens_known_before() -> None:
    model, tokenizer = build(spare=5)  # spare rows hold noise
    before, known = rows(model), len(tokenizer)
    add_markers(model, tokenizer, MarkersConfig(start_from="mean", end_from="mean"))
    for old, new in zip(before, rows(model), strict=True):
        torch.testing.assert_close(new[known], old[:known].mean(0))
        torch.testing.assert_close(new[known + 1], old[:known].mean(0))


@pytest.mark.parametrize("kind", ["bytes", "unigram", "words"])
def test_markers_are_single_special_tokens(kind: str) -> None:
    model, tokenizer = build(kind)
    add_markers(model, tokenizer, MarkersConfig())
    check_markers(tokenizer, MarkersConfig())
    start, end = tokenizer.convert_tokens_to_ids([MARKERS.start, MARKERS.end])
    ids = tokenizer(f"we{MARKERS.start}that{MARKERS.end}", add_special_tokens=False).input_ids
    assert ids.count(start) == ids.count(end) == 1
    assert MARKERS.start not in tokenizer.decode(ids, skip_special_tokens=True)


def test_the_dummy_prefix_is_not_part_of_the_text() -> None:
    model, tokenizer = build("unigram")
    prefix, newline = tokenizer("\n").input_ids
    assert tokenizer.convert_ids_to_tokens([prefix, newline]) == ["▁", "\n"]
    old = rows(model)[0]
    add_markers(model, tokenizer, MarkersConfig())
    torch.testing.assert_close(rows(model)[0][-1], old[newline])


def test_existing_markers_keep_their_rows() -> None:
    model, tokenizer = build()
    add_markers(model, tokenizer, MARKERS)
    before = rows(model)
    assert not add_markers(model, tokenizer, MARKERS)
    other = MarkersConfig(start=MARKERS.start, end="<|answer|>", end_from="eos")
    assert add_markers(model, tokenizer, other)  # only END is new
    for old, new in zip(before, rows(model), strict=True):
        assert len(new) == len(old) + 1
        assert torch.equal(new[:-1], old)


def test_a_token_without_a_row_gets_one() -> None:
    model, tokenizer = build()
    tokenizer.add_tokens([MARKERS.start, MARKERS.end], special_tokens=True)
    old = rows(model)[0]
    assert add_markers(model, tokenizer, MARKERS)
    torch.testing.assert_close(rows(model)[0][-1], old[EOS])


@pytest.mark.parametrize(
    ("markers", "message"),
    [
        (MarkersConfig(start_from="   "), "'   '"),
        (MarkersConfig(end_from="zebra"), "'zebra'"),  # not in the vocabulary
    ],
)
def test_bad_settings(markers: MarkersConfig, message: str) -> None:
    model, tokenizer = build("words")
    before = len(tokenizer)
    with pytest.raises(InputError, match=message):
        add_markers(model, tokenizer, markers)
    assert len(tokenizer) == before


def test_check_markers_names_what_is_absent() -> None:
    with pytest.raises(InputError, match=r"no token <\|think_start\|> and no <\|think_end\|>"):
        check_markers(tiny_tokenizer(), MarkersConfig())


def test_end_tokens_of_every_source() -> None:
    model, tokenizer = build()
    model.config.eos_token_id = [EOS, 11]
    model.generation_config.eos_token_id = [12, 13]
    assert end_token_ids(model, tokenizer) == {EOS, 11, 12, 13}
    model.config.eos_token_id, model.generation_config.eos_token_id = 14, None
    assert end_token_ids(model, tokenizer) == {EOS, 14}
    tokenizer.eos_token = None
    model.config.eos_token_id = None
    assert end_token_ids(model, tokenizer) == set()
