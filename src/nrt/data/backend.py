"""Edits of a backend tokenizer's JSON (`Tokenizer.to_str`), as pure functions of the parsed spec.

The format is that of https://github.com/huggingface/tokenizers, version "1.0".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer

Spec = Mapping[str, Any]


def build_tokenizer(spec: Spec) -> Tokenizer:
    """Return the backend tokenizer of a spec."""
    return Tokenizer.from_str(json.dumps(spec))


def rename_tokens(spec: Spec, names: Mapping[str, str]) -> dict[str, Any]:
    """Return the spec with tokens renamed everywhere; ids stay the same.

    The new tokenizer adds no tokens around a text, and neither truncates nor pads. It matches a
    renamed token inside words and before normalisation, because a text that contains a private
    name always means the token.
    """
    added_tokens = []
    for token in spec["added_tokens"]:
        if token["content"] in names:
            content = names[token["content"]]
            token = {**token, "content": content, "single_word": False, "normalized": False}
        added_tokens.append(token)
    return {
        **spec,
        "added_tokens": added_tokens,
        "model": _rename_in_model(spec["model"], names),
        "post_processor": None,
        "truncation": None,
        "padding": None,
    }


def remove_dummy_prefix(spec: Spec) -> dict[str, Any]:
    """Return the spec of a tokenizer that treats every text as a continuation.

    It adds no space before a text, and removes none when it decodes.
    """
    parts = {
        name: _without_prefix(spec[name]) for name in ("normalizer", "pre_tokenizer", "decoder")
    }
    return {**spec, **parts}


def unknown_id(spec: Spec) -> int | None:
    """Return the id that the model gives to text without a token."""
    model = spec["model"]
    if model["type"] == "Unigram":
        return model["unk_id"]
    return model["vocab"].get(model.get("unk_token"))


def _rename_in_model(model: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    if model["type"] == "Unigram":
        vocab = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
        return {**model, "vocab": vocab}
    vocab = {names.get(token, token): token_id for token, token_id in model["vocab"].items()}
    result = {**model, "vocab": vocab}
    if model.get("unk_token") is not None:
        result["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if model["type"] == "BPE":
        # A merge into or out of a control token would let a text become that token.
        prefix_length = len(model["continuing_subword_prefix"] or "")
        result["merges"] = [
            [left, right]
            for left, right in model["merges"]
            if names.keys().isdisjoint((left, right, left + right[prefix_length:]))
        ]
    return result


def _without_prefix(node: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if node is None or node["type"] == "Prepend":
        return None
    if node["type"] == "Sequence":
        key = next(k for k in ("normalizers", "pretokenizers", "decoders") if k in node)
        children = [_without_prefix(child) for child in node[key]]
        return {**node, key: [child for child in children if child is not None]}
    # These fields belong to Metaspace, ByteLevel and the decoder Strip, in this order. The
    # normalizer Strip has other fields.
    off = {"prepend_scheme": "never", "add_prefix_space": False, "start": 0}
    return {**node, **{field: value for field, value in off.items() if field in node}}
