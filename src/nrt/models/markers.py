"""The markers START and END as tokens of a model, and the tokens that end a turn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from tokenizers import AddedToken
from torch import Tensor
from transformers import PreTrainedModel

from nrt.config import MarkersConfig
from nrt.errors import InputError


@torch.no_grad()
def add_markers(model: PreTrainedModel, tokenizer: Any, markers: MarkersConfig) -> tuple[str, ...]:
    """Add the markers that have no token or no embedding row yet, and return their texts.

    The vocabulary grows by the new tokens only, because unused rows could be sampled; spare rows of
    the embedding are used first. A marker that has a row keeps it.

    New input rows, output rows and output biases start from the mean over the tokens of the text in
    `markers.start_from` or `markers.end_from`. `mean` is the mean over all tokens known before.
    With `auto`, `initialize_marker_rows` sets START's row later. Raises InputError for a text
    without tokens.
    """
    if markers.end_from == "auto":
        raise InputError(
            "markers.end_from=auto: only START's row is chosen by trial; "
            "give a text that ends a trace, such as '\\n'"
        )
    vocabulary = tokenizer.get_vocab()
    rows = model.get_input_embeddings().weight.shape[0]
    source_texts = {markers.start: markers.start_from, markers.end: markers.end_from}
    new = {
        text: source_text
        for text, source_text in source_texts.items()
        if text is not None and vocabulary.get(text, rows) >= rows
    }
    source_ids = []
    for source_text in new.values():
        ids = _source_ids(tokenizer, source_text, vocabulary)
        source_ids.append([i for i in ids if i < rows])
    # also makes a token special that the tokenizer has as an ordinary one (Qwen3's <think>)
    add_marker_tokens(tokenizer, markers)
    if not new:
        return ()
    new_ids = tokenizer.convert_tokens_to_ids(list(new))
    if max(new_ids) >= rows:
        model.resize_token_embeddings(
            max(new_ids) + 1, pad_to_multiple_of=None, mean_resizing=False
        )
    for table in vocabulary_tables(model):
        means = [table[ids].float().mean(0) for ids in source_ids]
        for i, mean in zip(new_ids, means, strict=True):
            table[i] = mean.to(table.dtype)
    return tuple(new)


def add_marker_tokens(tokenizer: Any, markers: MarkersConfig) -> None:
    """Add the markers that the tokenizer lacks.

    Raises InputError if END is the end-of-turn token.
    """
    if markers.end == tokenizer.eos_token:
        raise InputError(
            f"markers.end={markers.end} is the token that ends a turn, "
            "so no answer could follow a trace; give another text"
        )
    texts = [text for text in (markers.start, markers.end) if text is not None]
    tokens = [AddedToken(text, special=True, normalized=False) for text in texts]
    tokenizer.add_tokens(tokens, special_tokens=True)


def check_markers(tokenizer: Any, markers: MarkersConfig) -> None:
    """Raise InputError unless each marker is a token of the tokenizer.

    For a model to resume, to chat with or to evaluate.
    """
    missing = missing_markers(tokenizer, markers)
    if missing:
        raise InputError(
            f"the tokenizer has no token {' and no '.join(missing)}; "
            "set markers.start and markers.end to the markers that the model was trained with"
        )


def missing_markers(tokenizer: Any, markers: MarkersConfig) -> list[str]:
    """Return the markers that are no tokens of the tokenizer."""
    vocabulary = tokenizer.get_vocab()
    texts = [text for text in (markers.start, markers.end) if text is not None]
    return [text for text in texts if text not in vocabulary]


def end_token_ids(model: PreTrainedModel, tokenizer: Any) -> frozenset[int]:
    """Return all tokens that end a turn: those of tokenizer, config and generation config."""
    # a multimodal config has another config for its text model
    text_config = model.config.get_text_config()
    owners = (tokenizer, text_config, model.config, model.generation_config)
    ids: set[int] = set()
    for owner in owners:
        ids.update(_as_ids(getattr(owner, "eos_token_id", None)))
    return frozenset(ids)


def vocabulary_tables(model: Any) -> list[Tensor]:
    """Return the tensors with a row for each token.

    These are input embeddings, output embeddings (the same tensor if tied) and the output bias.
    """
    head = model.get_output_embeddings()
    embeddings = model.get_input_embeddings().weight
    tables = [embeddings, getattr(head, "weight", None), getattr(head, "bias", None)]
    return [table for table in tables if isinstance(table, Tensor)]


def _source_ids(tokenizer: Any, source_text: str, vocabulary: Mapping[str, int]) -> list[int]:
    """Return the ids whose rows a marker starts from.

    `vocabulary` is that of the tokenizer before the markers are added.
    """
    if source_text in ("mean", "auto"):  # auto: provisional, `initialize_marker_rows` replaces it
        return sorted(vocabulary.values())
    if source_text == "eos":
        if tokenizer.eos_token_id is None:
            raise InputError(
                "the tokenizer has no eos token to start a marker from; "
                "set markers.start_from, markers.end_from to a text"
            )
        return [tokenizer.eos_token_id]
    ids = tokenizer(source_text, add_special_tokens=False).input_ids
    if len(ids) > 1 and tokenizer.convert_ids_to_tokens(ids[0]) == "▁":
        ids = ids[1:]  # SentencePiece's dummy prefix is not part of the text
    if not ids or set(ids) == {tokenizer.unk_token_id}:
        raise InputError(
            f"the text {source_text!r} that a marker should start from has no tokens; "
            "set markers.start_from or markers.end_from to eos"
        )
    return ids


def _as_ids(ids: int | Iterable[int] | None) -> Iterable[int]:
    if ids is None:
        return ()
    return (ids,) if isinstance(ids, int) else ids
