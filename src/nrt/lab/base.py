"""The miniature's base model: a tiny Llama that can reason but seldom does, saved as an ordinary Hugging Face folder.

It is trained with the plain next-token loss on the documents of `corpus`, first those in which reasoning is common, then those in which it
is rare. What it can and cannot do before any Native Reasoning Training is what `readout` says.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from nrt.environment import cache_folder
from nrt.errors import unknown
from nrt.lab.corpus import BOS, EOS, MIXTURES, NEWLINE, PAD, UNK, VOCABULARY, documents
from nrt.lab.world import WEIGHTS, Problem
from nrt.models import quiet

SOURCE_VERSION = 2  # raised whenever the same settings would give another model

# `<bos> x` for a question; the answer follows and ends with <eos>. In the corpus a line break comes after x: START, whose row is
# copied from it, takes its place. With a line break and START the base would see two, which no document has, and no longer reasons.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %} {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %} {{ eos_token }}{% endif %}{% endfor %}"
)

Progress = Callable[[int, int, float], None]
"""Called after each step with the number of steps done, of all steps, and the loss in nats a token."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A stretch of training on one mixture of documents: linear warm-up, constant rate, linear decay to zero."""

    mixture: str
    steps: int
    lr: float
    warmup: int = 100  # steps
    decay: float = 0.4  # share of the steps

    def __post_init__(self) -> None:
        if self.mixture not in MIXTURES:
            raise unknown("mixture", self.mixture, MIXTURES)

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        return self.lr * min(1.0, (step + 1) / max(self.warmup, 1), (self.steps - step) / max(self.decay * self.steps, 1))


@dataclass(frozen=True, slots=True)
class BaseSettings:
    """All that decides which base model comes out."""

    seed: int = 0
    width: int = 128
    layers: int = 2
    heads: int = 4
    inner: int = 336
    rows: int = 32  # documents a step
    betas: tuple[float, float] = (0.9, 0.98)
    max_grad_norm: float = 1.0
    # Open, then latent: after these two 7–10 % of the traces are worked; a short third stage brings it to 3–8 %.
    stages: tuple[Stage, ...] = (Stage("open", 2200, 2e-3), Stage("latent", 350, 7e-4), Stage("scarce", 40, 3e-4, warmup=10))
    weights: tuple[tuple[str, float], ...] = tuple(WEIGHTS.items())  # of the families of problems in the corpus

    @property
    def name(self) -> str:
        """Folder name: a hash of all settings and of the source version."""
        text = json.dumps({"source": SOURCE_VERSION, **asdict(self)}, sort_keys=True)
        return f"base-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


@dataclass(frozen=True, slots=True)
class Readout:
    """What a model does with one family's questions before any training on them."""

    family: str
    worked: float  # share of the traces sampled at temperature 1 that hold the gold work; nan where there is no work
    greedy: float  # share of questions whose greedy continuation ends with the right answer
    key_given_gold: float  # mean probability of the key after the gold work and the answer up to the key


def build_base(settings: BaseSettings | None = None, cache: str | Path | None = None, progress: Progress | None = None) -> Path:
    """Trains the base model, or finds it in the cache, and returns its folder (model, tokenizer with chat template).

    `cache` is the folder that holds all bases; unset: `lab` in `cache_folder()`. The model appears there at once or not at all.
    Costs about two minutes on one CPU thread with the default settings; a second call costs nothing.
    """
    settings = settings or BaseSettings()
    root = Path(cache) if cache is not None else cache_folder() / "lab"
    folder = root / settings.name
    if folder.is_dir():
        return folder
    root.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    with TemporaryDirectory(dir=root, prefix=".building-") as temporary, _one_thread():
        model = _build_model(settings)
        _train(model, settings, progress)
        made = Path(temporary) / settings.name
        with quiet():
            model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        (made / "base.json").write_text(json.dumps(asdict(settings), indent=2) + "\n", encoding="utf-8")
        try:
            made.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster: its model is the same
                raise
    return folder


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, the line break included; words are parted by single spaces, which decoding puts back."""
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token=UNK))
    backend.pre_tokenizer = Split(Regex(" +"), "removed")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def _build_model(settings: BaseSettings) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        intermediate_size=settings.inner,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=settings.width**-0.5,  # with the usual 0.02 or 0.04 even single steps stay at chance
        pad_token_id=VOCABULARY.index(PAD),
        bos_token_id=VOCABULARY.index(BOS),
        eos_token_id=VOCABULARY.index(EOS),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return LlamaForCausalLM(config)


def _train(model: LlamaForCausalLM, settings: BaseSettings, progress: Progress | None) -> None:
    ids = {word: i for i, word in enumerate(VOCABULARY)}
    total, done = sum(stage.steps for stage in settings.stages), 0
    for number, stage in enumerate(settings.stages):
        texts = documents(1000 * settings.seed + number, stage.mixture, dict(settings.weights))
        rows = ([ids[word] for word in text.split(" ")] for text in texts)
        report = None if progress is None else partial(_report, progress, done, total)
        fit(model, rows, stage, rows_a_step=settings.rows, betas=settings.betas, max_grad_norm=settings.max_grad_norm, progress=report)
        done += stage.steps


def _report(progress: Progress, done: int, total: int, step: int, _: int, loss: float) -> None:
    progress(done + step, total, loss)


def fit(
    model: PreTrainedModel,
    rows: Iterator[Sequence[int]],
    stage: Stage,
    *,
    rows_a_step: int,
    betas: tuple[float, float] = (0.9, 0.98),
    max_grad_norm: float = 1.0,
    width: int = 128,
    progress: Progress | None = None,
) -> None:
    """Plain next-token training on documents as ids, none longer than `width`; leaves the model in evaluation mode."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), betas=betas, fused=True)
    for step in range(stage.steps):
        loss = _loss(model, list(islice(rows, rows_a_step)), width)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        optimizer.param_groups[0]["lr"] = stage.rate(step)
        optimizer.step()
        optimizer.zero_grad()
        if progress:
            progress(step + 1, stage.steps, loss.item())
    model.eval()


def _loss(model: Any, documents: Sequence[Sequence[int]], width: int = 128) -> Tensor:
    """Mean cross-entropy of all tokens but the first of each document, in nats; documents do not see each other."""
    bins = _pack(documents, width)
    width = max(sum(map(len, bin)) for bin in bins)
    ids, places, owners = [], [], []
    for bin in bins:
        gap = width - sum(map(len, bin))
        ids += [token for document in bin for token in document] + [0] * gap
        places += [i for document in bin for i in range(len(document))] + [0] * gap
        owners += [i for i, document in enumerate(bin) for _ in document] + [-1] * gap
    ids_BN, places_BN, owner_BN = (torch.tensor(values).view(len(bins), width) for values in (ids, places, owners))
    mask_BNN = (owner_BN[:, :, None] == owner_BN[:, None, :]) & torch.ones(width, width, dtype=torch.bool).tril()
    hidden_BND = model.model(input_ids=ids_BN, position_ids=places_BN, attention_mask=mask_BNN[:, None], use_cache=False).last_hidden_state
    inside_BN = places_BN[:, 1:] > 0  # every token that has one before it in its document
    return F.cross_entropy(model.lm_head(hidden_BND[:, :-1][inside_BN]), ids_BN[:, 1:][inside_BN])


def _pack(documents: Sequence[Sequence[int]], width: int) -> list[list[Sequence[int]]]:
    """First-fit decreasing: bins of at most `width` tokens; little padding is left, and attention stays short."""
    bins: list[list[Sequence[int]]] = []
    room: list[int] = []
    for document in sorted(documents, key=len, reverse=True):
        place = next((i for i, free in enumerate(room) if free >= len(document)), None)
        if place is None:
            bins.append([document])
            room.append(width - len(document))
        else:
            bins[place].append(document)
            room[place] -= len(document)
    return bins


def readout(
    model: Any, tokenizer: Any, problems: Sequence[Problem], *, samples: int = 4, max_tokens: int = 40, seed: int = 0
) -> tuple[Readout, ...]:
    """What must be known before any training: per family, in the order of appearance, how often the model reasons and what it gains by it.

    `samples` traces a question of at most `max_tokens` tokens are drawn after `x \\n` at temperature 1. Leaves torch's random state alone.
    """
    families: dict[str, list[Problem]] = defaultdict(list)
    for problem in problems:
        families[problem.family].append(problem)
    model.eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return tuple(_read_family(model, tokenizer, family, problems, samples, max_tokens) for family, problems in families.items())


def _read_family(model: Any, tokenizer: Any, family: str, problems: list[Problem], samples: int, max_tokens: int) -> Readout:
    prompts = [_prompt(tokenizer, problem) for problem in problems]
    worked = float("nan")
    if all(problem.work for problem in problems):
        stop = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(NEWLINE)]
        drawn = GenerationConfig(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=max_tokens, eos_token_id=stop)
        traces = _continue(model, tokenizer, [prompt for prompt in prompts for _ in range(samples)], drawn)
        worked = _mean(problems[i // samples].work in trace for i, trace in enumerate(traces))
    greedy = GenerationConfig(do_sample=False, max_new_tokens=80, eos_token_id=tokenizer.eos_token_id)
    texts = _continue(model, tokenizer, prompts, greedy)
    right = _mean(text.endswith(f"{problem.key} .") for text, problem in zip(texts, problems, strict=True))
    return Readout(family, worked, right, _key_given_gold(model, tokenizer, prompts, problems))


def _key_given_gold(model: Any, tokenizer: Any, prompts: list[list[int]], problems: list[Problem]) -> float:
    rows, keys = [], []
    for prompt, problem in zip(prompts, problems, strict=True):
        before = problem.answer[: problem.answer.rindex(f" {problem.key} ")]
        text = f"{problem.work} {NEWLINE} {before}" if problem.work else before
        rows.append(prompt + tokenizer.encode(text, add_special_tokens=False))
        keys.append(tokenizer.convert_tokens_to_ids(problem.key))
    chances = torch.empty(len(rows))
    for indices, ids in _same_length(rows, model.device):
        logits = model(input_ids=ids, logits_to_keep=1).logits[:, -1].float().cpu()
        chances[indices] = logits.softmax(-1).gather(1, torch.tensor(keys)[indices, None])[:, 0]
    return chances.mean().item()


def _continue(model: Any, tokenizer: Any, prompts: list[list[int]], how: GenerationConfig) -> list[str]:
    """The text after each prompt, without special tokens and the final line break; nothing is padded on the left."""
    texts = [""] * len(prompts)
    how.pad_token_id = tokenizer.pad_token_id
    for indices, ids in _same_length(prompts, model.device):
        out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=how)[:, ids.shape[1] :]
        for i, text in zip(indices, tokenizer.batch_decode(out, skip_special_tokens=True), strict=True):
            texts[i] = text.strip()
    return texts


def _same_length(rows: list[list[int]], device: torch.device) -> Iterator[tuple[list[int], Tensor]]:
    groups: dict[int, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        groups[len(row)].append(i)
    for indices in groups.values():
        yield indices, torch.tensor([rows[i] for i in indices], device=device)


def _prompt(tokenizer: Any, problem: Problem) -> list[int]:
    """`<bos> x \\n`, as in the corpus."""
    return tokenizer.encode(f"{BOS} {problem.question} {NEWLINE}", add_special_tokens=False)


def _mean(values: Any) -> float:
    values = list(values)
    return sum(values) / len(values)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Matrices as small as these are multiplied fastest by one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
