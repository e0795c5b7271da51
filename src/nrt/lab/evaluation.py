"""Evaluation of a base model of the miniature before any training on questions.

It measures how often the model reasons, how often it is right, and what reasoning would be worth.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from nrt.lab.corpus import BOS, NEWLINE
from nrt.lab.world import Problem


@dataclass(frozen=True, slots=True)
class BaseEvaluation:
    """How a model does on the questions of one family."""

    family: str
    worked_share: float  # share of sampled traces that hold the gold work; nan if there is no work
    greedy_accuracy: float  # share of greedy continuations that end with the right answer
    key_probability: float  # mean probability of the key after gold work and answer up to the key


def evaluate_base(
    model: Any,
    tokenizer: Any,
    problems: Sequence[Problem],
    *,
    samples: int = 4,
    max_tokens: int = 40,
    seed: int = 0,
) -> tuple[BaseEvaluation, ...]:
    """Return the evaluation of each family, in the order of their first problems.

    Traces are sampled after `x \\n` at temperature 1. torch's random state is left unchanged.

    Args:
        samples: traces per question.
        max_tokens: maximum tokens of a trace.
        seed: seed of the traces.
    """
    families: dict[str, list[Problem]] = defaultdict(list)
    for problem in problems:
        families[problem.family].append(problem)
    model.eval()
    evaluations = []
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for family, family_problems in families.items():
            prompts = [_prompt(tokenizer, problem) for problem in family_problems]
            arguments = (model, tokenizer, prompts, family_problems)
            evaluations.append(
                BaseEvaluation(
                    family,
                    worked_share=_worked_share(*arguments, samples, max_tokens),
                    greedy_accuracy=_greedy_accuracy(*arguments),
                    key_probability=_key_probability(*arguments),
                )
            )
    return tuple(evaluations)


def _worked_share(
    model: Any,
    tokenizer: Any,
    prompts: list[list[int]],
    problems: list[Problem],
    samples: int,
    max_tokens: int,
) -> float:
    if not all(problem.work for problem in problems):
        return float("nan")
    stop_ids = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(NEWLINE)]
    sampling = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=max_tokens,
        eos_token_id=stop_ids,
    )
    repeated = [prompt for prompt in prompts for _ in range(samples)]
    traces = _continue(model, tokenizer, repeated, sampling)
    return _mean([problems[i // samples].work in trace for i, trace in enumerate(traces)])


def _greedy_accuracy(
    model: Any, tokenizer: Any, prompts: list[list[int]], problems: list[Problem]
) -> float:
    greedy = GenerationConfig(
        do_sample=False, max_new_tokens=80, eos_token_id=tokenizer.eos_token_id
    )
    texts = _continue(model, tokenizer, prompts, greedy)
    return _mean(
        [text.endswith(f"{problem.key} .") for text, problem in zip(texts, problems, strict=True)]
    )


def _key_probability(
    model: Any, tokenizer: Any, prompts: list[list[int]], problems: list[Problem]
) -> float:
    rows, keys = [], []
    for prompt, problem in zip(prompts, problems, strict=True):
        context = problem.answer[: problem.answer.rindex(f" {problem.key} ")]
        if problem.work:
            context = f"{problem.work} {NEWLINE} {context}"
        rows.append(prompt + tokenizer.encode(context, add_special_tokens=False))
        keys.append(tokenizer.convert_tokens_to_ids(problem.key))
    probabilities = torch.empty(len(rows))
    for indices, ids in _group_by_length(rows, model.device):
        logits = model(input_ids=ids, logits_to_keep=1).logits[:, -1].float().cpu()
        group_keys = torch.tensor(keys)[indices, None]
        probabilities[indices] = logits.softmax(-1).gather(1, group_keys)[:, 0]
    return probabilities.mean().item()


def _continue(
    model: Any, tokenizer: Any, prompts: list[list[int]], generation: GenerationConfig
) -> list[str]:
    """Return the text after each prompt, without special tokens and the final line break.

    Only prompts of equal length share a batch, so none is padded on the left.
    """
    texts = [""] * len(prompts)
    generation.pad_token_id = tokenizer.pad_token_id
    for indices, ids in _group_by_length(prompts, model.device):
        mask = torch.ones_like(ids)
        output = model.generate(ids, attention_mask=mask, generation_config=generation)
        continuations = tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
        for i, text in zip(indices, continuations, strict=True):
            texts[i] = text.strip()
    return texts


def _group_by_length(
    rows: list[list[int]], device: torch.device
) -> Iterator[tuple[list[int], Tensor]]:
    """Yield (indices of rows, their ids [B, N]) for the rows of each length."""
    groups: dict[int, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        groups[len(row)].append(i)
    for indices in groups.values():
        yield indices, torch.tensor([rows[i] for i in indices], device=device)


def _prompt(tokenizer: Any, problem: Problem) -> list[int]:
    """Return the ids of `<bos> x \\n`, as in the corpus."""
    return tokenizer.encode(f"{BOS} {problem.question} {NEWLINE}", add_special_tokens=False)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
