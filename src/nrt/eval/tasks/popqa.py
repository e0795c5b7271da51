"""PopQA: an answer is right if it names the object.

Paper: Mallen et al. 2023, arXiv 2212.10511.
"""

from __future__ import annotations

from collections.abc import Sequence

from nrt.eval.tasks import Doc


def process_results(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    """Search the answer for any of the names: unchanged, in lower case, or capitalized.

    `str.capitalize` makes the first letter upper case and all others lower case.
    """
    (answer,) = results
    forms: list[str] = []
    for name in doc["possible_answers"]:
        forms += [name, name.lower(), name.capitalize()]
    return {"score": float(any(form in answer for form in forms))}
