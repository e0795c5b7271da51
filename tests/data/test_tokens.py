"""Limits, worked with the byte-level tokenizer, where a letter that begins no known word is one token; and the cache."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from nrt.config import Config, DataConfig, SourceConfig, build_config
from nrt.data import load_pairs, read_examples, tokenise
from nrt.errors import InputError
from nrt.system.environment import cache_folder
from nrt.types import Message
from tests.data.cases import build_case

CHAT = build_case("byte-level", "base").chat
# A prompt of n letters has as many ids as "x" and n − 1 more; an answer of n letters has n ids and the end of the turn.
FRAME = len(CHAT.encode_prompt((Message("user", "x"),))) - 1


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NRT_CACHE", str(tmp_path / "cache"))
    return cache_folder() / "tokens"


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    sizes = [(1, 1), (4, 1), (1, 4), (4, 4), (3, 3)]
    return write(tmp_path / "f.jsonl", [{"question": "x" * p, "answer": "z" * a} for p, a in sizes])


def load(file: Path, **settings: Any):
    data = {"train": str(file), **settings.pop("data", {})}
    return load_pairs(
        Config(
            **{"max_prompt_tokens": FRAME + 3, "max_answer_tokens": 4, **settings, "data": data}
        ),
        "train",
        CHAT,
    )


# --- limits ---


def test_what_is_too_long_is_dropped_and_counted(file: Path) -> None:
    encoded = load(file)
    assert [pair.example.id for pair in encoded.pairs] == ["f.jsonl:1", "f.jsonl:5"]
    assert (encoded.dropped_prompts, encoded.dropped_answers, encoded.truncated_answers) == (
        2,
        1,
        0,
    )
    assert encoded.total == 5
    assert [len(pair.prompt_ids) - FRAME for pair in encoded.pairs] == [1, 3]
    assert encoded.pairs[1].answer_ids == (*CHAT.encode_text("zzz"), CHAT.end_of_turn_id)
    assert encoded.pairs.lengths.tolist() == [FRAME + 1 + 2, FRAME + 3 + 4]


def test_truncated_answers_do_not_end_the_turn(file: Path) -> None:
    encoded = load(file, data={"truncate_answers": True})
    assert [pair.example.id for pair in encoded.pairs] == ["f.jsonl:1", "f.jsonl:3", "f.jsonl:5"]
    assert (encoded.dropped_prompts, encoded.dropped_answers, encoded.truncated_answers) == (
        2,
        0,
        1,
    )
    assert encoded.pairs[1].answer_ids == CHAT.encode_text("zzzz")
    assert encoded.pairs.lengths[1] == FRAME + 1 + 4


def test_nothing_left(file: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"2 prompts are longer than max_prompt_tokens=.*, 3 answers are longer than max_answer_tokens=1; raise max_prompt_tokens; ",
    ):
        load(file, max_answer_tokens=1)


def test_the_rows_place_stands_before_the_templates_complaint(file: Path) -> None:
    case = build_case("byte-level", "chatml")
    template = case.tokenizer.chat_template
    case.tokenizer.chat_template = "{{ raise_exception('no') }}"
    try:
        with pytest.raises(
            InputError, match=r"f.jsonl:1: the model's chat template refuses these turns: no$"
        ):
            tokenise(SourceConfig(path=str(file)), DataConfig(), case.chat)
    finally:
        case.tokenizer.chat_template = template


# --- what comes back is what went in ---


def test_pairs_are_those_of_the_examples(tmp_path: Path) -> None:
    """More than one record batch; turns, sources and other columns of every kind."""
    rows = [
        {
            "messages": [
                {"role": "system", "content": f"s{i}"},
                {"role": "user", "content": f"naïve 😀 {i} <|think_end|>"},
                {"role": "assistant", "content": "z" * (i % 5 + 1)},
            ],
            "source": f"k{i % 3}", "n": i, "nested": {"a": [1, None]},
        }
        for i in range(2345)
    ]  # fmt: skip
    file = write(tmp_path / "m.jsonl", rows)
    tokenised, examples = (
        tokenise(SourceConfig(path=str(file)), DataConfig(), CHAT),
        read_examples(str(file)),
    )
    assert len(tokenised) == len(examples) == 2345
    for i in (0, 999, 1000, 1001, 2000, 2344):
        assert tokenised[i].example == examples[i]
        assert tokenised[i].prompt_ids == CHAT.encode_prompt(examples[i].messages)
        assert tokenised[i].answer_ids == CHAT.encode_answer(examples[i].answer)
    assert list(tokenised.column("source")) == [example.source for example in examples]
    assert tokenised.prompt_lengths.tolist() == [
        len(CHAT.encode_prompt(example.messages)) for example in examples
    ]


def test_slices_and_the_end_of_pairs(file: Path) -> None:
    pairs = load(file, max_prompt_tokens=99, max_answer_tokens=99).pairs
    assert [pair.example.id for pair in pairs[1:3]] == ["f.jsonl:2", "f.jsonl:3"]
    assert pairs[-1].example.id == "f.jsonl:5"
    with pytest.raises(IndexError):
        pairs[5]


# --- the cache ---


def entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def test_the_cache_is_used_until_something_that_matters_changes(
    file: Path, own_cache: Path
) -> None:
    source = SourceConfig(path=str(file))

    def new_entries(*arguments: Any) -> int:
        before = entries(own_cache)
        tokenise(*arguments)
        return len(entries(own_cache) - before)

    assert new_entries(source, DataConfig(), CHAT) == 1
    assert new_entries(source, DataConfig(), CHAT) == 0
    assert new_entries(source, DataConfig(system="Be short."), CHAT) == 1, "settings"
    assert new_entries(source.model_copy(update={"name": "other"}), DataConfig(), CHAT) == 1, (
        "the source's name"
    )
    assert new_entries(source, DataConfig(), build_case("byte-level", "chatml").chat) == 1, (
        "the template"
    )
    assert new_entries(source, DataConfig(), build_case("unigram", "base").chat) == 1, (
        "the tokenizer"
    )
    stamp = file.stat()
    file.write_text(file.read_text(encoding="utf-8").replace("zzz", "yyy"), encoding="utf-8")
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert new_entries(source, DataConfig(), CHAT) == 1, (
        "the content, though size and time of the file are as before"
    )
    assert load(file).pairs[1].answer_ids == (*CHAT.encode_text("yyy"), CHAT.end_of_turn_id)


def test_limits_cost_no_new_tokens(file: Path, own_cache: Path) -> None:
    load(file)
    load(file, max_prompt_tokens=99, data={"truncate_answers": True})
    assert len(entries(own_cache)) == 1


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(b"half")])
def test_a_damaged_cache_is_made_again(file: Path, own_cache: Path, damage: Any) -> None:
    """As after a clean-up of old files that leaves folders, or a power failure."""
    ids = [pair.answer_ids for pair in load(file).pairs]
    (folder,) = own_cache.iterdir()
    for part in folder.iterdir():
        damage(part)
    assert [pair.answer_ids for pair in load(file).pairs] == ids


def test_a_broken_file_leaves_nothing_behind(tmp_path: Path, own_cache: Path) -> None:
    file = write(tmp_path / "f.jsonl", [{"question": "a", "answer": "b"}, {"question": "a"}])
    with pytest.raises(InputError, match=r"f\.jsonl:2: no column 'answer'"):
        load(file)
    assert entries(own_cache) == set()


# --- several sources ---


def test_sources_stand_one_after_the_other(file: Path, tmp_path: Path) -> None:
    other = write(
        tmp_path / "g.jsonl",
        [{"q": "xx", "answer": "#z#"}, {"q": "xx", "answer": "#yy", "source": "own"}],
    )
    sources = [
        str(file),
        {"path": str(other), "columns": {"question": "q"}, "answer": "after:#", "name": "theirs"},
    ]
    config = build_config(
        {
            "data": {"train": sources, "truncate_answers": True},
            "max_prompt_tokens": FRAME + 3,
            "max_answer_tokens": 4,
            "batch": 1,
        }
    )
    with pytest.raises(InputError, match=r"g\.jsonl:1: the answer \(column 'answer'\) is empty"):
        load_pairs(config, "train", CHAT)
    config = build_config(config.model_dump(), {"data": {"on_bad_row": "skip"}})
    encoded = load_pairs(config, "train", CHAT)
    assert encoded.pairs.sizes == (3, 1)
    assert [(pair.example.id, pair.example.source) for pair in encoded.pairs][-2:] == [
        ("f.jsonl:5", ""),
        ("g.jsonl:2", "own"),
    ]
    assert [(bad.number, bad.message[:10]) for bad in encoded.bad] == [(1, "the answer")]
    firsts = {n: [pair.example.id for pair in encoded.pairs.first(n)] for n in (1, 2, 3, 9)}
    f1, f2, f3, g = (pair.example.id for pair in encoded.pairs)
    assert firsts == {1: [f1], 2: [f1, g], 3: [f1, f2, g], 9: [f1, f2, f3, g]}


def test_bad_rows_are_all_listed_and_the_rest_is_read(tmp_path: Path) -> None:
    good = {"question": "a", "answer": "b"}
    file = write(
        tmp_path / "f.jsonl",
        [
            good,
            {"question": "a"},
            good,
            [1],
            {"question": "", "answer": "b"},
            {"question": "a", "answer": 7},
        ],
    )
    encoded = load(file, data={"on_bad_row": "skip"})
    assert [pair.example.id for pair in encoded.pairs] == ["f.jsonl:1", "f.jsonl:3"]
    assert [bad.number for bad in encoded.bad] == [2, 4, 5, 6]
    again = load(file, data={"on_bad_row": "skip"})
    assert again.bad == encoded.bad, "from the cache"
    with pytest.raises(InputError, match=r"f\.jsonl:2: no column 'answer'"):
        load(file)


def test_a_folder_of_shards(tmp_path: Path) -> None:
    (tmp_path / "d" / "sub").mkdir(parents=True)
    write(tmp_path / "d" / "b.jsonl", [{"question": "b", "answer": "b"}])
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([{"question": "a", "answer": "a"}] * 2),
        tmp_path / "d" / "sub" / "a.parquet",
    )
    (tmp_path / "d" / "README.md").write_text("no data")
    (tmp_path / "d" / ".hidden.jsonl").write_text("no data")
    assert [pair.example.id for pair in load(tmp_path / "d").pairs] == [
        "b.jsonl:1",
        "sub/a.parquet:1",
        "sub/a.parquet:2",
    ]


def test_a_cache_that_cannot_be_written_says_so(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("NRT_CACHE", str(tmp_path / "taken"))
    message = r"the token cache cannot be written to .*taken.tokens \(Not a directory\); set NRT_CACHE to another folder"
    with pytest.raises(InputError, match=message):
        load(file)
