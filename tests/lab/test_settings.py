"""Each recipe of the miniature has a base model, and data of that model's world."""

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken

from nrt.config import MarkersConfig, load_config
from nrt.data import Chat, load_pairs, read_examples
from nrt.lab.base import build_tokenizer
from nrt.lab.settings import BASES, data_settings, prepare
from nrt.lab.world import ADD_WEIGHTS, WEIGHTS


@pytest.mark.parametrize(
    ("recipe", "families"),
    [("miniature", WEIGHTS), ("miniature-hard", WEIGHTS), ("miniature-weak", ADD_WEIGHTS)],
)
def test_pairs_are_of_the_base_models_world(recipe, families, tmp_path, monkeypatch):
    monkeypatch.setenv("NRT_CACHE", str(tmp_path))
    settings = data_settings(BASES[recipe])
    config = load_config(recipe, [*settings, "model=m"])
    assert config.max_trace_tokens == 20
    assert isinstance(config.data.train, str)
    rows = read(Path(config.data.train))
    assert {row["family"] for row in rows} == set(families)
    assert dict(BASES[recipe].weights) == dict(families)


def test_the_same_problems_as_documents(tmp_path, monkeypatch):
    monkeypatch.setenv("NRT_CACHE", str(tmp_path))
    pair_settings = data_settings(BASES["miniature"])
    text_settings = data_settings(BASES["miniature-text"], as_text=True)
    for i in (0, 1):
        pairs, documents = read_setting(pair_settings[i]), read_setting(text_settings[i])
        for pair, document in zip(pairs, documents, strict=True):
            assert document["text"] == f"{pair['question']} \n {pair['answer']}"
            assert document.keys() == {"text", "family", "key", "work"}


def test_a_document_of_the_miniature_becomes_its_pair(tmp_path, monkeypatch):
    """The line break is dropped; only the token that ends y* is missing from the pair."""
    monkeypatch.setenv("NRT_CACHE", str(tmp_path))
    tokenizer = build_tokenizer()
    markers = ("<|think_start|>", "<|think_end|>")
    tokenizer.add_tokens([AddedToken(text, special=True) for text in markers])
    chat = Chat(tokenizer, MarkersConfig())

    def valid_pairs(recipe):
        settings = data_settings(BASES[recipe], as_text=recipe == "miniature-text")
        return load_pairs(load_config(recipe, [*settings, "model=m"]), "valid", chat).pairs

    pairs, text_pairs = valid_pairs("miniature"), valid_pairs("miniature-text")
    assert len(pairs) == len(text_pairs) == 716
    for pair, text_pair in zip(pairs[:50], text_pairs[:50], strict=True):
        assert text_pair.prompt_ids == pair.prompt_ids
        assert text_pair.answer_ids == pair.answer_ids[:-1]
        assert text_pair.example.source == pair.example.source
        assert text_pair.example.extra == pair.example.extra


def test_only_miniature_text_shares_a_base_model():
    names = {recipe: base.name for recipe, base in BASES.items()}
    assert names.pop("miniature-text") == names["miniature"]
    assert len(set(names.values())) == len(names) == 3


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_setting(setting):
    """Read the file that a `key=path` setting names."""
    return read(Path(setting.partition("=")[2]))


def test_only_what_the_user_has_not_given_is_prepared(tmp_path, monkeypatch):
    """A recipe's data can be for another model, such as one that a first run has trained."""
    monkeypatch.setenv("NRT_CACHE", str(tmp_path))
    for recipe in ("miniature", "smollm2"):
        settings = prepare(recipe, 0, ["model=runs/first/model", "steps=3"])
        keys = [text.split("=")[0] for text in settings]
        assert keys == ["data.train", "data.valid"]
        assert prepare(recipe, 0, ["model=m", "data.train=d"]) == []
    assert not list(tmp_path.rglob("*.safetensors")), "no model was made"


def test_a_system_message_in_place_of_worked_examples(tmp_path, monkeypatch):
    monkeypatch.setenv("NRT_CACHE", str(tmp_path))
    turns = {}
    for recipe in ("smollm2", "smollm2-zero-shot"):
        _, valid = prepare(recipe, 0, ["model=m"])
        turns[recipe] = [row["messages"] for row in read(Path(valid.split("=", 1)[1]))]
    assert len(turns["smollm2"]) == 64
    for with_examples, without in zip(*turns.values(), strict=True):
        assert len(with_examples) == 6
        assert [turn["role"] for turn in without] == ["system", "user", "assistant"]
        assert without[1:] == with_examples[-2:], "the same questions"


def test_a_pretrained_model_on_the_users_own_pairs(tmp_path, monkeypatch):
    """The recipe brings the model only; without data the run says what to give."""
    assert prepare("smollm2-pairs", 0, ["model=m"]) == []
    assert prepare("smollm2-pairs", 0, ["model=m", "data.train=d"]) == []
    file = tmp_path / "mine.jsonl"
    file.write_text('{"prompt": "Why?", "completion": "So."}\n', encoding="utf-8")
    config = load_config("smollm2-pairs", ["model=m", f"data.train={file}"])
    (example,) = read_examples(str(file), config.data)
    assert (example.messages[-1].content, example.answer) == ("Why?", "So.")
