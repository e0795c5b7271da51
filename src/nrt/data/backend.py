"""Edits of a backend tokenizer's JSON (`Tokenizer.to_str`), each a pure function of the parsed `spec`.

The format is that of https://github.com/huggingface/tokenizers, version "1.0".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer

Spec = Mapping[str, Any]


def build(spec: Spec) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(spec))


def renamed(spec: Spec, names: Mapping[str, str]) -> dict[str, Any]:
    """The tokenizer with tokens renamed wherever their string stands, ids unchanged; nothing is added around a text or cut.

    The renamed tokens are found in any neighbourhood and before normalisation: whoever writes a private name means the token.
    """
    tokens = [
        {**token, "content": names[token["content"]], "single_word": False, "normalized": False} if token["content"] in names else token
        for token in spec["added_tokens"]
    ]
    model = _renamed_model(spec["model"], names)
    return {**spec, "added_tokens": tokens, "model": model, "post_processor": None, "truncation": None, "padding": None}


def without_dummy_prefix(spec: Spec) -> dict[str, Any]:
    """The tokenizer that takes every text for a continuation: no space put before it, none taken away when decoding."""
    return {**spec, **{part: _no_prefix(spec[part]) for part in ("normalizer", "pre_tokenizer", "decoder")}}


def unknown_id(spec: Spec) -> int | None:
    """The id that the model gives to what it has no token for."""
    model = spec["model"]
    return model["unk_id"] if model["type"] == "Unigram" else model["vocab"].get(model.get("unk_token"))


def _renamed_model(model: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    if model["type"] == "Unigram":
        return {**model, "vocab": [[names.get(piece, piece), score] for piece, score in model["vocab"]]}
    result = {**model, "vocab": {names.get(token, token): token_id for token, token_id in model["vocab"].items()}}
    if model.get("unk_token") is not None:
        result["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if model["type"] == "BPE":  # a merge into a control token, or out of one, would be the way for text to become one
        skip = len(model["continuing_subword_prefix"] or "")
        result["merges"] = [[a, b] for a, b in model["merges"] if names.keys().isdisjoint((a, b, a + b[skip:]))]
    return result


def _no_prefix(node: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if node is None or node["type"] == "Prepend":
        return None
    if node["type"] == "Sequence":
        key = next(k for k in ("normalizers", "pretokenizers", "decoders") if k in node)
        return {**node, key: [child for inner in node[key] if (child := _no_prefix(inner)) is not None]}
    # In order: Metaspace, ByteLevel, and the decoder Strip (the normaliser of that name has other fields).
    off = {"prepend_scheme": "never", "add_prefix_space": False, "start": 0}
    return {**node, **{field: value for field, value in off.items() if field in node}}
