"""Initial values of the markers' new rows. START copies the token that changes the model's next-token distribution least.

A copied row is read like the token it comes from. Where START copies a line break and the prompt ends with one, the model reads a
paragraph break, and writes something else than it would have: on SmolLM2-135M the share of traces with an equation fell from 69 to
11 % (docs/methods.md, "What the markers start from"). So each candidate is tried on prompts of the data.

END is not chosen so. It is an action too, sampled where the token it copies would be; of the candidates the space changes the answers
least, and with it traces ended after their first word.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from nrt.config import MarkersConfig
from nrt.models.markers import vocabulary_tables
from nrt.types import Pair

UNLIKELY = 5.0
"""Nats by which START's logit lies below that of the token it was copied from, so that traces do not hold it."""
PAIRS, WINDOW, ANSWER = 4, 128, 16
"""Pairs that candidates are tried on, last tokens of a prompt and first tokens of an answer that are read."""

LogProbs = Callable[[Sequence[int], int], Tensor]
"""(ids, n) → log-probabilities [n, V] of what follows each of the last n ids, without the markers."""


@dataclass(frozen=True)
class MarkerRow:
    """A marker's new row, what it was copied from, and what that does to the model."""

    marker: str
    source: str
    divergence: float  # KL(without marker ‖ with marker), nats a token, mean over the pairs

    def __str__(self) -> str:
        return f"{self.marker} starts from {self.source!r}: {self.divergence:.2f} nats from the model without it"


@torch.no_grad()
def settle_marker_rows(
    model: Any, tokenizer: Any, markers: MarkersConfig, new: Collection[str], pairs: Iterable[Pair], start_id: int | None, end_id: int
) -> list[MarkerRow]:
    """Set the rows of new markers by what they do to the model on some pairs of the data; deterministic.

    `start_from=auto` takes the candidate with the least divergence; other settings keep the row that `add_markers` made. A new START
    becomes UNLIKELY in the output. The divergence of both markers is reported: START's from the next token after the prompt, END's from
    the answer after the null trace.

    Args:
        new: texts of the markers whose rows are new (`add_markers` returns them).
        pairs: the first PAIRS of them are read.
        start_id: id of START; None where the layout has none.
        end_id: id of END.
    """
    if not new:
        return []
    pairs = list(islice(pairs, PAIRS))
    prompts = [pair.prompt_ids[-WINDOW:] for pair in pairs]
    marker_ids = [token for token in (start_id, end_id) if token is not None]

    def logps(ids: Sequence[int], n: int) -> Tensor:
        inputs = torch.tensor([list(ids)], device=model.device)
        logits = model(input_ids=inputs, use_cache=False, logits_to_keep=n).logits[0].float()
        logits[:, marker_ids] = -torch.inf
        return logits.log_softmax(-1)

    rows = []
    if start_id is not None and markers.start in new:
        divergence = _start_divergence(logps, prompts, start_id)
        source = markers.start_from
        if source == "auto":
            best = _best_start(model, start_id, _candidates(tokenizer, logps, prompts), divergence)
            source = tokenizer.decode([best])
        _make_unlikely(model, start_id, prompts)
        rows.append(MarkerRow(str(markers.start), source, divergence()))
    if markers.end in new:
        opener = () if start_id is None else (start_id,)
        opened = [((*prompt, *opener), pair.answer_ids[:ANSWER]) for prompt, pair in zip(prompts, pairs, strict=True)]
        rows.append(MarkerRow(markers.end, markers.end_from, _end_divergence(logps, opened, end_id)))
    return rows


def _candidates(tokenizer: Any, logps: LogProbs, prompts: Sequence[tuple[int, ...]]) -> list[int]:
    """Tokens that START may copy: line break, space, what mostly follows the prompts, and what they mostly end with."""
    singles = [tokenizer(text, add_special_tokens=False).input_ids for text in ("\n", " ")]
    singles = [ids[0] for ids in singles if len(ids) == 1 and ids[0] != tokenizer.unk_token_id]
    following = Counter(int(logps(prompt, 1)[0].argmax()) for prompt in prompts)
    last = Counter(prompt[-1] for prompt in prompts)
    return list(dict.fromkeys([*singles, following.most_common(1)[0][0], last.most_common(1)[0][0]]))


def _best_start(model: Any, start_id: int, candidates: Sequence[int], divergence: Callable[[], float]) -> int:
    """Copy the row of each candidate to START, and last that of the one with the least divergence, which is returned."""
    divergences: dict[int, float] = {}
    for candidate in candidates:
        _copy_row(model, candidate, start_id)
        divergences[candidate] = divergence()
    best = min(divergences, key=lambda candidate: divergences[candidate])
    _copy_row(model, best, start_id)
    return best


def _start_divergence(logps: LogProbs, prompts: Sequence[tuple[int, ...]], start_id: int) -> Callable[[], float]:
    """KL of the next token's distribution after a prompt, without START against with it."""
    without = [logps(prompt, 1) for prompt in prompts]

    def divergence() -> float:
        pairs = zip(prompts, without, strict=True)
        return _mean_kl([(before, logps((*prompt, start_id), 1)) for prompt, before in pairs])

    return divergence


def _end_divergence(logps: LogProbs, opened: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], end_id: int) -> float:
    """KL of the distributions of an answer's tokens after `prompt START`, without END against with it."""
    without = [logps((*prompt, *answer[:-1]), len(answer)) for prompt, answer in opened]
    after = [logps((*prompt, end_id, *answer[:-1]), len(answer)) for prompt, answer in opened]
    return _mean_kl(list(zip(without, after, strict=True)))


def _mean_kl(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Mean over pairs of the mean over places of KL(p ‖ q) in nats; a token of probability 0 adds nothing."""
    values = [((p.exp() * (p - q)).nan_to_num(0.0).sum(-1)).mean() for p, q in pairs]
    return float(torch.stack(values).mean())


def _copy_row(model: Any, source_id: int, marker_id: int) -> None:
    for table in vocabulary_tables(model):
        table[marker_id] = table[source_id]


def _make_unlikely(model: Any, start_id: int, prompts: Sequence[tuple[int, ...]]) -> None:
    """Lower START's logit by UNLIKELY nats: by its bias where there is one, else along the mean hidden state of the prompts.

    START is predicted once, after the prompt, and the format term teaches that. A copied row alone would make it as likely as the
    token it comes from, everywhere: it stood in 4 to 7 % of the miniature's traces and in most of SmolLM2's.
    """
    head = model.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        head.bias[start_id] -= UNLIKELY
        return
    hidden: list[Tensor] = []
    catch = head.register_forward_pre_hook(lambda module, inputs: hidden.append(inputs[0][0].float()))
    try:
        before = _mean_logit(model, start_id, prompts)
        mean_hidden = torch.cat(hidden).mean(0)
        step = mean_hidden / mean_hidden.square().sum()
        row = head.weight[start_id].float().clone()
        head.weight[start_id] = (row - UNLIKELY * step).to(head.weight.dtype)
        fallen = before - _mean_logit(model, start_id, prompts)
        if fallen > 0:  # a head may scale its logits
            head.weight[start_id] = (row - UNLIKELY * step * (UNLIKELY / fallen)).to(head.weight.dtype)
    finally:
        catch.remove()


def _mean_logit(model: Any, token_id: int, prompts: Sequence[tuple[int, ...]]) -> float:
    """The token's mean logit over the last places of the prompts."""
    logits = []
    for prompt in prompts:
        inputs = torch.tensor([prompt], device=model.device)
        output = model(input_ids=inputs, use_cache=False, logits_to_keep=min(ANSWER, len(prompt)))
        logits.append(output.logits[0, :, token_id].float())
    return float(torch.cat(logits).mean())
