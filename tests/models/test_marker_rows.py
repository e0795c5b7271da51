"""Initial rows of new markers, and their effect on the model."""

import pytest
import torch

from nrt.config import MarkersConfig
from nrt.data import Chat
from nrt.errors import InputError
from nrt.models import add_markers, initialize_marker_rows
from nrt.models.marker_rows import UNLIKELY
from nrt.types import Example, Message, Pair
from tests.tiny import tiny_model, tiny_tokenizer


def initialized(*, tied: bool, architecture: str = "llama", **markers):
    """Return (model, tokenizer, chat, pairs, rows) after `initialize_marker_rows`."""
    tokenizer, config = tiny_tokenizer("bytes"), MarkersConfig(**markers)
    model = tiny_model(architecture, vocab_size=len(tokenizer), tie_word_embeddings=tied)
    new = add_markers(model, tokenizer, config)
    chat = Chat(tokenizer, config)
    pairs = []
    for question, answer in (
        ("where does bob live ?", "the home of bob is green ."),
        ("begin at 3 then add 4", "the final digit is 7 ."),
    ):
        messages = (Message("user", question),)
        example = Example("x:1", messages, answer)
        pairs.append(Pair(example, chat.encode_prompt(messages), chat.encode_answer(answer)))
    rows = initialize_marker_rows(model, tokenizer, config, new, pairs, chat.start_id, chat.end_id)
    return model, tokenizer, chat, pairs, rows


@torch.no_grad()
def next_logits(model, ids, chat):
    logits = model(torch.tensor([ids])).logits[0, -1].double()
    logits[[i for i in (chat.start_id, chat.end_id) if i is not None]] = -torch.inf
    return logits.log_softmax(-1)


def divergence(model, chat, pairs) -> float:
    """Return the KL of the next token's distribution after the prompt, without START to with it."""
    values = []
    for pair in pairs:
        p = next_logits(model, pair.prompt_ids, chat)
        q = next_logits(model, (*pair.prompt_ids, chat.start_id), chat)
        known = p > -torch.inf
        values.append((p[known].exp() * (p[known] - q[known])).sum())
    return float(torch.stack(values).mean())


@pytest.mark.parametrize("tied", [False, True])
def test_auto_takes_the_candidate_with_the_least_divergence(tied):
    model, tokenizer, chat, pairs, (start, end) = initialized(tied=tied)
    assert (start.marker, end.marker, end.source) == ("<|think_start|>", "<|think_end|>", "\n")
    assert start.divergence == pytest.approx(divergence(model, chat, pairs), rel=1e-4)
    ids = (*tokenizer("\n").input_ids, *tokenizer(" ").input_ids)
    divergences = {start.source: start.divergence}
    for text in {tokenizer.decode([i]) for i in ids}:
        *_, rows = initialized(tied=tied, start_from=text)
        divergences[text] = rows[0].divergence
    # with tied rows, making START unlikely also changes its input row, after the choice
    if not tied:
        assert start.divergence == pytest.approx(min(divergences.values()), rel=1e-4)
    assert f"{start.divergence:.2f} nats" in str(start)


@pytest.mark.parametrize(
    ("architecture", "tied"),
    [("llama", False), ("llama", True), ("gemma2", True), ("phi", False)],
)
def test_start_is_unlikely_inside_a_trace(architecture, tied):
    """START's mean logit over the prompts is UNLIKELY nats below that of the copied token.

    With an output bias (phi) the difference is exact.
    """
    model, tokenizer, chat, pairs, _ = initialized(
        tied=tied, architecture=architecture, start_from="\n"
    )
    (newline,) = tokenizer("\n", add_special_tokens=False).input_ids
    gaps = []
    for pair in pairs:
        with torch.no_grad():
            logits = model(torch.tensor([pair.prompt_ids])).logits[0, -16:]
        gaps.append(logits[:, newline] - logits[:, chat.start_id])
    mean = float(torch.cat(gaps).mean())
    # gemma2 caps its logits at 4
    bound = 0.5 * UNLIKELY if architecture == "gemma2" else 0.01 * UNLIKELY
    assert mean == pytest.approx(UNLIKELY, abs=bound)


def test_an_existing_marker_keeps_its_row():
    tokenizer, config = tiny_tokenizer("bytes"), MarkersConfig()
    model = tiny_model(vocab_size=len(tokenizer))
    add_markers(model, tokenizer, config)
    weight = model.get_input_embeddings().weight.clone()
    assert add_markers(model, tokenizer, config) == ()
    pair = Pair(Example("x:1", (), ""), (5, 6, 7), (8, 9))
    assert initialize_marker_rows(model, tokenizer, config, (), [pair], 300, 301) == []
    assert torch.equal(model.get_input_embeddings().weight, weight)


def test_without_start_only_end_is_initialized():
    *_, rows = initialized(tied=True, start=None)
    assert [row.marker for row in rows] == ["<|think_end|>"]


def test_end_is_not_chosen_by_trial():
    with pytest.raises(InputError, match="end_from=auto"):
        initialized(tied=True, end_from="auto")


def test_end_must_not_be_the_end_of_turn_token():
    with pytest.raises(InputError, match="the token that ends a turn"):
        initialized(tied=True, end="<eos>")
