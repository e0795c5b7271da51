"""Initial embedding and output rows of new markers START and END.

A copied row makes the model read the marker like the token it was copied from. START copies the
token that changes the model's next-token distribution least. Where START copies a line break and
the prompt ends with one, the model reads a paragraph break and writes something else than without
START: on SmolLM2-135M the share of traces with an equation fell from 69 to 11 % (docs/methods.md,
"Initial rows of the markers"). So each candidate is tried on prompts of the data.

END is not chosen by trial. It is also an action, sampled wherever the token it copies would be. Of
the candidates the space changes the answers least, and with it traces ended after their first word.
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
"""Nats by which START's logit is below that of the copied token, to keep START out of traces."""

PAIRS = 4
"""Number of pairs on which candidates are tried."""

PROMPT_TOKENS = 128
"""Number of last prompt tokens that are read."""

ANSWER_TOKENS = 16
"""Number of first answer tokens that are read, and of last prompt tokens for START's logit."""

LogProbs = Callable[[Sequence[int], int], Tensor]
"""(ids, n) → log-probabilities [n, V] of the next token after each of the last n ids.

The markers have probability 0.
"""


@dataclass(frozen=True)
class MarkerRow:
    """Source of a marker's new row, and how much the marker changes the model's distributions."""

    marker: str  # its text
    source: str  # the text that the row was copied from, or "eos", "mean"
    divergence: float  # KL(without marker ‖ with marker), nats a token, mean over the pairs

    def __str__(self) -> str:
        return (
            f"{self.marker} is new and starts from the row of {self.source!r}: "
            f"predictions change by {self.divergence:.2f} nats a token (KL)"
        )


@torch.no_grad()
def initialize_marker_rows(
    model: Any,
    tokenizer: Any,
    markers: MarkersConfig,
    new: Collection[str],
    pairs: Iterable[Pair],
    start_id: int | None,
    end_id: int,
) -> list[MarkerRow]:
    """Set the rows of new markers by their effect on the model, and return what was set.

    Deterministic. With `start_from=auto` START copies the candidate with the least divergence;
    other settings keep the row that `add_markers` made. Then START is made less likely in the
    output.

    The divergence of START is that of the next token after the prompt; the divergence of END, that
    of the answer tokens after the null trace.

    Args:
        new: texts of the markers whose rows are new (`add_markers` returns them).
        pairs: pairs of the data, of which the first PAIRS are used.
        start_id: id of START; None if the layout has none.
        end_id: id of END.
    """
    if not new:
        return []
    pairs = list(islice(pairs, PAIRS))
    prompts = [pair.prompt_ids[-PROMPT_TOKENS:] for pair in pairs]
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
            candidates = _candidates(tokenizer, logps, prompts)
            source = tokenizer.decode([_copy_best_row(model, start_id, candidates, divergence)])
        _make_unlikely(model, start_id, prompts)
        rows.append(MarkerRow(str(markers.start), source, divergence()))
    if markers.end in new:
        opener = () if start_id is None else (start_id,)
        contexts = [(*prompt, *opener) for prompt in prompts]
        answers = [pair.answer_ids[:ANSWER_TOKENS] for pair in pairs]
        divergence_of_end = _end_divergence(logps, contexts, answers, end_id)
        rows.append(MarkerRow(markers.end, markers.end_from, divergence_of_end))
    return rows


def _candidates(tokenizer: Any, logps: LogProbs, prompts: Sequence[tuple[int, ...]]) -> list[int]:
    """Return the tokens that START may copy.

    These are the line break and the space where each is a single token, the token that most often
    follows the prompts, and the token that most often ends them.
    """
    candidates = []
    for text in ("\n", " "):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
            candidates.append(ids[0])
    following = Counter(int(logps(prompt, 1)[0].argmax()) for prompt in prompts)
    last = Counter(prompt[-1] for prompt in prompts)
    candidates += [following.most_common(1)[0][0], last.most_common(1)[0][0]]
    return list(dict.fromkeys(candidates))


def _copy_best_row(
    model: Any, start_id: int, candidates: Sequence[int], divergence: Callable[[], float]
) -> int:
    """Copy the row of the candidate with the least divergence to START; return the candidate."""
    divergences: dict[int, float] = {}
    for candidate in candidates:
        _copy_row(model, candidate, start_id)
        divergences[candidate] = divergence()
    best = min(divergences, key=lambda candidate: divergences[candidate])
    _copy_row(model, best, start_id)
    return best


def _start_divergence(
    logps: LogProbs, prompts: Sequence[tuple[int, ...]], start_id: int
) -> Callable[[], float]:
    """Return a function that measures the effect of START with its row at the time of the call.

    The function returns the mean KL, in nats, from the distribution of the first token after a
    prompt to the one after `prompt START`.
    """
    logps_without = [logps(prompt, 1) for prompt in prompts]

    def divergence() -> float:
        logps_with = [logps((*prompt, start_id), 1) for prompt in prompts]
        return _mean_kl(logps_without, logps_with)

    return divergence


def _end_divergence(
    logps: LogProbs,
    contexts: Sequence[tuple[int, ...]],
    answers: Sequence[tuple[int, ...]],
    end_id: int,
) -> float:
    """Return the mean KL, in nats, between distributions of answer tokens without and with END.

    `contexts` are `prompt START` of each answer.
    """
    logps_without, logps_with = [], []
    for context, answer in zip(contexts, answers, strict=True):
        logps_without.append(logps((*context, *answer[:-1]), len(answer)))
        logps_with.append(logps((*context, end_id, *answer[:-1]), len(answer)))
    return _mean_kl(logps_without, logps_with)


def _mean_kl(p: Sequence[Tensor], q: Sequence[Tensor]) -> float:
    """Return KL(p ‖ q) in nats, averaged over tokens and then over pairs.

    Each tensor holds log-probabilities [n, V]. A token of probability 0 adds nothing.
    """
    values = []
    for logp_nV, logq_nV in zip(p, q, strict=True):
        terms = (logp_nV.exp() * (logp_nV - logq_nV)).nan_to_num(0.0)
        values.append(terms.sum(-1).mean())
    return float(torch.stack(values).mean())


def _copy_row(model: Any, source_id: int, marker_id: int) -> None:
    for table in vocabulary_tables(model):
        table[marker_id] = table[source_id]


def _make_unlikely(model: Any, start_id: int, prompts: Sequence[tuple[int, ...]]) -> None:
    """Lower START's logit by UNLIKELY nats.

    Where the output head has a bias, that is lowered; otherwise the row moves against the mean
    hidden state of the prompts.

    START is predicted once, after the prompt, which the format term teaches. A copied row would
    make it as likely as its source everywhere: it appeared in 4 to 7 % of the miniature's traces
    and in most of SmolLM2's.
    """
    head = model.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        head.bias[start_id] -= UNLIKELY
        return
    hidden: list[Tensor] = []
    hook = head.register_forward_pre_hook(
        lambda module, inputs: hidden.append(inputs[0][0].float())
    )
    try:
        logit = _mean_logit(model, start_id, prompts)
        mean_hidden = torch.cat(hidden).mean(0)
        step = mean_hidden / mean_hidden.square().sum()
        row = head.weight[start_id].float().clone()
        head.weight[start_id] = (row - UNLIKELY * step).to(head.weight.dtype)
        decrease = logit - _mean_logit(model, start_id, prompts)
        if decrease > 0:  # a head may scale its logits, so the decrease is not yet UNLIKELY
            scaled_step = UNLIKELY * step * (UNLIKELY / decrease)
            head.weight[start_id] = (row - scaled_step).to(head.weight.dtype)
    finally:
        hook.remove()


def _mean_logit(model: Any, token_id: int, prompts: Sequence[tuple[int, ...]]) -> float:
    """Return the token's logit, averaged over the last ANSWER_TOKENS tokens of each prompt."""
    logits = []
    for prompt in prompts:
        inputs = torch.tensor([prompt], device=model.device)
        output = model(
            input_ids=inputs, use_cache=False, logits_to_keep=min(ANSWER_TOKENS, len(prompt))
        )
        logits.append(output.logits[0, :, token_id].float())
    return float(torch.cat(logits).mean())
