"""The loss of every method in float64, written from the paper and the authors' papers alone. It shares no code with `nrt.objective`.

Rows in, loss and gradient out: token ids of prompts, traces and answers, and a model. Every row is scored by itself, without a cache and
without padding, and every formula stands here in its plainest form, one method after the other. On-policy: π_θ is π_old, ρ = 1.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch

WITHOUT_RATIO = (
    "verifree-original",
    "jlb-original",
    "jepo",
    "log-prob",
    "latro",
    "sdft",
    "opsd",
)
WITHOUT_FORMAT = ("rlpr-original", "rlp", "nover", *WITHOUT_RATIO)
SAMPLES_ANSWERS = ("rlpr-original", "rlvr", "nover", "sdft", "opsd")


@dataclass(frozen=True)
class Written:
    """Output of the policy after a prompt: a trace, whether it wrote END, and for some methods an answer of its own."""

    ids: tuple[int, ...]
    finished: bool
    reply: tuple[int, ...] | None = None
    reply_ended: bool = False
    capped: bool = False  # the trace's length reached the cap
    correct: bool | None = None


@dataclass(frozen=True)
class Question:
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    written: tuple[Written, ...]  # K of them; none for SFT


def loss(
    model: Any, method: str, questions: list[Question], *, start: int, end: int, N: int
) -> torch.Tensor:
    """L = (1/B) Σ_b (1/K) Σ_k (1/N) [trace + answer + format terms], float64, with a gradient in the model's parameters."""
    total = torch.zeros((), dtype=torch.float64)
    for question in questions:
        if method == "sft":
            total = total - token_logps(model, question.prompt, question.answer, []).sum() / N
            continue
        total = total + group_loss(model, method, question, start, end) / (
            len(question.written) * N
        )
    return total / len(questions)


def token_logps(
    model: Any,
    before: tuple[int, ...],
    tail: tuple[int, ...],
    without_start: list[int],
    start: int = -1,
) -> torch.Tensor:
    """log p of each tail token. At the places `without_start` START cannot be chosen: the softmax is over the other tokens."""
    logits = model(torch.tensor([[*before, *tail[:-1]]])).logits[0, len(before) - 1 :].double()
    values = []
    for place, token in enumerate(tail):
        at = logits[place]
        keep = [v for v in range(len(at)) if not (place in without_start and v == start)]
        values.append(at[token] - torch.logsumexp(at[keep], 0))
    return torch.stack(values)


def group_loss(model: Any, method: str, question: Question, start: int, end: int) -> torch.Tensor:
    """Sum over the K rows of one prompt."""
    T = len(question.answer)
    answers, rows = [], []
    for w in question.written:
        tail = (start, *w.ids, end, *question.answer)
        scored = token_logps(model, question.prompt, tail, list(range(1, len(w.ids) + 2)), start)
        answers.append(scored[-T:])
        if w.reply is not None:  # the row that is trained on holds the policy's own answer
            scored = token_logps(
                model,
                question.prompt,
                (start, *w.ids, end, *w.reply),
                list(range(1, len(w.ids) + 2)),
                start,
            )
        rows.append(scored)
    null = token_logps(model, question.prompt, (start, end, *question.answer), [1], start)[
        -T:
    ].detach()
    bare = token_logps(model, question.prompt, question.answer, []).detach()
    logp = torch.stack(answers).detach()  # [K, T]
    if method in ("sdft", "opsd"):
        return self_distillation_loss(model, question, rows, start, end)
    advantage, weight = credit(method, question, logp, null, bare)
    samples_answers = method in SAMPLES_ANSWERS
    lambda_format = 0.0 if method in WITHOUT_FORMAT else 0.3
    plain_gradient = method in WITHOUT_RATIO  # A log π instead of A ρ
    total = torch.zeros((), dtype=torch.float64)
    for k, w in enumerate(question.written):
        row, n = rows[k], len(w.ids)
        actions = [*range(1, n + 1), *([n + 1] if w.finished else [])]
        if samples_answers:
            actions += list(range(n + 2, len(row)))
        for i in actions:
            ratio = row[i] if plain_gradient else (row[i] - row[i].detach()).exp()
            total = total - advantage[k] * ratio
        if not samples_answers:
            total = total - (weight[k] * answers[k]).sum()
        total = total - lambda_format * (row[0] + row[n + 1])
    return total


def self_distillation_loss(
    model: Any, question: Question, rows: list[torch.Tensor], start: int, end: int
) -> torch.Tensor:
    """−(log π_teacher − log π) log π over the tokens of trace and reply; the teacher reads y* after x, without the token that ends the turn.

    On the first rollout the initial model (opsd) is the policy (sdft).
    """
    total = torch.zeros((), dtype=torch.float64)
    context = (*question.prompt, *question.answer[:-1])
    for w, row in zip(question.written, rows, strict=True):
        assert w.reply is not None
        n = len(w.ids)
        tail = (start, *w.ids, end, *w.reply)
        teacher = token_logps(model, context, tail, list(range(1, n + 2)), start).detach()
        actions = [*range(1, n + 1), *([n + 1] if w.finished else []), *range(n + 2, len(tail))]
        for i in actions:
            total = total - (teacher[i] - row[i].detach()) * row[i]
    return total


def credit(
    method: str, question: Question, logp: Any, null: Any, bare: Any
) -> tuple[list[float], list[Any]]:
    """(A of each trace, weight of each answer token of each trace)."""
    c, base = logp.exp(), null.exp()
    K, T = logp.shape
    if method == "nrt-ws-neg-log-p":  # Table 2: w = −log c_base
        w = -null
        return normalised((c * w).sum(1), (base * w).sum()), list(w * c)
    if method == "nrt-ws-inv-p":  # Table 2: w = 1/c_base, capped at e^20
        w = (-null).clamp(max=20.0).exp()
        return normalised((c * w).sum(1), (base * w).sum()), list(w * c)
    if method == "nrt-gm":  # Eq. 32
        R = logp.mean(1).exp()
        return normalised(R, null.mean().exp()), [R[k] / T * torch.ones(T) for k in range(K)]
    if method == "rlpr":  # Eq. 36
        return normalised(c.mean(1), base.mean()), list(c / T)
    if method == "verifree":  # Eq. 28
        R = logp.sum(1).exp()
        return normalised(R, null.sum().exp()), [R[k] * torch.ones(T) for k in range(K)]
    if method == "jlb":  # Eq. 24
        return normalised(logp.sum(1), null.sum()), [torch.ones(T) for _ in range(K)]
    if method == "nrt-mixed":  # half of each, normalised apart
        first, second = (
            credit("nrt-ws-neg-log-p", question, logp, null, bare),
            credit("nrt-gm", question, logp, null, bare),
        )
        mixed = [(a + b) / 2 for a, b in zip(first[0], second[0], strict=True)]
        return mixed, [(a + b) / 2 for a, b in zip(first[1], second[1], strict=True)]
    if (
        method == "nrt-learned"
    ):  # before anything is learnt: w = −log c_base up to 12.8 nats, Σw = 1
        w = (-null).clamp(max=12.8)
        w = w / w.sum()
        return normalised((c * w).sum(1), (base * w).sum()), list(w * c)
    if method == "dro":  # R3: weights ∝ the spread of log c over the traces; R = Σ w log c
        w = logp.std(0)
        w = w / w.sum()
        return normalised((logp * w).sum(1), None), [w for _ in range(K)]
    if method == "mean-log-prob":
        R = logp.mean(1)
        return (R - R.mean()).tolist(), [torch.ones(T) for _ in range(K)]
    if method == "latro":  # π is π_ref on the first rollout; capped traces get twice the mean
        R = logp.sum(1)
        cut = torch.tensor([w.capped for w in question.written])
        return leave_one_out(torch.where(cut, 2 * R.mean(), R)), [torch.ones(T) for _ in range(K)]
    if method in ("jlb-original", "log-prob"):
        return leave_one_out(logp.sum(1)), [torch.ones(T) for _ in range(K)]
    if method == "nover":  # 1 + rank + efficiency, 0 without the format; R − mean
        ppl, length = {}, {}
        for k, w in enumerate(question.written):
            if w.finished and w.reply_ended:
                length[k] = len(w.ids)
                norm = max(1.0, 1 + math.log10(len(w.ids))) if w.ids else 1.0
                ppl[k] = math.exp(-logp[k].mean().item() / norm)
        R = [0.0] * K
        for k in ppl:
            rank = sum(ppl[j] >= ppl[k] for j in ppl) / len(ppl)
            worse = [j for j in ppl if length[j] > length[k] and ppl[j] > ppl[k]]
            R[k] = 1 + rank + (len(worse) / (len(ppl) - 1) if len(ppl) > 1 else 0)
        cut = [w.capped or not w.reply_ended for w in question.written]
        A = [0.0 if cut[k] else R[k] - sum(R) / K for k in range(K)]
        return A, [torch.zeros(T) for _ in range(K)]
    if method == "rlp":  # log p(y* | x, z) − log p_EMA(y* | x), here with 7 nats for the EMA's
        return leave_one_out(logp.sum(1) + 7.0), [torch.zeros(T) for _ in range(K)]
    if method == "jepo":  # log (1/K) Σ_j Π c_j; the loss divides by K, the bound does not
        R = logp.sum(1).exp()
        A = []
        for k in range(K):
            others = (R.sum() - R[k]) / (K - 1)
            A.append(K * math.log(R.mean() / others))
        return A, [K * R[k] / R.sum() * torch.ones(T) for k in range(K)]
    if method == "maxrl":  # A = (R − mean)/mean with R = Π c
        R = logp.sum(1).exp()
        A = [((R[k] - R.mean()) / R.mean()).item() for k in range(K)]
        return A, [K * R[k] / R.sum() * torch.ones(T) for k in range(K)]
    if (
        method == "verifree-original"
    ):  # R = 0 without the closing tag; the answer term weighs with R itself
        R = torch.stack([logp[k].sum().exp() * question.written[k].finished for k in range(K)])
        return leave_one_out(R), [R[k] * torch.ones(T) for k in range(K)]
    if (
        method == "rlpr-original"
    ):  # 0.9 max(0, r − r′) + 0.1 format − 1 for a 10-gram ten times; std + 1e-6
        final = []
        for k, w in enumerate(question.written):
            r = 0.9 * max(0.0, (c[k].mean() - bare.exp().mean()).item()) + 0.1 * float(
                w.finished and w.reply_ended
            )
            ids = (*w.ids, *(w.reply or ()))
            grams = Counter(ids[i : i + 10] for i in range(len(ids) - 9))
            final.append(r - 1 if r != 0 and max(grams.values(), default=0) >= 10 else r)
        R = torch.tensor(final, dtype=torch.float64)
        std = R.std()
        return ([0.0] * K if std < 1e-6 else ((R - R.mean()) / (std + 1e-6)).tolist()), [
            torch.zeros(T) for _ in range(K)
        ]
    if method == "rlvr":
        R = torch.tensor([float(bool(w.correct)) for w in question.written], dtype=torch.float64)
        return normalised(R, None), [torch.zeros(T) for _ in range(K)]
    raise ValueError(method)


def normalised(R: Any, base: Any) -> list[float]:
    """Eqs. 9 and 10: R' = max(0, R − R_base) where there is a base, A = (R' − mean)/std, unbiased; 0 where all are equal."""
    values = [r if base is None else max(0.0, r - base.item()) for r in R.tolist()]
    if max(values) - min(values) <= 1e-5 * max(abs(v) for v in R.tolist()):
        return [0.0] * len(values)
    mean = sum(values) / len(values)
    std = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    return [(v - mean) / std for v in values]


def leave_one_out(R: Any) -> list[float]:
    """R less the mean of the others."""
    values = R.tolist()
    return [v - (sum(values) - v) / (len(values) - 1) for v in values]
