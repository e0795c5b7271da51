"""Readers of every schema, and every error with its file and row."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from nrt.config import ColumnsConfig, DataConfig
from nrt.data import read_examples
from nrt.data.files import find_tables, without_media
from nrt.data.rows import BadRow
from nrt.data.sources import iterate_examples
from nrt.errors import InputError
from nrt.types import Example, Message

FIXTURES = Path(__file__).parent / "fixtures"
GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k"
ANT, SPIDER = "How many legs has an ant?", "How many legs has a spider?"


def user(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


def read(name: str, **settings: Any) -> list[Example]:
    return read_examples(str(FIXTURES / name), DataConfig(**settings))


def written(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


# --- schemas ---


def test_question_and_answer() -> None:
    assert read("qa.jsonl") == [
        Example("qa.jsonl:1", user(ANT), "Ants are insects.\n#### 6", "ants", {"level": 1}),
        Example(
            "qa.jsonl:2",
            user(SPIDER),
            "Spiders are #### no insects.\n####  8 \n",
            "spiders",
            {"level": 2},
        ),
    ]


def test_the_answer_after_the_last_mark() -> None:
    assert [example.answer for example in read("qa.jsonl", answer="after:####")] == ["6", "8"]


def test_the_answer_before_the_first_mark(tmp_path: Path) -> None:
    path = written(
        tmp_path / "x.jsonl",
        {"prompt": "a", "completion": "4 stars<|endoftext|>"},
        {"prompt": "a", "completion": "b"},
    )
    with pytest.raises(
        InputError,
        match=r":2: the answer has no mark '<\|endoftext\|>', .*else write it after the answer",
    ):
        read_examples(path, DataConfig(answer="before:<|endoftext|>"))
    (table,) = find_tables(path)
    assert (
        getattr(
            next(iterate_examples(table, DataConfig(answer="before:<|endoftext|>"))), "answer", ""
        )
        == "4 stars"
    )


def test_prompt_and_completion_as_text_or_turns() -> None:
    assert read("prompt_completion.jsonl") == [
        Example("prompt_completion.jsonl:1", user("Name a colour."), "Blue."),
        Example("prompt_completion.jsonl:2", user("How many wheels has a bicycle?"), "2"),
    ]
    assert read("prompt_completion_turns.jsonl") == [
        Example(
            "prompt_completion_turns.jsonl:1",
            (Message("system", "Be short."), *user("Name a town.")),
            "Ghent.",
        ),
    ]


def test_messages_of_several_turns() -> None:
    """The second row stands on line 3: rows of text files are counted in lines."""
    turns = (
        Message("system", "Be short."),
        *user("Hello"),
        Message("assistant", "Hello."),
        *user("Name a town."),
    )
    assert read("messages.jsonl") == [
        Example("messages.jsonl:1", user("Name a colour."), "Blue.", "colours", {"id": "a"}),
        Example("messages.jsonl:3", turns, "Ghent.", "", {"id": "b"}),
    ]


@pytest.mark.parametrize("name", ["qa.json", "data.json"])
def test_json(name: str) -> None:
    assert read(name) == [
        Example(f"{name}:1", user(ANT), "6"),
        Example(f"{name}:2", user(SPIDER), "8"),
    ]


def test_csv_with_line_feeds_commas_and_quotes() -> None:
    assert read("qa.csv") == [
        Example(
            "qa.csv:2",
            user("How many legs,\nall told, has an ant?"),
            "6",
            "",
            {"note": 'says "six"'},
        ),
        Example("qa.csv:5", user(SPIDER), "8", "", {"note": ""}),
    ]


@pytest.mark.parametrize("name", ["qa.jsonl", "messages.jsonl", "qa.json", "qa.csv"])
def test_gzip_changes_nothing_but_the_name(name: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress((FIXTURES / name).read_bytes()))
    packed = read_examples(str(tmp_path / f"{name}.gz"), DataConfig())
    assert [example.id.replace(".gz", "") for example in packed] == [
        example.id for example in read(name)
    ]
    assert [example.messages for example in packed] == [example.messages for example in read(name)]


@pytest.mark.parametrize("name", ["qa.jsonl", "messages.jsonl"])
def test_parquet(name: str, tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [
        json.loads(line)
        for line in (FIXTURES / name).read_text(encoding="utf-8").splitlines()
        if line
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet", row_group_size=1)
    examples = read_examples(str(tmp_path / "x.parquet"), DataConfig())
    assert [example.id for example in examples] == ["x.parquet:1", "x.parquet:2"]
    for mine, text in zip(examples, read(name), strict=True):
        assert (mine.messages, mine.answer, mine.source, mine.extra) == (
            text.messages,
            text.answer,
            text.source,
            text.extra,
        )


def test_datasets_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` takes a local folder for a name, so this needs no network."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "org" / "name" / "test.jsonl").write_bytes((FIXTURES / "qa.jsonl").read_bytes())
    monkeypatch.chdir(tmp_path)
    examples = read_examples("org/name:test", DataConfig())
    assert [(example.id, example.source) for example in examples] == [
        ("org/name:test:1", "ants"),
        ("org/name:test:2", "spiders"),
    ]
    with pytest.raises(
        InputError,
        match=r"org/name:dev: org/name is a folder, and loading it as a dataset failed: .*check org/name:CONFIG:SPLIT",
    ):
        read_examples("org/name:dev", DataConfig())


def test_media_columns_are_left_out() -> None:
    """To iterate over them would decode each, which fails for a broken file."""
    datasets = pytest.importorskip("datasets")
    text = datasets.Value("string")
    features = datasets.Features({"question": text, "answer": text, "image": datasets.Image()})
    row = {"question": "a", "answer": "b", "image": {"bytes": b"broken", "path": None}}
    rows = datasets.Dataset.from_list([row], features=features)
    assert list(without_media(rows)) == [{"question": "a", "answer": "b"}]
    assert without_media([row]) == [row]


def test_a_folder_with_two_configurations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As downloaded from a hub. Without a split its test files would be trained on."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    lines = ["---", "configs:"]
    for name in ("easy", "hard"):
        (tmp_path / "sums" / name).mkdir(parents=True)
        lines += [f"- config_name: {name}", "  data_files:"]
        for split in ("train", "test"):
            row = {"question": f"{name} {split} ?", "answer": "one"}
            file = tmp_path / "sums" / name / f"{split}-0.jsonl"
            file.write_text(json.dumps(row) + "\n")
            lines += [f"  - split: {split}", f"    path: {name}/{split}-*"]
    (tmp_path / "sums" / "README.md").write_text("\n".join([*lines, "---", ""]))
    for path in ("sums", "sums/easy"):
        with pytest.raises(
            InputError, match=r"files of several splits \(.*test-0.jsonl, .*\); name the files"
        ):
            read_examples(path, DataConfig())
    for path in ("sums:hard:test", "./sums:hard:test", f"{tmp_path}/sums:hard:test"):
        (example,) = read_examples(path, DataConfig())
        assert example.messages[0].content == "hard test ?"
    (example,) = read_examples("sums/easy/train*", DataConfig())
    assert example.messages[0].content == "easy train ?"
    assert len(read_examples("sums:hard:train[:1]", DataConfig())) == 1
    assert len(read_examples("sums/**/*.jsonl", DataConfig())) == 4


@pytest.mark.parametrize(
    ("files", "is_refused"),
    [
        (("train.jsonl", "val.jsonl"), True),
        (("training.jsonl", "testing.jsonl"), True),
        (("gsm8k_train.jsonl", "gsm8k_test.jsonl"), True),
        (("train1.jsonl.gz", "dev.csv"), True),
        (("train/a.jsonl", "eval/a.jsonl"), True),
        (("train-0.jsonl", "train-1.jsonl"), False),
        (("test.jsonl", "validation.jsonl"), False),
        (("blood-test-results.jsonl", "how-to-train-dogs.jsonl"), False),
        (("how-to-train.txt", "blood-test.txt"), False),
    ],
)
def test_files_of_several_splits(tmp_path: Path, files: Sequence[str], is_refused: bool) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    if is_refused:
        with pytest.raises(InputError, match="files of several splits"):
            find_tables(str(tmp_path))
    else:
        assert [table.name for table in find_tables(str(tmp_path))] == sorted(files)


@pytest.mark.parametrize(("split", "rows"), [("train", 7473), ("test", 1319)])
def test_gsm8k_is_read_whole(split: str, rows: int) -> None:
    path = GSM8K / f"{split}.jsonl.gz"
    if not path.is_file():
        pytest.skip("../shared/data/gsm8k is absent")
    examples = read_examples(str(path), DataConfig(answer="after:####"))
    assert len(examples) == rows
    assert all(
        example.answer.replace(",", "").lstrip("-").replace(".", "").isdigit()
        for example in examples
    )


# --- settings ---


def test_named_columns(tmp_path: Path) -> None:
    path = written(
        tmp_path / "x.jsonl",
        {"q": "a", "completion": "b", "answer": "c", "from": 7, "messages": []},
    )
    (example,) = read_examples(path, DataConfig(columns=ColumnsConfig(question="q", source="from")))
    assert example == Example("x.jsonl:1", user("a"), "c", "7", {"completion": "b", "messages": []})
    (example,) = read_examples(
        path, DataConfig(columns=ColumnsConfig(question="q", answer="completion"))
    )
    assert example.answer == "b"


def test_system_message_goes_where_there_is_none() -> None:
    first, second = read("messages.jsonl", system="Be kind.")
    assert first.messages == (Message("system", "Be kind."), *user("Name a colour."))
    assert second.messages[0] == Message("system", "Be short.")


def test_byte_order_mark_and_windows_lines(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(
        b'\xef\xbb\xbf{"question": "a", "answer": "b"}\r\n\r\n{"question": "c", "answer": "d"}'
    )
    assert [example.id for example in read_examples(str(tmp_path / "x.jsonl"), DataConfig())] == [
        "x.jsonl:1",
        "x.jsonl:3",
    ]


# --- errors ---

GOOD = {"question": "a", "answer": "b"}
ASSISTANT, USER = {"role": "assistant", "content": "b"}, {"role": "user", "content": "a"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1], "the row is a list, not an object"),
        ({"question": "a"}, "no column 'answer' among question; set data.columns.answer"),
        (
            {"question": " \n", "answer": "b"},
            "the question (column 'question') is empty; fill it in or remove the row",
        ),
        ({"question": "a", "answer": ""}, "the answer (column 'answer') is empty"),
        (
            {"question": "a", "answer": None},
            "column 'answer' is empty (null), not text; write a string",
        ),
        (
            {"question": "a", "answer": 0.5},
            "column 'answer' is 0.5, a number without a fixed number of digits",
        ),
        ({"question": "a", "answer": True}, "column 'answer' is true or false, not text"),
        ({"question": "a", "answer": "\ud800"}, "column 'answer' contains half a surrogate pair"),
        ({"question": [], "answer": "b"}, "column 'question' has no turns"),
        (
            {"question": ["a"], "answer": "b"},
            "column 'question', turn 1 must be an object with \"role\" and \"content\"; it is 'a'",
        ),
        (
            {"question": [{"role": "tool", "content": "a"}], "answer": "b"},
            "column 'question', turn 1 has the role 'tool'; known roles:",
        ),
        (
            {"question": [USER, {"role": "user", "content": 0.5}], "answer": "b"},
            "column 'question', turn 2 is 0.5, a number without",
        ),
        ({"question": [ASSISTANT], "answer": "b"}, "the answer follows no user turn"),
        (
            {"question": "a", "answer": [USER]},
            "the last turn has the role 'user'; it must be the assistant's",
        ),
    ],
)
def test_faulty_rows(row: Any, message: str, tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", GOOD, row)
    with pytest.raises(InputError) as error:
        read_examples(path, DataConfig())
    assert str(error.value).startswith(f"{path}:2: {message}")


@pytest.mark.parametrize(
    ("row", "settings", "message"),
    [
        (
            {"q": "a", "a": "b"},
            {},
            "no question and answer among the columns q, a; set data.columns.question and .answer, or .messages",
        ),
        ({}, {}, "no question and answer among the columns (none)"),
        (
            {"q": "a"},
            {"columns": ColumnsConfig(question="q")},
            "no column 'answer' among q; set data.columns.answer",
        ),
        (
            GOOD,
            {"columns": ColumnsConfig(question="q")},
            "no column 'q' among question, answer; set data.columns.question",
        ),
        (
            GOOD,
            {"columns": ColumnsConfig(messages="m")},
            "no column 'm' among question, answer; set data.columns.messages",
        ),
        (
            GOOD,
            {"columns": ColumnsConfig(source="s")},
            "no column 's' among question, answer; set data.columns.source",
        ),
        (
            GOOD,
            {"columns": ColumnsConfig(messages="m", answer="answer")},
            "data.columns.messages is set together with question or answer",
        ),
        ({"messages": "a"}, {}, "column 'messages' is text, not a list of turns"),
        ({"messages": [USER]}, {}, "the last turn has the role 'user'"),
        ({"messages": [ASSISTANT]}, {}, "the answer follows no user turn"),
        (
            GOOD,
            {"answer": "after:####"},
            "the answer has no mark '####', which data.answer looks for; if answers have none, set data.answer=whole, else write it before the final answer",
        ),
        (
            {"question": "a", "answer": "b ####"},
            {"answer": "after:####"},
            "the answer (column 'answer') is empty",
        ),
    ],
)
def test_rows_and_settings_that_do_not_fit(
    row: Any, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "x.jsonl", row)
    with pytest.raises(InputError) as error:
        read_examples(path, DataConfig(**settings))
    assert str(error.value).startswith(f"{path}:1: {message}")


LINE = b'{"question": "a", "answer": "b"}\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "x.jsonl",
            LINE + b'{"question": \n',
            ":2: broken JSON at column 14: Expecting value; write one JSON object per line",
        ),
        (
            "x.jsonl",
            LINE + b'{"question": "\xff"}\n',
            ":2: byte 15 of the line is not UTF-8; convert the file to UTF-8",
        ),
        ("x.jsonl", LINE + b"9" * 5000, ":2: this JSON cannot be read: Exceeds the limit"),
        ("x.jsonl", b"", ":1: the file has no rows"),
        ("x.jsonl", b"\n\n", ":1: the file has no rows"),
        (
            "x.jsonl.gz",
            gzip.compress(LINE * 9, mtime=0)[:-9],
            ": the gzip file is truncated or damaged",
        ),
        (
            "x.jsonl.gz",
            LINE,
            ":1: the gzip file is truncated or damaged (Not a gzipped file (b'{\"')); download or compress it again",
        ),
        (
            "x.json",
            b'[\n{"question": "a",\n"answer" "b"}]',
            ":3: broken JSON at column 10: Expecting ':' delimiter",
        ),
        (
            "x.json",
            LINE * 2,
            ":2: broken JSON at column 1: Extra data; if the file has one object per line, name it .jsonl",
        ),
        (
            "x.json",
            LINE,
            ":1: the object must have one list of rows (its lists: none); set data.rows to the key of the list",
        ),
        (
            "x.json",
            b'{"a": [], "b": []}',
            ":1: the object must have one list of rows (its lists: a, b); set data.rows",
        ),
        (
            "x.json",
            b"7",
            ":1: not a list of objects, nor an object that contains one; if the file has one object per line, name it .jsonl",
        ),
        (
            "x.jsonl",
            LINE + b'{"question": "a", "answer": "' + b"x" * 33 * 2**20 + b'"}\n',
            ":2: the line is longer than 32 MiB",
        ),
        ("x.jsonl", LINE + b"\0" * 100, ":2: broken JSON at column 1"),
        (
            "x.jsonl",
            LINE + b'{"question": "a\\u0000", "answer": "b"}',
            ":2: column 'question' contains a NUL character; remove it",
        ),
        (
            "x.csv",
            b"question,answer\na,b\nc\0,d\n",
            ":3: column 'question' contains a NUL character; remove it",
        ),
        ("x.csv", b'question,answer\n"' + b"x" * 33 * 2**20, ":2: the line is longer than 32 MiB"),
        ("x.jsonl.zst", LINE, ":1: the zstd file is truncated or damaged"),
        (
            "x.jsonl",
            LINE + b'{"question": "a", "answer": 7}',
            ":2: column 'answer' is a number here and text in row 1",
        ),
        ("x.jsonl", LINE + b'{"messages": []}', ":2: no column 'question' among messages"),
        ("x.json", b"[]", ":1: the file has no rows"),
        ("x.json", b"[" * 100000, ":1: this JSON cannot be read: "),
        (
            "x.csv",
            b"question,answer\na,b\nc\n",
            ":3: 1 fields in the row, 2 columns in the header; quote fields that contain commas",
        ),
        (
            "x.csv",
            b'question,answer\na,b\nc,"d\n',
            ":3: broken CSV: unexpected end of data; quote the field",
        ),
        ("x.csv", b"question,question\na,b\n", ":1: two columns have the same name; rename one"),
        ("x.csv", b"question,answer\na,\xe9\n", ":2: byte 3 of the line is not UTF-8"),
        ("x.csv", b"question,answer\n", ":1: the file has no rows"),
        ("x.parquet", LINE, ":1: not a complete parquet file: "),
        (
            "x.md",
            LINE,
            ": the ending '.md' is unknown; known endings: .jsonl, .json, .csv, .txt (each also with .gz",
        ),
        ("x.txt", LINE, ":1: no question and answer among the columns text"),
        ("x.parquet.gz", LINE, ": the ending '.parquet.gz' is unknown"),
        ("x", LINE, ": the ending '' is unknown"),
    ],
)
def test_faulty_files(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_examples(str(path), DataConfig())
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)


@pytest.mark.parametrize("path", ["data/absent.jsonl", "absent.csv.gz", "absent", "/absent/folder"])
def test_absent_files_are_not_taken_for_datasets(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError,
        match=f"^{path}: no such file; give a file, or a datasets name as in org/name:split",
    ):
        read_examples(path, DataConfig())


def test_folders_and_patterns_without_files(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("no data")
    with pytest.raises(
        InputError, match=r"is a folder without data files; known endings: \.jsonl, "
    ):
        read_examples(str(tmp_path), DataConfig())
    with pytest.raises(InputError, match="no file matches this pattern"):
        read_examples(str(tmp_path / "*.jsonl"), DataConfig())


def test_links_to_folders_are_followed(tmp_path: Path) -> None:
    folder, other = tmp_path / "data", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    written(folder / "a.jsonl", GOOD)
    written(other / "b.jsonl", GOOD)
    (folder / "link").symlink_to(other)
    (other / "back").symlink_to(folder)  # a loop
    assert [table.name for table in find_tables(str(folder))] == ["a.jsonl", "link/b.jsonl"]


def test_what_cannot_be_read_is_an_input_error(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(InputError, match="cannot be read: File name too long"):
        find_tables("x" * 5000 + ".jsonl")
    file = written(tmp_path / "a.jsonl", GOOD)

    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("nrt.data.files.file_sha256", refuse)
    (table,) = find_tables(file)
    with pytest.raises(InputError, match=r"a\.jsonl cannot be read: Permission denied"):
        table.fingerprint()


def test_an_address_is_no_file() -> None:
    with pytest.raises(InputError, match="nrt reads no addresses; download the file"):
        find_tables("https://example.org/a.jsonl")


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    written(tmp_path / "a.jsonl", GOOD)
    assert len(find_tables("~/a.jsonl")) == 1


def test_parquet_values_that_python_does_not_hold(tmp_path: Path) -> None:
    """A date beyond the year 9999, also in a column that nobody reads."""
    days = pyarrow.array([3_000_000_000 // 1000], pyarrow.int32()).cast(pyarrow.date32())
    table = pyarrow.table({"question": ["a"], "answer": ["b"], "day": days})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match="a value is beyond what Python holds"):
        read_examples(str(tmp_path / "a.parquet"), DataConfig())


def test_half_a_surrogate_pair_as_source(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", {"question": "a", "answer": "b", "source": "\ud800"})
    (example,) = read_examples(path, DataConfig())
    assert example.source == "\\ud800"


def test_an_empty_file_among_others_is_not_passed_over(tmp_path: Path) -> None:
    written(tmp_path / "a.jsonl", GOOD)
    (tmp_path / "b.jsonl").write_text("")
    with pytest.raises(InputError, match=r"b\.jsonl:1: the file has no rows"):
        read_examples(str(tmp_path), DataConfig())


def test_patterns(tmp_path: Path) -> None:
    for name in ("x/a.jsonl", "x/b.csv.gz", "y/a.jsonl", "y/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        written(tmp_path / name, GOOD)
    assert [e.id for e in read_examples(str(tmp_path / "*" / "a.jsonl"), DataConfig())] == [
        "x/a.jsonl:1",
        "y/a.jsonl:1",
    ]
    assert [e.id for e in read_examples(str(tmp_path / "x" / "*.jsonl"), DataConfig())] == [
        "a.jsonl:1"
    ]


@pytest.mark.parametrize("row", [2, 3])
@pytest.mark.parametrize(
    ("name", "spoilt"),
    [("x.jsonl", b'{"question": "\xff"}\n'), ("x.csv", b"\xff,b\n"), ("x.csv", b"a,b,c\n")],
)
def test_what_follows_a_bad_row_is_read(name: str, spoilt: bytes, row: int, tmp_path: Path) -> None:
    head, good = (b"question,answer\n", b"a,b\n") if name == "x.csv" else (b"", LINE)
    lines = [good] * 4
    lines[row - 1] = spoilt
    (tmp_path / name).write_bytes(head + b"".join(lines))
    (table,) = find_tables(str(tmp_path / name))
    items = list(iterate_examples(table, DataConfig()))
    assert [isinstance(item, BadRow) for item in items] == [i == row - 1 for i in range(4)]
    bad = items[row - 1]
    assert isinstance(bad, BadRow)
    assert bad.number == row + bool(head)


def test_what_follows_a_line_that_is_too_long_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(
        LINE + b'{"question": "' + b"x" * 50 * 2**20 + b'", "answer": "b"}\n' + LINE
    )
    (table,) = find_tables(str(tmp_path / "x.jsonl"))
    assert [
        (isinstance(item, BadRow), getattr(item, "id", ""))
        for item in iterate_examples(table, DataConfig())
    ] == [
        (False, "x.jsonl:1"),
        (True, ""),
        (False, "x.jsonl:3"),
    ]


def test_rows_before_the_damage_are_read(tmp_path: Path) -> None:
    """A truncated file: what could be read, then one `BadRow` for the rest."""
    rows = b"".join(b'{"question": "%d", "answer": "b"}\n' % i for i in range(20000))
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(rows)[:-2000])
    (table,) = find_tables(str(tmp_path / "x.jsonl.gz"))
    *good, last = iterate_examples(table, DataConfig())
    assert len(good) > 1000
    assert not any(isinstance(item, BadRow) for item in good)
    assert isinstance(last, BadRow)
    assert "truncated" in last.message


# --- other shapes ---


def test_alpaca(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Add.", "input": "1 and 2", "output": "3", "system": "Be short."},
        {"instruction": "Name a town.", "input": "", "output": "Ghent."},
        {"instruction": "Name a river.", "input": None, "output": "Rhine."},
    ]
    first, second, third = read_examples(written(tmp_path / "x.jsonl", *rows), DataConfig())
    assert first.messages == (Message("system", "Be short."), *user("Add.\n\n1 and 2"))
    assert (second.messages, third.messages) == (user("Name a town."), user("Name a river."))
    assert [e.answer for e in (first, second, third)] == ["3", "Ghent.", "Rhine."]
    assert all(not e.extra for e in (first, second, third))


def test_sharegpt(tmp_path: Path) -> None:
    turns = [
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Hello."},
        {"from": "human", "value": "Bye"},
    ]
    row = {
        "id": 3,
        "system": "Be kind.",
        "conversations": [*turns, {"from": "gpt", "value": "Ciao."}],
    }
    (example,) = read_examples(written(tmp_path / "x.jsonl", row), DataConfig())
    assert example.messages == (
        Message("system", "Be kind."),
        *user("Hi"),
        Message("assistant", "Hello."),
        *user("Bye"),
    )
    assert (example.answer, example.extra) == ("Ciao.", {"id": 3})


@pytest.mark.parametrize(
    ("question", "answer"), [("problem", "solution"), ("input", "target"), ("prompt", "response")]
)
def test_other_names_of_question_and_answer(question: str, answer: str, tmp_path: Path) -> None:
    (example,) = read_examples(
        written(tmp_path / "x.jsonl", {question: "a", answer: "b"}), DataConfig()
    )
    assert (example.messages, example.answer) == (user("a"), "b")


def test_rows_under_a_key(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(
        json.dumps({"about": "x", "train": [GOOD], "test": [GOOD, GOOD]})
    )
    assert len(read_examples(str(tmp_path / "x.json"), DataConfig(rows="test"))) == 2


def test_templates_of_columns(tmp_path: Path) -> None:
    row = {
        "passage": "P {x}",
        "question": "Q",
        "choices": ["one", "two"],
        "spans": [["a", "b"]],
        "n": 7,
    }
    path = written(tmp_path / "x.jsonl", row)
    columns = ColumnsConfig(
        question="{passage}\n{question}\nA {choices[0]}\nB {choices[1]} {{n}}={n}",
        answer="{spans[0]:, }",
    )
    (example,) = read_examples(path, DataConfig(columns=columns))
    assert example.messages == user("P {x}\nQ\nA one\nB two {n}=7")
    assert example.answer == "a, b"
    assert example.extra == {}


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{absent}",
            "data.columns.answer='{absent}' does not fit the row (KeyError: 'absent'); columns: question, answer, list",
        ),
        ("{list[3]}", "data.columns.answer='{list[3]}' does not fit the row (IndexError"),
        ("{list}", "data.columns.answer='{list}': a list needs a separator, as in {column:, }"),
        (
            "{answer.upper}",
            "data.columns.answer='{answer.upper}': '{answer.upper}' has a dot; write {column}",
        ),
        ("{answer", "no column '{answer' among question"),
    ],
)
def test_templates_that_do_not_fit(template: str, message: str, tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", {**GOOD, "list": ["a"]})
    with pytest.raises(InputError) as error:
        read_examples(path, DataConfig(columns=ColumnsConfig(answer=template)))
    assert str(error.value).startswith(f"{path}:1: {message}")


def test_columns_keep_their_type(tmp_path: Path) -> None:
    path = written(
        tmp_path / "x.jsonl",
        {"prompt": "a", "completion": "b"},
        {"prompt": [USER], "completion": "b"},
    )
    with pytest.raises(
        InputError,
        match=r":2: column 'prompt' is a list here and text in row 1; write the same type in all rows",
    ):
        read_examples(path, DataConfig())
    path = written(
        tmp_path / "y.jsonl", {"question": "a", "answer": 6}, {"question": "b", "answer": 8}
    )
    assert [e.answer for e in read_examples(path, DataConfig())] == ["6", "8"]


@pytest.mark.parametrize("rule", ["", "half", "after", "after:", "before", "until:x"])
def test_unknown_answer_rules(rule: str) -> None:
    with pytest.raises(
        InputError,
        match=r"data\.answer='.*' is unknown; set whole, after:MARK as in after:####, or before:MARK",
    ):
        read("qa.jsonl", answer=rule)
