"""Base model of the miniature: a tiny Llama that can reason but seldom does.

It is saved as an ordinary Hugging Face folder. It is trained with the plain next-token loss on the
documents of `corpus`: first on mixtures in which reasoning is common, then on mixtures in which it
is rare. `nrt.lab.evaluation` measures what it can do before any Native Reasoning Training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from nrt.errors import unknown_name
from nrt.lab.corpus import BOS, EOS, MIXTURES, PAD, UNK, VOCABULARY, documents
from nrt.lab.world import WEIGHTS
from nrt.models import hide_progress_bars
from nrt.system.environment import cache_folder
from nrt.system.files import cached_folder

SOURCE_VERSION = 2  # increase it whenever the same settings would give another model

# `<bos> x` for a question; the answer follows and ends with <eos>. In the corpus a line break
# follows x. START, whose row is copied from the line break, takes its place. With a line break and
# START the base model would see two, which no document contains, and would no longer reason.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %} {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %} {{ eos_token }}{% endif %}{% endfor %}"
)

Progress = Callable[[int, int, float], None]
"""Called after each step with (steps done, total steps, loss in nats per token)."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Training on one mixture of documents: linear warm-up, constant rate, linear decay to zero."""

    mixture: str
    steps: int
    lr: float
    warmup: int = 100  # steps
    decay: float = 0.4  # share of the steps

    def __post_init__(self) -> None:
        if self.mixture not in MIXTURES:
            raise unknown_name("mixture", self.mixture, MIXTURES)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        warmup = (step + 1) / max(self.warmup, 1)
        decay = (self.steps - step) / max(self.decay * self.steps, 1)
        return self.lr * min(1.0, warmup, decay)


@dataclass(frozen=True, slots=True)
class BaseSettings:
    """All settings that determine the base model."""

    seed: int = 0
    width: int = 128  # hidden size
    layers: int = 2
    heads: int = 4
    inner: int = 336  # width of the MLP
    rows: int = 32  # documents per step
    betas: tuple[float, float] = (0.9, 0.98)
    max_grad_norm: float = 1.0
    # After the stages open and latent, 7–10 % of the traces are worked; the short third stage
    # brings this to 3–8 %.
    stages: tuple[Stage, ...] = (
        Stage("open", 2200, 2e-3),
        Stage("latent", 350, 7e-4),
        Stage("scarce", 40, 3e-4, warmup=10),
    )
    # weights of the problem families in the corpus
    weights: tuple[tuple[str, float], ...] = tuple(WEIGHTS.items())

    @property
    def name(self) -> str:
        """Folder name: a hash of all settings and of the source version."""
        text = json.dumps({"source": SOURCE_VERSION, **asdict(self)}, sort_keys=True)
        return f"base-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def build_base(
    settings: BaseSettings | None = None,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Return the folder of the base model with its tokenizer; train the model unless it is cached.

    With the default settings training takes about two minutes on one CPU thread. The folder appears
    only when it is complete.

    Args:
        settings: settings of the model; None: the defaults.
        cache: folder of all base models; None: `lab` in `cache_folder()`.
        progress: called after each training step.
    """
    settings = settings or BaseSettings()
    cache = Path(cache) if cache is not None else cache_folder() / "lab"
    folder = cache / settings.name
    if folder.is_dir():
        return folder
    tokenizer = build_tokenizer()
    with cached_folder(folder) as new_folder, _one_thread():
        model = build_model(settings)
        _train(model, settings, progress)
        with hide_progress_bars():
            model.save_pretrained(new_folder)
        tokenizer.save_pretrained(new_folder)
        text = json.dumps(asdict(settings), indent=2) + "\n"
        (new_folder / "base.json").write_text(text, encoding="utf-8")
    return folder


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per word, the line break included.

    Single spaces separate words; decoding puts them back.
    """
    ids = {word: i for i, word in enumerate(VOCABULARY)}
    backend = Tokenizer(WordLevel(ids, unk_token=UNK))
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


def build_model(settings: BaseSettings) -> LlamaForCausalLM:
    """Return the untrained model; its weights depend only on the settings."""
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        intermediate_size=settings.inner,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        # with the usual 0.02 or 0.04 accuracy stays at chance even for single steps of a chain
        initializer_range=settings.width**-0.5,
        pad_token_id=VOCABULARY.index(PAD),
        bos_token_id=VOCABULARY.index(BOS),
        eos_token_id=VOCABULARY.index(EOS),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return LlamaForCausalLM(config)


def train_on_documents(
    model: PreTrainedModel,
    documents: Iterator[Sequence[int]],
    stage: Stage,
    *,
    rows_per_step: int,
    betas: tuple[float, float] = (0.9, 0.98),
    max_grad_norm: float = 1.0,
    width: int = 128,
    progress: Progress | None = None,
) -> None:
    """Train with the next-token loss for one stage; the model is in evaluation mode afterwards.

    Args:
        documents: token ids of each document, at most `width` of them.
        stage: number of steps and learning rate; its mixture is not used.
        rows_per_step: documents per step.
        width: maximum tokens of a packed row.
    """
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), betas=betas, fused=True)
    for step in range(stage.steps):
        loss = _loss(model, list(islice(documents, rows_per_step)), width)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        optimizer.param_groups[0]["lr"] = stage.rate(step)
        optimizer.step()
        optimizer.zero_grad()
        if progress:
            progress(step + 1, stage.steps, loss.item())
    model.eval()


def _train(model: LlamaForCausalLM, settings: BaseSettings, progress: Progress | None) -> None:
    ids = {word: i for i, word in enumerate(VOCABULARY)}
    total = sum(stage.steps for stage in settings.stages)
    steps_before = 0
    for number, stage in enumerate(settings.stages):
        texts = documents(1000 * settings.seed + number, stage.mixture, dict(settings.weights))
        rows = ([ids[word] for word in text.split(" ")] for text in texts)

        def report(step: int, _: int, loss: float, steps_before: int = steps_before) -> None:
            if progress:
                progress(steps_before + step, total, loss)

        train_on_documents(
            model,
            rows,
            stage,
            rows_per_step=settings.rows,
            betas=settings.betas,
            max_grad_norm=settings.max_grad_norm,
            progress=report if progress else None,
        )
        steps_before += stage.steps


def _loss(model: Any, documents: Sequence[Sequence[int]], width: int = 128) -> Tensor:
    """Return the mean cross-entropy of all tokens but the first of each document, in nats.

    Documents share rows but do not attend to each other.
    """
    bins = _pack(documents, width)
    width = max(sum(map(len, bin)) for bin in bins)
    ids, positions, owners = [], [], []
    for bin in bins:
        for owner, document in enumerate(bin):
            ids += document
            positions += range(len(document))
            owners += [owner] * len(document)
        padding = width - sum(map(len, bin))
        ids += [0] * padding
        positions += [0] * padding
        owners += [-1] * padding
    ids_BN = torch.tensor(ids).view(len(bins), width)
    positions_BN = torch.tensor(positions).view(len(bins), width)
    owner_BN = torch.tensor(owners).view(len(bins), width)
    same_document_BNN = owner_BN[:, :, None] == owner_BN[:, None, :]
    mask_BNN = same_document_BNN & torch.ones(width, width, dtype=torch.bool).tril()
    hidden_BND = model.model(
        input_ids=ids_BN,
        position_ids=positions_BN,
        attention_mask=mask_BNN[:, None],
        use_cache=False,
    ).last_hidden_state
    predicted_BN = positions_BN[:, 1:] > 0  # tokens with a token before them in their document
    logits = model.lm_head(hidden_BND[:, :-1][predicted_BN])
    return F.cross_entropy(logits, ids_BN[:, 1:][predicted_BN])


def _pack(documents: Sequence[Sequence[int]], width: int) -> list[list[Sequence[int]]]:
    """Pack documents into bins of at most `width` tokens (first-fit decreasing).

    Little padding is left, and attention stays short.
    """
    bins: list[list[Sequence[int]]] = []
    free: list[int] = []  # tokens left in each bin
    for document in sorted(documents, key=len, reverse=True):
        fitting = (i for i, space in enumerate(free) if space >= len(document))
        i = next(fitting, None)
        if i is None:
            bins.append([document])
            free.append(width - len(document))
        else:
            bins[i].append(document)
            free[i] -= len(document)
    return bins


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one torch thread, which is fastest for matrices this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
