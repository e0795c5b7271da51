"""Each recipe of the miniature has a base and a world, and they fit."""

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken

from nrt.config import MarkersConfig, load_config
from nrt.data import Chat, load_pairs
from nrt.lab.base import build_tokenizer
from nrt.lab.settings import BASES, pairs
from nrt.lab.world import ADD_WEIGHTS, WEIGHTS


@pytest.mark.parametrize(("recipe", "families"), [("miniature", WEIGHTS), ("miniature-hard", WEIGHTS), ("miniature-weak", ADD_WEIGHTS)])
def test_pairs_are_of_the_world_that_the_base_knows(recipe, families, tmp_path, monkeypatch):
    monkeypatch.setenv("NRT_CACHE", str(tmp_path))
    settings = pairs(BASES[recipe])
    config = load_config(recipe, [*settings, "model=m"])
    assert config.max_trace_tokens == 20
    assert isinstance(config.data.train, str)
    rows = [json.loads(line) for line in Path(config.data.train).read_text(encoding="utf-8").splitlines()]
    assert {row["family"] for row in rows} == set(families)
    assert dict(BASES[recipe].weights) == dict(families)


def test_the_same_problems_as_documents(tmp_path, monkeypatch):
    monkeypatch.setenv("NRT_CACHE", str(tmp_path))
    asked, written = pairs(BASES["miniature"]), pairs(BASES["miniature-text"], as_text=True)
    for i in (0, 1):
        questions, documents = (read(settings[i]) for settings in (asked, written))
        assert [row["text"] for row in documents] == [f"{row['question']} \n {row['answer']}" for row in questions]
        assert all(document.keys() == {"text", "family", "key", "work"} for document in documents)
    assert asked[2] == written[2], "heldout.rows"


def read(setting):
    return [json.loads(line) for line in Path(setting.partition("=")[2]).read_text(encoding="utf-8").splitlines()]


def test_a_document_of_the_miniature_becomes_the_pair_that_it_is_made_of(tmp_path, monkeypatch):
    """The line break is dropped: x and y* are those of the recipe `miniature`, but for the token that ends y*."""
    monkeypatch.setenv("NRT_CACHE", str(tmp_path))
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([AddedToken(text, special=True) for text in ("<|think_start|>", "<|think_end|>")])
    chat = Chat(tokenizer, MarkersConfig())
    settings = {name: pairs(BASES[name], as_text=name == "miniature-text") for name in ("miniature", "miniature-text")}
    asked, cut = (load_pairs(load_config(name, [*given, "model=m"]), "valid", chat).pairs for name, given in settings.items())
    assert len(asked) == len(cut) == 716
    for pair, text in zip(asked[:50], cut[:50], strict=True):
        assert (text.prompt_ids, text.answer_ids) == (pair.prompt_ids, pair.answer_ids[:-1])
        assert (text.example.source, text.example.extra) == (pair.example.source, pair.example.extra)


def test_bases_differ_but_for_text():
    names = {recipe: base.name for recipe, base in BASES.items()}
    assert names.pop("miniature-text") == names["miniature"]
    assert len(set(names.values())) == len(names) == 3
