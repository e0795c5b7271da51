"""START and END as tokens of a model, and the tokens that end a turn."""

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
    """Adds the markers that have no token or no embedding row yet, starting from `start_from` and `end_from`; returns their texts.

    The vocabulary grows by the new tokens and no more (unused rows could be sampled); spare rows of the embedding are used first. A
    marker that is there keeps its row. Input and output rows, and the output bias, start from the mean over the tokens of the
    `_from` text; `mean` is over all tokens known before, and `auto` leaves the choice to `settle_marker_rows`. Raises InputError for a
    text that has no tokens.
    """
    known, rows = tokenizer.get_vocab(), model.get_input_embeddings().weight.shape[0]
    wanted = {markers.start: markers.start_from, markers.end: markers.end_from}
    if markers.end_from == "auto":
        raise InputError("markers.end_from=auto: only START's row is chosen by trial; give a text that ends a trace, such as '\\n'")
    missing = {text: source for text, source in wanted.items() if text is not None and known.get(text, rows) >= rows}
    sources = [[i for i in _source_ids(tokenizer, source, known) if i < rows] for source in missing.values()]
    add_marker_tokens(tokenizer, markers)  # also makes a token special that the tokenizer has as an ordinary one (Qwen3's <think>)
    if not missing:
        return ()
    ids = tokenizer.convert_tokens_to_ids(list(missing))
    if max(ids) >= rows:
        model.resize_token_embeddings(max(ids) + 1, pad_to_multiple_of=None, mean_resizing=False)
    for table in vocabulary_tables(model):
        starts = [table[source].float().mean(0) for source in sources]
        for i, start in zip(ids, starts, strict=True):
            table[i] = start.to(table.dtype)
    return tuple(missing)


def add_marker_tokens(tokenizer: Any, markers: MarkersConfig) -> None:
    """Adds the markers that the tokenizer does not know yet."""
    if markers.start == markers.end:
        raise InputError(f"markers.start and markers.end are both '{markers.start}'; give two different texts")
    if markers.end == tokenizer.eos_token:
        raise InputError(f"markers.end={markers.end} is the token that ends a turn, so no answer could follow a trace; give another text")
    texts = [text for text in (markers.start, markers.end) if text is not None]
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in texts], special_tokens=True)


def check_markers(tokenizer: Any, markers: MarkersConfig) -> None:
    """Raises InputError where a marker is no token of the tokenizer: of a model to resume, to chat with or to evaluate."""
    if absent := absent_markers(tokenizer, markers):
        raise InputError(
            f"the tokenizer has no token {' and no '.join(absent)}; set markers.start and markers.end to those it was trained with"
        )


def absent_markers(tokenizer: Any, markers: MarkersConfig) -> list[str]:
    """Those that are no tokens of the tokenizer."""
    known = tokenizer.get_vocab()
    return [text for text in (markers.start, markers.end) if text is not None and text not in known]


def end_token_ids(model: PreTrainedModel, tokenizer: Any) -> frozenset[int]:
    """Every token that ends a turn according to the tokenizer, the config or the generation config."""
    config, generation = model.config.get_text_config(), model.generation_config
    # multimodal configs have one for the text alone
    sources = (tokenizer, config, model.config, generation)
    return frozenset(i for source in sources for i in _as_ids(getattr(source, "eos_token_id", None)))


def _source_ids(tokenizer: Any, source: str, known: Mapping[str, int]) -> list[int]:
    """Ids whose rows a marker starts from; `known` is the vocabulary without the markers."""
    if source in ("mean", "auto"):  # auto: until the data are known
        return sorted(known.values())
    if source == "eos":
        if tokenizer.eos_token_id is None:
            raise InputError("the tokenizer has no eos token to start a marker from; set markers.start_from, markers.end_from to a text")
        return [tokenizer.eos_token_id]
    ids = tokenizer(source, add_special_tokens=False).input_ids
    if len(ids) > 1 and tokenizer.convert_ids_to_tokens(ids[0]) == "▁":
        ids = ids[1:]  # SentencePiece's dummy prefix is no part of the text
    if not ids or set(ids) == {tokenizer.unk_token_id}:
        raise InputError(
            f"the text {source!r} that a marker should start from is no token; set markers.start_from or markers.end_from to eos"
        )
    return ids


def vocabulary_tables(model: Any) -> list[Tensor]:
    """Tensors with a row for each token: input embeddings, output embeddings (the same tensor if tied) and the output bias."""
    head = model.get_output_embeddings()
    tables = [model.get_input_embeddings().weight, getattr(head, "weight", None), getattr(head, "bias", None)]
    return [table for table in tables if isinstance(table, Tensor)]


def _as_ids(ids: int | Iterable[int] | None) -> Iterable[int]:
    if ids is None:
        return ()
    return (ids,) if isinstance(ids, int) else ids
