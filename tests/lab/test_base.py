"""Base model of the miniature: folder and cache, packed loss, and its evaluation."""

import math
import subprocess
import sys
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from nrt.errors import InputError
from nrt.lab.base import (
    BaseSettings,
    Stage,
    _loss,
    _pack,
    build_base,
    build_model,
    build_tokenizer,
)
from nrt.lab.corpus import VOCABULARY, documents
from nrt.lab.evaluation import evaluate_base
from nrt.lab.world import distinct_problems
from nrt.system.environment import cache_folder

SMALL = BaseSettings(
    width=16,
    heads=2,
    inner=32,
    rows=8,
    stages=(Stage("open", 3, 2e-3, warmup=2), Stage("latent", 2, 7e-4)),
)
QUESTION = "dano asks : begin at 9 ; then add 3 ?"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_base(SMALL, cache=tmp_path_factory.mktemp("cache"))


def test_tokenizer_round_trip() -> None:
    tokenizer = build_tokenizer()
    for text in (*islice(documents(0, "open"), 50), "well dano , when you begin at 9 ;", "a \n b"):
        ids = tokenizer.encode(text)
        assert ids == [VOCABULARY.index(word) for word in text.split(" ")]
        assert tokenizer.decode(ids) == text


def test_chat_template() -> None:
    tokenizer = build_tokenizer()
    user = {"role": "user", "content": QUESTION}
    text = f"<bos> {QUESTION}"  # START replaces the line break that follows in the corpus
    ids = [VOCABULARY.index(word) for word in text.split(" ")]
    apply = partial(tokenizer.apply_chat_template, [user], add_generation_prompt=True)
    assert apply(tokenize=False) == text
    assert apply(return_dict=False) == ids
    turns = [user, {"role": "assistant", "content": "9 ."}]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == f"{text} 9 . <eos>"


def test_markers_without_spaces_are_separate_tokens() -> None:
    """A marker may stand directly beside a word or a line break."""
    tokenizer = build_tokenizer()
    markers = ["<|think_start|>", "<|think_end|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": markers})
    ids = tokenizer.encode("live ? \n<|think_start|>now in a ;<|think_end|>a .<eos>")
    expected = "live ? \n <|think_start|> now in a ; <|think_end|> a . <eos>".split(" ")
    assert tokenizer.convert_ids_to_tokens(ids) == expected


def test_base_loads_in_transformers(base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert isinstance(model, LlamaForCausalLM)
    assert model.config.tie_word_embeddings
    assert model.get_input_embeddings().weight.shape == (len(VOCABULARY), 16)
    ids = tokenizer.encode(QUESTION)
    assert tokenizer.decode(ids) == QUESTION
    assert tokenizer.chat_template == build_tokenizer().chat_template
    assert tokenizer.eos_token_id == model.config.eos_token_id
    assert tokenizer.pad_token_id == model.config.pad_token_id
    assert torch.isfinite(model(torch.tensor([ids])).logits).all()


def test_cache_depends_on_all_settings(base: Path) -> None:
    def fail(step: int, total: int, loss: float) -> None:
        raise AssertionError("the base model was in the cache")

    modified = (base / "model.safetensors").stat().st_mtime_ns
    assert build_base(SMALL, cache=base.parent, progress=fail) == base
    assert (base / "model.safetensors").stat().st_mtime_ns == modified
    variants = [
        SMALL,
        replace(SMALL, seed=1),
        replace(SMALL, width=32),
        replace(SMALL, stages=SMALL.stages[:1]),
    ]
    assert len({settings.name for settings in variants}) == 4
    # no half-built folder is left
    assert [entry.name for entry in base.parent.iterdir()] == [SMALL.name]


def test_same_settings_same_model_and_progress(base: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []

    def progress(step: int, total: int, loss: float) -> None:
        steps.append((step, total))

    torch.manual_seed(123)
    state = torch.random.get_rng_state()
    rebuilt = build_base(SMALL, cache=tmp_path, progress=progress)
    weights = (rebuilt / "model.safetensors").read_bytes()
    assert weights == (base / "model.safetensors").read_bytes()
    assert steps == [(i, 5) for i in range(1, 6)]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_packed_loss_is_that_of_single_documents() -> None:
    model = build_model(SMALL)
    texts = islice(documents(0, "open"), 8)
    rows = [[VOCABULARY.index(word) for word in text.split(" ")] for text in texts]
    total, count = torch.zeros(()), 0
    for row in rows:
        ids = torch.tensor([row])
        total += F.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="sum")
        count += len(row) - 1
    torch.testing.assert_close(_loss(model, rows), total / count)


def test_packing_by_hand() -> None:
    """Bins of width 6: 5 has no partner; 2 fits beside 4; 3 fits beside 3."""
    rows = [[0] * n for n in (3, 5, 2, 3, 4)]
    assert [[len(row) for row in bin] for bin in _pack(rows, 6)] == [[5], [4, 2], [3, 3]]


def test_learning_rate_by_hand() -> None:
    """Ten steps with two of warm-up and four of decay: (10 − step)/4 from step 6 on."""
    stage = Stage("open", 10, 1.0, warmup=2, decay=0.4)
    assert [stage.rate(step) for step in range(10)] == [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]


def test_unknown_mixture_is_refused_before_training() -> None:
    with pytest.raises(InputError, match="unknown mixture"):
        Stage("latnet", 3, 1e-3)


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.delenv("NRT_CACHE", raising=False)
    assert cache_folder() == Path("/x/nrt")
    monkeypatch.setenv("NRT_CACHE", "/y")
    assert cache_folder() == Path("/y")
    monkeypatch.delenv("NRT_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "nrt"


def test_evaluation_of_a_uniform_model(base: Path) -> None:
    """P(key) = 1/V, no worked traces, no right answers; the random state is unchanged."""
    model = AutoModelForCausalLM.from_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    with torch.no_grad():
        model.get_input_embeddings().weight.zero_()
    state = torch.random.get_rng_state()
    problems = distinct_problems("test", 2)
    rows = evaluate_base(model, tokenizer, problems, samples=1, max_tokens=8)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert {row.family for row in rows} == {"sum", "bot", "recall"}
    for row in rows:
        assert row.key_probability == pytest.approx(1 / len(VOCABULARY))
        assert row.greedy_accuracy == 0
        if row.family == "recall":
            assert math.isnan(row.worked_share)
        else:
            assert row.worked_share == 0


def test_evaluation_of_a_perfect_model() -> None:
    """A model overfitted on four worked documents writes the work, and reads the key off it."""
    tokenizer = build_tokenizer()
    problems = distinct_problems("test", 4, families=("sum",))
    texts = [f"<bos> {p.question} \n {p.work} \n {p.answer} <eos>" for p in problems]
    rows = [tokenizer.encode(text) for text in texts]
    model = build_model(replace(SMALL, width=64, inner=128))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = _loss(model, rows)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    (row,) = evaluate_base(model, tokenizer, problems)
    assert row.greedy_accuracy == 1
    assert row.worked_share > 0.9
    assert row.key_probability > 0.9


def test_importing_the_lab_loads_no_torch() -> None:
    code = (
        "import sys, nrt.lab, nrt.lab.world, nrt.lab.corpus; "
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    environment = {"PYTHONPATH": ":".join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
