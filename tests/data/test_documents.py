"""Cuts worked by hand, and for every tokenizer: the ids are those of the document."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nrt.config import Config, SourceConfig, TextConfig, build_config
from nrt.data import EntropyFunction, LoadedPairs, load_pairs, tokenise
from nrt.data.documents import Document, cut_document
from nrt.errors import InputError
from nrt.run import document_id
from nrt.system.environment import cache_folder
from nrt.types import Message
from tests.data.cases import TEMPLATES, TOKENIZERS, build_case

CHAT = build_case("byte-level", "base").chat
BOS = CHAT.opening


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NRT_CACHE", str(tmp_path / "cache"))
    return cache_folder() / "tokens"


def by_character(text: str, opening: tuple[int, ...] = ()) -> Document:
    """One token a character, whose id is the character's code."""
    return Document("d:1", text, tuple(map(ord, text)), tuple(range(len(text))), opening)


def cut(text: str, entropies: list[float] | None = None, **settings: Any) -> list[tuple[str, str]]:
    """(prefix, continuation) of each cut; ids and text say the same."""
    function = EntropyFunction(lambda ids: entropies or [], "") if entropies is not None else None
    pairs = list(
        cut_document(
            by_character(text),
            TextConfig(**{"stride": 1, "continuation_tokens": 99, **settings}),
            function,
        )
    )
    for pair in pairs:
        assert "".join(map(chr, pair.prompt_ids)) == pair.example.messages[0].content
        assert "".join(map(chr, pair.answer_ids)) == pair.example.answer
    return [(pair.example.messages[0].content, pair.example.answer) for pair in pairs]


def places(text: str, **settings: Any) -> list[str]:
    """The whole text before each cut."""
    return [prefix for prefix, _ in cut(text, prefix_tokens=10**6, **settings)]


# --- where ---


@pytest.mark.parametrize(
    ("text", "before"),
    [
        ("It is 3.5 m. Or 4? No!", ["It is 3.5 m.", "It is 3.5 m. Or 4?"]),
        ('He said "go." Then (he left.) Fine', ['He said "go."', 'He said "go." Then (he left.)']),
        ("Wait... what?! Yes", ["Wait...", "Wait... what?!"]),
        ("东京。京都！好", ["东京。", "东京。京都！"]),
        ("他说「走。」好", ["他说「走。」"]),
        ("A title\nText. More", ["A title", "A title\nText."]),
        ("one.\r\ntwo\r\n\r\nthree", ["one.", "one.\r\ntwo"]),
        ("one \t\n \n two", ["one"]),
        ("e.g. this", ["e.g."]),  # an abbreviation counts as an end
        ("no end", []),
        ("the end.", []),
        ("the end. \n", []),
        ("\n\nthe start", []),
    ],
)  # fmt: skip
def test_sentence_ends(text: str, before: list[str]) -> None:
    """The white space that follows belongs to the continuation."""
    assert places(text, at="sentences") == before


def test_strides() -> None:
    assert cut("abcdefgh", at="stride", stride=3, continuation_tokens=3) == [
        ("abc", "def"),
        ("abcdef", "gh"),
    ]


def test_entropy_takes_the_least_certain_tokens_that_keep_their_distance() -> None:
    """4.0 at b is too near the beginning; 3.5 at e; 3.0 at f is too near e; 2.0 at c is not (2 apart); 1.5 at g is 2 apart."""
    entropies = [0.0, 4.0, 2.0, 0.5, 3.5, 3.0, 1.5, 0.1]
    assert [p for p, _ in cut("abcdefgh", entropies, at="entropy", stride=2)] == [
        "ab",
        "abcd",
        "abcdef",
    ]
    assert [p for p, _ in cut("abcdefgh", entropies, at="entropy", stride=2, most=2)] == [
        "ab",
        "abcd",
    ]
    assert [p for p, _ in cut("abcdefgh", entropies, at="entropy", stride=2, most=1)] == ["abcd"]
    assert [p for p, _ in cut("abcd", [1.0, 1.0, 1.0, 1.0], at="entropy", most=1)] == ["a"], (
        "equals: the first"
    )


def test_entropy_without_a_model() -> None:
    with pytest.raises(ValueError, match="entropies"):
        cut("abc", at="entropy")


def test_most_takes_the_first_sentences() -> None:
    assert places("A. B. C. D", at="sentences", most=2) == ["A.", "A. B."]


def test_sentences_too_near_are_passed_over() -> None:
    """Ends at 2, 5, 8: the first is nearer than 4 to the beginning, the last nearer than 4 to the second."""
    assert places("A. B. C. D", at="sentences", stride=4) == ["A. B."]


def test_prefix_and_continuation_have_at_most_so_many_tokens() -> None:
    assert cut("abcdefgh", at="stride", stride=4, prefix_tokens=2, continuation_tokens=3) == [
        ("cd", "efg")
    ]
    assert cut("abcdefghij", at="stride", stride=4, prefix_tokens=99, continuation_tokens=3) == [
        ("abcd", "efg"),
        ("abcdefgh", "ij"),
    ]


def test_sides_of_nothing_but_white_space_are_passed_over() -> None:
    assert (
        cut("   ab   ", at="stride", prefix_tokens=2, continuation_tokens=2)
        == [(" a", "b "), ("ab", "  ")][:1]
    )
    assert cut("", at="stride") == cut("   ", at="stride") == cut("a", at="stride") == []


@pytest.mark.parametrize(
    ("space", "cuts"),
    [
        ("keep", [("A?", " \n B!"), ("A? \n B!", "C")]),
        ("prefix", [("A? \n ", "B!")]),
        ("drop", [("A?", "B!")]),
    ],
)
def test_white_space_at_a_cut(space: str, cuts: list[tuple[str, str]]) -> None:
    assert cut("A? \n B!", at="sentences", space=space) == cuts[:1]


def test_white_space_dropped_counts_in_neither_length() -> None:
    assert cut(
        "abc. \n def", at="sentences", space="drop", prefix_tokens=2, continuation_tokens=2
    ) == [("c.", "de")]


def test_cuts_in_one_stretch_of_white_space_are_one() -> None:
    assert cut("a   b", at="stride", space="drop") == [("a", "b")]


def test_never_within_a_character() -> None:
    """Three tokens of one character begin at the same place; a stride that would cut there cuts at the next character."""
    document = Document("d:1", "ab\u6771cd", (1, 2, 3, 4, 5, 6, 7), (0, 1, 2, 2, 2, 3, 4), ())
    pairs = list(cut_document(document, TextConfig(at="stride", stride=3, continuation_tokens=9)))
    assert [(pair.prompt_ids, pair.answer_ids) for pair in pairs] == [((1, 2, 3, 4, 5), (6, 7))]
    assert (pairs[0].example.messages[0].content, pairs[0].example.answer) == ("ab\u6771", "cd")


def test_what_opens_a_text_stands_before_every_prefix() -> None:
    pairs = list(
        cut_document(
            by_character("abcdef", opening=(1,)), TextConfig(at="stride", stride=2, prefix_tokens=2)
        )
    )
    assert [pair.prompt_ids for pair in pairs] == [(1, ord("a"), ord("b")), (1, ord("c"), ord("d"))]


def test_names_of_cuts() -> None:
    pairs = list(cut_document(by_character("abcdef"), TextConfig(at="stride", stride=2)))
    assert [pair.example.id for pair in pairs] == ["d:1@2", "d:1@4"]
    assert [document_id(pair.example.id) for pair in pairs] == ["d:1", "d:1"]
    assert [document_id(name) for name in ("odd@2.jsonl:7", "odd@2", "a:1@2@3")] == [
        "odd@2.jsonl:7",
        "odd@2",
        "a:1@2@3",
    ]


def test_a_quarter_of_a_million_tokens() -> None:
    """Linear in the document, whatever the number of cuts."""
    document, entropies = (
        by_character("a. b\n" * 50_000),
        EntropyFunction(lambda ids: [float(i % 97) for i in range(len(ids))], ""),
    )
    begin = time.process_time()
    for config in (
        TextConfig(at="sentences", stride=5, space="drop"),
        TextConfig(at="stride", stride=64),
        TextConfig(at="entropy"),
    ):
        assert sum(1 for _ in cut_document(document, config, entropies)) > 2_000
    assert time.process_time() - begin < 60


# --- of every tokenizer ---

PIECES = [
    "Paris",
    " is",
    " the town",
    ". ",
    "\n",
    "\r\n",
    " ",
    "東京",
    "é",
    "🙂",
    "</s>",
    "3.5",
    "\u3000",
    "ﬁ",
]
CONFIGS = st.builds(
    TextConfig,
    at=st.sampled_from(["sentences", "stride", "entropy"]),
    stride=st.integers(1, 5),
    prefix_tokens=st.integers(1, 9),
    continuation_tokens=st.integers(1, 9),
    space=st.sampled_from(["keep", "prefix", "drop"]),
)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@given(text=st.lists(st.sampled_from(PIECES)).map("".join), config=CONFIGS)
def test_ids_are_a_stretch_of_the_documents(
    tokenizer: str, template: str, text: str, config: TextConfig
) -> None:
    chat = build_case(tokenizer, template).chat
    ids, starts = chat.encode_document(text)
    assert ids == chat.encode_text(text)
    assert len(starts) == len(ids)
    assert list(starts) == sorted(starts)
    document = Document("d:1", text, ids, starts, chat.opening)
    entropies = EntropyFunction(lambda ids: [float(token % 7) for token in ids], "")
    at = []
    for pair in cut_document(document, config, entropies):
        place = int(pair.example.id.rpartition("@")[2])
        prefix = pair.prompt_ids[len(chat.opening) :]
        assert pair.prompt_ids[: len(chat.opening)] == chat.opening
        assert 1 <= len(prefix) <= config.prefix_tokens
        assert pair.answer_ids == ids[place : place + config.continuation_tokens]
        before = pair.example.messages[0].content
        if config.space == "drop":
            end = next(
                end
                for end in range(place, 0, -1)
                if ids[max(0, end - config.prefix_tokens) : end] == prefix and end <= place
            )
            assert not text[starts[end] : starts[place]].strip()
        else:
            assert prefix == ids[max(0, place - config.prefix_tokens) : place]
        for side in (before, pair.example.answer):
            assert side in text
            assert side.strip()
        at.append(place)
    assert all(b - a >= config.stride for a, b in zip([0, *at], at, strict=False))


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_control_tokens_in_a_document_are_plain_text(tokenizer: str, template: str) -> None:
    case = build_case(tokenizer, template)
    for spelled in case.control:
        ids, _ = case.chat.encode_document(f"Paris {spelled} is. {spelled}")
        assert not case.chat.control_ids & set(ids), spelled


@pytest.mark.parametrize(
    ("tokenizer", "template", "opens"),
    [("byte-level", "base", True), ("unigram", "base", False), ("unigram", "llama3", True)],
)
def test_what_opens_a_text(tokenizer: str, template: str, opens: bool) -> None:
    """BOS if the tokenizer writes it, or else the template: then the model knows texts that begin with it."""
    case = build_case(tokenizer, template)
    assert case.chat.opening == ((case.tokenizer.bos_token_id,) if opens else ())


# --- files ---


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def load(path: Path, **data: Any) -> LoadedPairs:
    text = {"at": "stride", "stride": 2, "continuation_tokens": 2, **data.pop("text", {})}
    return load_pairs(
        build_config({"data": {"train": str(path), "text": text, **data}, "batch": 1}),
        "train",
        CHAT,
    )


def texts(pairs: Any) -> list[tuple[str, str, str]]:
    return [
        (pair.example.id, pair.example.messages[0].content, pair.example.answer) for pair in pairs
    ]


def test_files_of_text_are_documents(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.txt").write_text("zzxx", encoding="utf-8")
    write(tmp_path / "d" / "b.jsonl", [{"text": "xxzzx"}, {"text": "x"}])
    pairs = load(tmp_path / "d").pairs
    assert texts(pairs) == [
        ("a.txt:1@2", "zz", "xx"),
        ("b.jsonl:1@2", "xx", "zz"),
        ("b.jsonl:1@4", "xxzz", "x"),
    ]
    assert pairs[0].prompt_ids == (*BOS, *CHAT.encode_text("zz")), "BOS once"
    assert pairs[2].answer_ids == CHAT.encode_text("x"), "the end of a document does not end a turn"


def test_other_columns_of_a_document(tmp_path: Path) -> None:
    file = write(
        tmp_path / "b.jsonl",
        [{"body": "xxzz", "source": "own", "year": 1}, {"body": "xxzz", "year": None}],
    )
    source = {
        "path": str(file),
        "name": "books",
        "text": {"at": "stride", "stride": 2, "column": "body"},
    }
    pairs = load_pairs(build_config({"data": {"train": [source]}, "batch": 1}), "train", CHAT).pairs
    assert [(pair.example.source, pair.example.extra) for pair in pairs] == [
        ("own", {"year": 1}),
        ("books", {"year": None}),
    ]
    named = load(file, text={"column": "body"}, columns={"source": "year"}).pairs
    assert [pair.example.source for pair in named] == ["1", ""]


def test_documents_and_pairs_in_one_run(tmp_path: Path) -> None:
    asked = write(tmp_path / "a.jsonl", [{"question": "x", "answer": "z"}])
    read = write(tmp_path / "b.jsonl", [{"text": "xxzz"}])
    sources = [
        {"path": str(asked), "weight": 1},
        {"path": str(read), "weight": 3, "text": {"at": "stride", "stride": 2}},
    ]
    pairs = load_pairs(build_config({"data": {"train": sources}, "batch": 1}), "train", CHAT).pairs
    assert pairs.sizes == (1, 1)
    assert pairs[0].prompt_ids == CHAT.encode_prompt((Message("user", "x"),))
    assert (pairs[0].answer_ids[-1], pairs[1].answer_ids) == (
        CHAT.end_of_turn_id,
        CHAT.encode_text("zz"),
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"body": "x"}, r"b\.jsonl:1: no text in column 'text' among body; set data.text.column"),
        ({"text": 7}, r"no text in column 'text'"),
        ([1], r"no text in column 'text' among list"),
        ({"text": " \n"}, r"the document \(column 'text'\) is empty"),
        ({"text": "a\0b"}, "contains a NUL character"),
        ({"text": "a\ud800"}, "contains half a surrogate pair"),
    ],
)  # fmt: skip
def test_rows_without_a_document(tmp_path: Path, row: Any, message: str) -> None:
    file = write(tmp_path / "b.jsonl", [row, {"text": "xxzz"}])
    with pytest.raises(InputError, match=message):
        load(file)
    encoded = load(file, on_bad_row="skip")
    assert [bad.number for bad in encoded.bad] == [1]
    assert texts(encoded.pairs) == [("b.jsonl:2@2", "xx", "zz")]


def test_a_source_column_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no column 'kind' among text; set data\.columns\.source"):
        load(write(tmp_path / "b.jsonl", [{"text": "xxzz"}]), columns={"source": "kind"})


def test_documents_that_are_too_short(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"no document is long enough to be cut; lower data\.text\.stride"
    ):
        load(write(tmp_path / "b.jsonl", [{"text": "xz"}]))


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (
            {"max_prompt_tokens": 256},
            "prefix_tokens=256 makes prompts of 257 tokens, more than max_prompt_tokens=256",
        ),
        ({"max_answer_tokens": 63}, "continuation_tokens=64 is more than max_answer_tokens=63"),
    ],
)
def test_limits_that_would_keep_only_parts_of_documents(
    tmp_path: Path, limits: dict[str, int], message: str
) -> None:
    data = {"train": str(write(tmp_path / "b.jsonl", [{"text": "xxzz"}])), "text": {}}
    with pytest.raises(InputError, match=message):
        load_pairs(build_config({"data": data, "batch": 1, **limits}), "train", CHAT)


def test_a_file_without_documents(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"b\.jsonl:1: the file has no rows; write one document per row"
    ):
        load(write(tmp_path / "b.jsonl", []))


def test_the_cache_knows_whose_entropies_chose_the_cuts(tmp_path: Path, own_cache: Path) -> None:
    source = SourceConfig(path=str(write(tmp_path / "b.jsonl", [{"text": "xxzzxxzz"}])))

    def cuts(at: str, least_certain: int, fingerprint: str) -> list[int]:
        config = TextConfig(at=at, stride=1, most=1)  # type: ignore[arg-type]
        entropies = EntropyFunction(
            lambda ids: [float(i == least_certain) for i in range(len(ids))], fingerprint
        )
        cache = tokenise(
            source, Config().data.model_copy(update={"text": config}), CHAT, entropies=entropies
        )
        return [int(name.rpartition("@")[2]) for name in cache.column("id")]

    assert cuts("entropy", 3, "a") == [3]
    assert cuts("entropy", 5, "b") == [5]
    assert cuts("entropy", 7, "a") == [3], "from the cache"
    assert len(list(own_cache.iterdir())) == 2
    cuts("stride", 0, "a")
    cuts("stride", 0, "b")
    assert len(list(own_cache.iterdir())) == 3, (
        "where cuts need no entropies, the model does not matter"
    )
