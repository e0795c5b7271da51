"""The miniature's own metrics in a run: whether the traces that help are gaining ground.

Both walks are won or lost in a race. The answer term, trained on useless traces, wears down what the base reads in a good one; unless
good traces multiply first, their advantage turns negative and they vanish. So success shows by step 40–60 in three numbers a family.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from nrt.types import Pair, Trace


class Group(Protocol):
    """All traces of one prompt, scored."""

    @property
    def pair(self) -> Pair: ...
    @property
    def traces(self) -> Sequence[Trace]: ...  # K of them
    @property
    def logp_KT(self) -> Tensor: ...  # answer tokens' log-probabilities after each trace, nats
    @property
    def advantage_K(self) -> Tensor: ...


class Rollout(Protocol):
    """One step's groups."""

    @property
    def groups(self) -> Sequence[Group]: ...


def observe(rollout: Rollout, tokenizer: Any) -> dict[str, float]:
    """Metrics by family for one step, to be named as `observer` in a recipe.

    - `worked/<family>`: share of the traces that hold the gold work (a *worked* trace).
    - `p_key_given_worked/<family>`: mean probability of the answer's key after a worked trace.
    - `advantage_worked/<family>`: mean advantage of worked traces.

    The last two are absent when no trace was worked; families without gold work (recall) have no metrics.
    """
    worked: dict[str, list[bool]] = defaultdict(list)
    p_key: dict[str, list[float]] = defaultdict(list)
    advantage: dict[str, list[float]] = defaultdict(list)
    for group in rollout.groups:
        example = group.pair.example
        family, work = example.source or example.extra.get("family", ""), _words(example.extra.get("work", ""))
        if not work or not group.traces:  # SFT samples none
            continue
        hits = [work in _words(tokenizer.decode(list(trace.ids), skip_special_tokens=True)) for trace in group.traces]
        worked[family] += hits
        if any(hits):
            key = _key_place(group.pair, tokenizer)
            p_key[family] += group.logp_KT[torch.tensor(hits), key].exp().tolist()
            advantage[family] += group.advantage_K[torch.tensor(hits)].tolist()
    metrics = {"worked": worked, "p_key_given_worked": p_key, "advantage_worked": advantage}
    return {f"{name}/{family}": sum(values) / len(values) for name, families in metrics.items() for family, values in families.items()}


def _key_place(pair: Pair, tokenizer: Any) -> int:
    """Index of the key among the answer's tokens: its last occurrence, since a sum's digit may stand in the question part as well."""
    key = tokenizer.convert_tokens_to_ids(pair.example.extra["key"])
    return max(i for i, token in enumerate(pair.answer_ids) if token == key)


def _words(text: str) -> str:
    return " ".join(text.split())
