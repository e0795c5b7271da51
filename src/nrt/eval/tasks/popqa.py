"""PopQA (Mallen et al. 2023, arXiv 2212.10511): whether an answer names the object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Doc = Mapping[str, Any]


def process_results(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    """Any of the names, as it is, in small letters or with a capital first (and no other), anywhere in the answer."""
    (answer,) = results
    return {"score": float(any(form in answer for name in doc["possible_answers"] for form in (name, name.lower(), name.capitalize())))}
