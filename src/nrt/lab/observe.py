"""Additional metrics of the miniature: do the traces that help become more frequent?

Success on both walks depends on timing. The answer term, trained after useless traces, erodes what
the base model reads in a good trace. Unless good traces multiply first, their advantage turns
negative and they vanish. So success shows by step 40–60 in three numbers per family.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from nrt.types import Pair, Trace


class ObservedGroup(Protocol):
    """All traces of one prompt, with their scores."""

    @property
    def pair(self) -> Pair: ...
    @property
    def traces(self) -> Sequence[Trace]: ...  # K of them
    @property
    def logp_KT(self) -> Tensor: ...  # the answer's log-probabilities after each trace, nats
    @property
    def advantage_K(self) -> Tensor: ...


class ObservedRollout(Protocol):
    """All groups of one step."""

    @property
    def groups(self) -> Sequence[ObservedGroup]: ...


def observe(rollout: ObservedRollout, tokenizer: Any) -> dict[str, float]:
    """Return metrics of one step by family; recipes name this function as `observer`.

    - `worked/<family>`: share of the traces that hold the gold work (*worked* traces).
    - `p_key_given_worked/<family>`: mean probability of the answer's key after a worked trace.
    - `advantage_worked/<family>`: mean advantage of worked traces.

    The last two are absent if no trace was worked. Families without gold work (recall) have no
    metrics.
    """
    worked: dict[str, list[bool]] = defaultdict(list)
    p_key: dict[str, list[float]] = defaultdict(list)
    advantage: dict[str, list[float]] = defaultdict(list)
    for group in rollout.groups:
        example = group.pair.example
        family = example.source or example.extra.get("family", "")
        work = _normalise_spaces(example.extra.get("work", ""))
        if not work or not group.traces:  # SFT samples no traces
            continue
        texts = [
            tokenizer.decode(list(trace.ids), skip_special_tokens=True) for trace in group.traces
        ]
        is_worked = [work in _normalise_spaces(text) for text in texts]
        worked[family] += is_worked
        if any(is_worked):
            worked_K = torch.tensor(is_worked)
            key = _key_index(group.pair, tokenizer)
            p_key[family] += group.logp_KT[worked_K, key].exp().tolist()
            advantage[family] += group.advantage_K[worked_K].tolist()
    metrics = {}
    for name, values_by_family in (
        ("worked", worked),
        ("p_key_given_worked", p_key),
        ("advantage_worked", advantage),
    ):
        for family, values in values_by_family.items():
            metrics[f"{name}/{family}"] = sum(values) / len(values)
    return metrics


def _key_index(pair: Pair, tokenizer: Any) -> int:
    """Return the index of the key among the answer tokens.

    It is the last occurrence, because the question part of an answer may contain the same digit.
    """
    key = tokenizer.convert_tokens_to_ids(pair.example.extra["key"])
    return max(i for i, token in enumerate(pair.answer_ids) if token == key)


def _normalise_spaces(text: str) -> str:
    return " ".join(text.split())
