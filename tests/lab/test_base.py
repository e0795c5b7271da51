"""The base model's folder is an ordinary one, cached by its settings; packing changes no loss; the readout reads right."""

import math
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from nrt.errors import InputError
from nrt.lab.base import BaseSettings, Stage, _build_model, _loss, _pack, build_base, build_tokenizer, cache_folder, readout
from nrt.lab.corpus import VOCABULARY, documents
from nrt.lab.world import distinct

SMALL = BaseSettings(width=16, heads=2, inner=32, rows=8, stages=(Stage("open", 3, 2e-3, warmup=2), Stage("latent", 2, 7e-4)))
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
    text = f"<bos> {QUESTION}"  # START takes the place of the line break that follows in the corpus
    ids = [VOCABULARY.index(word) for word in text.split(" ")]
    assert tokenizer.apply_chat_template([user], add_generation_prompt=True, tokenize=False) == text
    assert tokenizer.apply_chat_template([user], add_generation_prompt=True, return_dict=False) == ids
    turn = tokenizer.apply_chat_template([user, {"role": "assistant", "content": "9 ."}], tokenize=False)
    assert turn == f"{text} 9 . <eos>"


def test_markers_split_off_without_spaces() -> None:
    """The program that adds the markers may write them right beside a word or a line break."""
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|think_start|>", "<|think_end|>"]})
    ids = tokenizer.encode("live ? \n<|think_start|>now in a ;<|think_end|>a .<eos>")
    assert tokenizer.convert_ids_to_tokens(ids) == "live ? \n <|think_start|> now in a ; <|think_end|> a . <eos>".split(" ")


def test_base_loads_in_transformers(base: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    assert isinstance(model, LlamaForCausalLM)
    assert model.config.tie_word_embeddings
    assert model.get_input_embeddings().weight.shape == (len(VOCABULARY), 16)
    ids = tokenizer.encode(QUESTION)
    assert tokenizer.decode(ids) == QUESTION
    assert tokenizer.chat_template == build_tokenizer().chat_template
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (model.config.eos_token_id, model.config.pad_token_id)
    assert torch.isfinite(model(torch.tensor([ids])).logits).all()


def test_cache_goes_by_all_settings(base: Path) -> None:
    def steps_are_not_wanted(done: int, total: int, loss: float) -> None:
        raise AssertionError("the base was in the cache")

    stamp = (base / "model.safetensors").stat().st_mtime_ns
    assert build_base(SMALL, cache=base.parent, progress=steps_are_not_wanted) == base
    assert (base / "model.safetensors").stat().st_mtime_ns == stamp
    others = [replace(SMALL, seed=1), replace(SMALL, width=32), replace(SMALL, stages=SMALL.stages[:1])]
    assert len({settings.name for settings in (SMALL, *others)}) == 4
    assert [entry.name for entry in base.parent.iterdir()] == [SMALL.name]  # nothing half-built is left


def test_same_settings_same_model_and_progress(base: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    again = build_base(SMALL, cache=tmp_path, progress=lambda done, total, loss: seen.append((done, total)))
    assert (again / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()
    assert seen == [(i, 5) for i in range(1, 6)]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_packed_loss_is_the_loss_of_each_document_alone() -> None:
    model = _build_model(SMALL)
    rows = [[VOCABULARY.index(word) for word in text.split(" ")] for text in islice(documents(0, "open"), 8)]
    sums, count = torch.zeros(()), 0
    for row in rows:
        ids = torch.tensor([row])
        sums += F.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="sum")
        count += len(row) - 1
    torch.testing.assert_close(_loss(model, rows), sums / count)


def test_packing_by_hand() -> None:
    """Width 6: 5 alone; 4 takes 2; 3 takes the next 3."""
    rows = [[0] * n for n in (3, 5, 2, 3, 4)]
    assert [[len(row) for row in bin] for bin in _pack(rows, 6)] == [[5], [4, 2], [3, 3]]


def test_learning_rate_by_hand() -> None:
    """Ten steps, two of warm-up, the last four of which fall to zero: (10 − step)/4 from step 6 on."""
    stage = Stage("open", 10, 1.0, warmup=2, decay=0.4)
    assert [stage.rate(step) for step in range(10)] == [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]


def test_unknown_mixture_is_refused_before_any_training() -> None:
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


def test_readout_of_an_ignorant_model(base: Path) -> None:
    """A uniform model: P(key) = 1/V, and neither worked traces nor right answers. The random state is left alone."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    with torch.no_grad():
        model.get_input_embeddings().weight.zero_()
    state = torch.random.get_rng_state()
    lines = readout(model, tokenizer, distinct("test", 2), samples=1, max_tokens=8)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert {line.family for line in lines} == {"sum", "bot", "recall"}
    for line in lines:
        assert line.key_given_gold == pytest.approx(1 / len(VOCABULARY))
        assert line.greedy == 0
        assert math.isnan(line.worked) if line.family == "recall" else line.worked == 0


def test_readout_knows_a_perfect_reasoner() -> None:
    """A model overfitted on four worked documents writes the work, ends with the answer, and reads the key off it."""
    tokenizer = build_tokenizer()
    problems = distinct("test", 4, families=("sum",))
    texts = [f"<bos> {p.question} \n {p.work} \n {p.answer} <eos>" for p in problems]
    rows = [tokenizer.encode(text) for text in texts]
    model = _build_model(replace(SMALL, width=64, inner=128))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = _loss(model, rows)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    (line,) = readout(model, tokenizer, problems)
    assert line.greedy == 1
    assert line.worked > 0.9
    assert line.key_given_gold > 0.9


def test_importing_the_lab_loads_no_torch() -> None:
    code = "import sys, nrt.lab, nrt.lab.world, nrt.lab.corpus; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})
