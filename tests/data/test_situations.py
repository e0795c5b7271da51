"""Data as users have it: no part of a row is lost, duplicated or altered silently."""

from __future__ import annotations

import copy
import csv
import gzip
import io
import json
import unicodedata
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from nrt.cli.inspection_view import print_check
from nrt.config import RowsConfig, TextConfig, build_config
from nrt.data import Chat, ensure_template, formats, load_pairs, read_examples, sources, text_files
from nrt.data.checkers import contains, exact, is_right
from nrt.data.stats import find_overlap, inspect
from nrt.errors import InputError
from nrt.run.layout import document_id
from nrt.system.terminal import Terminal
from nrt.types import Example, Message
from tests.data.cases import MARKERS, build_case
from tests.data.test_shared import mappings
from tests.data.test_tokens import write

CHAT = build_case("byte-level", "base").chat
QA = {"question": "x", "answer": "y"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NRT_CACHE", str(tmp_path / "cache"))


def read(tmp_path: Path, rows: list[Any], **reading: Any) -> list[Example]:
    return read_examples(str(write(tmp_path / "rows.jsonl", rows)), RowsConfig(**reading))


def checked(tmp_path: Path, rows: list[Any] | Path, *, width: int = 100, **data: Any) -> str:
    """Return the output of `nrt data check` on a terminal with `width` columns."""
    file = rows if isinstance(rows, Path) else write(tmp_path / "rows.jsonl", rows)
    config = build_config({"data": {"train": str(file), **data}})
    out = io.StringIO()
    print_check(Terminal(file=out, width=width), config, [inspect(config, "train", CHAT)], None)
    return out.getvalue()


# --- columns ---


@pytest.mark.parametrize("first", [{}, {"system": None}], ids=["absent", "null"])
def test_a_system_column_that_the_first_row_lacks_is_read_in_the_others(
    first: dict[str, Any], tmp_path: Path
) -> None:
    one, two = read(tmp_path, [{**QA, **first}, {**QA, "system": "Be brief."}])
    assert [message.role for message in one.messages] == ["user"]
    assert two.messages == (Message("system", "Be brief."), Message("user", "x"))
    assert "system" not in two.extra
    assert "system ← system" in checked(tmp_path, [{**QA, **first}, {**QA, "system": "Be brief."}])


def test_a_system_column_that_is_no_text_is_kept_and_said_not_to_be_read(tmp_path: Path) -> None:
    (one,) = read(tmp_path, [{**QA, "system": {"os": "linux"}}])
    assert one.extra == {"system": {"os": "linux"}}
    assert "not read" in (text := checked(tmp_path, [{**QA, "system": {"os": "linux"}}]))
    assert "system (1 rows)" in text


def test_columns_that_are_not_read_are_named_with_the_rows_that_have_them(tmp_path: Path) -> None:
    rows = [QA] * 150 + [{**QA, "late": 1}] * 2 + [{**QA, "late": 1, "later": "z", "empty": None}]
    config = build_config({"data": {"train": str(write(tmp_path / "rows.jsonl", rows))}})
    for chat in (CHAT, None):
        assert inspect(config, "train", chat).other_columns == {"late": 3, "later": 1}
    assert "late (3 rows), later (1 rows)" in checked(tmp_path, rows)


def test_a_key_that_stands_twice_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(
        '{"question": "x", "answer": "y"}\n{"question": "first", "question": "second", "answer": "y"}\n'
    )
    with pytest.raises(InputError, match=r"rows.jsonl:2: .*the key 'question' twice; remove one"):
        read_examples(str(file))
    file = tmp_path / "rows.json"
    file.write_text('[{"question": "x", "answer": "y", "meta": {"a": 1, "a": 2}}]')
    with pytest.raises(InputError, match="the key 'a' twice"):
        read_examples(str(file))


def test_two_columns_of_the_same_name_are_an_error_in_tables_too(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    column = pyarrow.array(["x"])
    table = pyarrow.Table.from_arrays(
        [column, column, column], names=["question", "question", "answer"]
    )
    pyarrow.parquet.write_table(table, file)
    with pytest.raises(InputError, match="two columns have the same name"):
        read_examples(str(file))
    file = tmp_path / "rows.csv"
    file.write_text("question,question,answer\nx,x,y\n")
    with pytest.raises(InputError, match="two columns have the same name"):
        read_examples(str(file))


# --- turns ---


def test_what_turns_hold_besides_role_and_text_is_kept_and_reported(tmp_path: Path) -> None:
    call = [{"function": {"name": "add"}}]
    turns = [
        {"role": "user", "content": "x", "name": "ann"},
        {"role": "assistant", "content": "y", "tool_calls": call, "audio": None},
    ]
    (one,) = read(tmp_path, [{"messages": turns}])
    assert one.extra == {"messages[].name": ["ann", None], "messages[].tool_calls": [None, call]}
    text = checked(tmp_path, [{"messages": turns}] * 3)
    assert "messages[].name (3 rows)" in text
    assert "messages[].tool_calls (3 rows)" in text


def test_a_turn_without_text_is_refused(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": None, "tool_calls": []},
    ]
    with pytest.raises(InputError, match=r"column 'messages', turn 2 is empty \(null\), not text"):
        read(tmp_path, [{"messages": turns}])


def test_parts_that_are_text_are_read_and_others_refused(tmp_path: Path) -> None:
    def row(*parts: dict[str, Any]) -> dict[str, Any]:
        return {
            "messages": [
                {"role": "user", "content": list(parts)},
                {"role": "assistant", "content": "y"},
            ]
        }

    (one,) = read(tmp_path, [row({"type": "text", "text": "one"}, {"type": "text", "text": "two"})])
    assert one.messages == (Message("user", "one\ntwo"),)
    with pytest.raises(
        InputError,
        match=r"turn 1, part 2 is of type 'image_url'; only parts of type 'text' can be read",
    ):
        read(
            tmp_path,
            [row({"type": "text", "text": "one"}, {"type": "image_url", "image_url": "…"})],
        )


# --- several references ---

NQ = [
    {"question": "who", "answer": ["Ann", "Ann Lee", "A. Lee"]},
    {"question": "when", "answer": ["1999"]},
]


def test_a_list_of_references_is_one_message_with_its_mend(tmp_path: Path) -> None:
    rows = [{"question": f"q {i}", "answer": [f"a {i}", f"b {i}"]} for i in range(1200)]
    text = checked(tmp_path, rows)
    assert len(text.splitlines()) < 60
    assert (
        "1,200 × column 'answer' is a list of answers; set data.references=first, random or each"
        in " ".join(text.split())
    )


def test_the_first_reference_is_trained_on_and_any_is_right(tmp_path: Path) -> None:
    one, two = read(tmp_path, NQ, references="first")
    assert (one.answer, one.references, two.answer, two.references) == (
        "Ann",
        ("Ann", "Ann Lee", "A. Lee"),
        "1999",
        ("1999",),
    )
    assert [is_right(exact, answer, one) for answer in ("Ann", "A. Lee", "Lee")] == [
        True,
        True,
        False,
    ]
    assert is_right(exact, "y", Example("a:1", (Message("user", "x"),), "y")), (
        "an ordinary row has one"
    )


def test_one_reference_drawn_for_each_row_is_the_same_in_every_run(tmp_path: Path) -> None:
    rows = [{"question": f"q {i}", "answer": ["a", "b", "c"]} for i in range(300)]
    drawn = [one.answer for one in read(tmp_path, rows, references="random")]
    assert drawn == [one.answer for one in read(tmp_path, rows, references="random")]
    assert all(70 < drawn.count(letter) < 130 for letter in "abc")


def test_each_reference_is_a_row_and_all_are_one_question(tmp_path: Path) -> None:
    examples = read(tmp_path, NQ, references="each")
    assert [(one.id, one.answer) for one in examples] == [
        ("rows.jsonl:1#1", "Ann"), ("rows.jsonl:1#2", "Ann Lee"), ("rows.jsonl:1#3", "A. Lee"), ("rows.jsonl:2", "1999"),
    ]  # fmt: skip
    assert {document_id(one.id) for one in examples} == {"rows.jsonl:1", "rows.jsonl:2"}


def test_references_of_validation_data_count_once(tmp_path: Path) -> None:
    file = str(write(tmp_path / "nq.jsonl", NQ))
    config = build_config(
        {"data": {"train": file, "valid": file, "references": "each"}, "batch": 1}
    )
    train, valid = (load_pairs(config, kind, CHAT).pairs for kind in ("train", "valid"))
    assert [pair.example.answer for pair in train] == ["Ann", "Ann Lee", "A. Lee", "1999"]
    assert [pair.example.answer for pair in valid] == ["Ann", "1999"]
    assert valid[0].example.references == ("Ann", "Ann Lee", "A. Lee"), "kept through the cache"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([], "has no reference"),
        (["y", None], r"reference 2 is empty \(null\)"),
        (["y", " "], "is empty; fill it in"),
        ([["y"]], "is a list"),
    ],
)
def test_references_that_are_none(answer: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, [{"question": "x", "answer": answer}], references="first")


def test_a_rule_for_answers_is_applied_to_each_reference(tmp_path: Path) -> None:
    (one,) = read(
        tmp_path,
        [{"question": "x", "answer": ["so #### 3", "thus #### 3", "#### three"]}],
        references="first",
        answer="after:####",
    )
    assert one.references == ("3", "three")


# --- datasets with configurations ---


def test_a_dataset_with_a_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` takes a local folder for a name, whose README.md names configurations as on the hub."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "org" / "name"
    for config in ("main", "socratic"):
        (folder / config).mkdir(parents=True)
        write(
            folder / config / "test.jsonl",
            [{"question": config, "answer": str(i)} for i in range(4)],
        )
    configs = "".join(
        f"- config_name: {c}\n  data_files:\n  - split: test\n    path: {c}/test.jsonl\n"
        for c in ("main", "socratic")
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    monkeypatch.chdir(tmp_path)
    assert [one.messages[0].content for one in read_examples("org/name:socratic:test")] == [
        "socratic"
    ] * 4
    assert [one.answer for one in read_examples("org/name:main:test[:2]")] == ["0", "1"]
    with pytest.raises(InputError, match="configs main, socratic; write org/name:CONFIG:SPLIT"):
        read_examples("org/name:test")
    with pytest.raises(InputError, match="configs main, socratic"):
        read_examples("org/name:socratik:test")
    with pytest.raises(InputError, match="loading it as a dataset failed: Unknown split"):
        read_examples("org/name:main:valid")


# --- text ---


@pytest.mark.parametrize("checker", [exact, contains])
def test_checkers_compare_composed_and_decomposed_accents(checker: Any) -> None:
    for text in ("café", "Zoë 東京", "Ångström"):
        composed, decomposed = (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
        assert composed != decomposed or text.isascii()
        assert checker(composed, decomposed)
        assert checker(decomposed, composed)
    assert not checker("cafe", "café"), "an accent is part of a letter"


def test_a_question_in_the_other_form_of_unicode_is_a_leak(tmp_path: Path) -> None:
    rows = [
        [{"question": unicodedata.normalize(form, "Où est le café ?"), "answer": "y"}]
        for form in ("NFC", "NFD")
    ]
    train, valid = (str(write(tmp_path / f"{i}.jsonl", row)) for i, row in enumerate(rows))
    config = build_config({"data": {"train": train, "valid": valid}, "batch": 1})
    assert find_overlap(inspect(config, "train", CHAT), inspect(config, "valid", CHAT)).rows == 1


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "txt.jsonl"])
def test_a_byte_order_mark_and_windows_line_ends_are_no_text(suffix: str, tmp_path: Path) -> None:
    lines = {
        "jsonl": ['{"question": "x", "answer": "y"}'] * 2,
        "json": ['[{"question": "x", "answer": "y"},', '{"question": "x", "answer": "y"}]'],
    }
    text = "\r\n".join(
        lines.get(suffix, ["question,answer", "x,y", "x,y"] if suffix == "csv" else lines["jsonl"])
    )
    file = tmp_path / f"rows.{suffix}"
    file.write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n")
    assert [(one.messages[0].content, one.answer) for one in read_examples(str(file))] == [
        ("x", "y")
    ] * 2


# --- numbers ---


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (51.0, "51"),
        (-3.0, "-3"),
        (0.0, "0"),
        (7, "7"),
        (1e6, "1000000"),
        (Decimal("51.00"), "51"),
        (Decimal("1.50"), "1.50"),
        (10**30, "1" + "0" * 30),
    ],
)
def test_numbers_are_written_as_people_write_them(number: Any, text: str, tmp_path: Path) -> None:
    if isinstance(number, Decimal):
        pyarrow.parquet.write_table(
            pyarrow.table({"question": ["x"], "answer": [number]}), tmp_path / "rows.parquet"
        )
        (one,) = read_examples(str(tmp_path / "rows.parquet"))
    else:
        (one,) = read(tmp_path, [{"question": "x", "answer": number}])
    assert one.answer == text


@pytest.mark.parametrize("number", [0.1, 1e300])
def test_a_number_whose_digits_nobody_said_is_refused_with_the_mend(
    number: float, tmp_path: Path
) -> None:
    with pytest.raises(
        InputError,
        match=r"without a fixed number of digits; write text, or set a format as in '\{column:.2f\}'",
    ):
        read(tmp_path, [{"question": "x", "answer": number}])


@pytest.mark.parametrize("number", [float("inf"), float("nan")])
def test_a_number_that_is_none_is_no_answer(number: float, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is (inf|nan), not text; fill it in, or remove the row"):
        read(tmp_path, [{"question": "x", "answer": number}])


def test_a_format_says_how_many_digits(tmp_path: Path) -> None:
    rows = [{"question": "x", "price": price} for price in (0.125, 3, 1234.5)]
    assert [one.answer for one in read(tmp_path, rows, columns={"answer": "{price:.2f}"})] == [
        "0.12",
        "3.00",
        "1234.50",
    ]
    assert [one.answer for one in read(tmp_path, rows, columns={"answer": "${price:,.1f}"})] == [
        "$0.1",
        "$3.0",
        "$1,234.5",
    ]
    assert (
        read(tmp_path, [{"question": "x", "n": 51.0}], columns={"answer": "{n}"})[0].answer == "51"
    )
    with pytest.raises(InputError, match="'1000000000f' is not a number format"):
        read(tmp_path, rows, columns={"answer": "{price:1000000000f}"})


def test_whole_and_broken_numbers_are_of_one_type(tmp_path: Path) -> None:
    assert [one.answer for one in read(tmp_path, [{**QA, "answer": 1}, {**QA, "answer": 2.0}])] == [
        "1",
        "2",
    ]
    with pytest.raises(
        InputError,
        match="column 'answer' is text here and a number in row 1; write the same type in all rows",
    ):
        read(tmp_path, [{**QA, "answer": 1}, {**QA, "answer": "2"}])


# --- chat templates ---


def test_named_templates_without_a_default_are_refused_in_one_line() -> None:
    tokenizer = copy.deepcopy(build_case("byte-level", "base").tokenizer)
    tokenizer.chat_template = {"rag": "{{ messages }}", "tool_use": "{{ messages }}"}
    message = r"chat templates have names \(rag, tool_use\), and none is 'default'; give it one chat template"
    with pytest.raises(InputError, match=message):
        ensure_template(tokenizer)
    with pytest.raises(InputError, match=message):
        Chat(tokenizer, MARKERS)


@pytest.mark.parametrize(
    "fault",
    [
        "{{ messages + 1 }}",
        "{{ none.x.y }}",
        "{{ messages[99].content }}",
        "{{ 1 / 0 }}",
        "{{ 'a' * none }}",
    ],
)
def test_a_fault_inside_a_template_is_told_in_one_line(fault: str) -> None:
    tokenizer = copy.deepcopy(build_case("byte-level", "base").tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}" + fault
    )
    with pytest.raises(InputError, match="the model's chat template refuses these turns") as error:
        Chat(tokenizer, MARKERS)
    assert "\n" not in str(error.value)


# --- files of another size than they look ---


def test_a_small_file_that_unpacks_to_gigabytes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "MAX_UNPACKED_BYTES", 2**20)
    file = tmp_path / "bomb.json.gz"
    file.write_bytes(
        gzip.compress(
            b"["
            + b'{"question": "x", "answer": "y"},\n' * 100_000
            + b'{"question": "x", "answer": "y"}]'
        )
    )
    assert file.stat().st_size < 20_000
    with pytest.raises(
        InputError, match=r"has more than 1 MiB when unpacked; unpack it, or write \.jsonl"
    ):
        read_examples(str(file))
    file = tmp_path / "bomb.txt.gz"
    file.write_bytes(gzip.compress(b"words\n" * 1_000_000))
    with pytest.raises(InputError, match="has more than 1 MiB when unpacked"):
        read_examples(str(file), RowsConfig(text=TextConfig()))


def test_a_file_of_empty_lines_ends_somewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "MAX_EMPTY_LINES", 1000)
    file = tmp_path / "rows.jsonl.gz"
    file.write_bytes(gzip.compress(json.dumps(QA).encode() + b"\n" * 1_000_000))
    with pytest.raises(
        InputError,
        match=r"rows.jsonl.gz:1002: more than .* empty lines; the rest of the file is not read",
    ):
        read_examples(str(file))
    file = tmp_path / "rows.csv.gz"
    file.write_bytes(gzip.compress(b"question,answer\nx,y\n" + b"\n" * 1_000_000))
    with pytest.raises(InputError, match=r"rows.csv.gz:1003: more than .* empty lines"):
        read_examples(str(file))


def test_a_file_of_another_kind_is_left_after_enough_bad_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "MAX_BAD_ROWS", 100)
    text = checked(tmp_path, [QA] * 50 + [1] * 1000)
    assert "101 × the row is a number, not an object" in " ".join(text.split())
    assert (
        "more than 100 rows cannot be used, and fewer can; the rest of the file is not read"
        in " ".join(text.split())
    )
    inspection = inspect(
        build_config(
            {"data": {"train": str(write(tmp_path / "mostly.jsonl", [QA] * 5000 + [1] * 1000))}}
        ),
        "train",
        None,
    )
    assert (inspection.rows, inspection.bad_rows) == (5000, 1000), (
        "a file of which most can be used is read whole"
    )


# --- what `nrt data check` prints ---


def test_a_check_of_any_file_fits_on_two_screens(tmp_path: Path) -> None:
    """Ten thousand columns, faults of hundreds of kinds, sources and control tokens without number, names of any length."""
    rows: list[Any] = [{**QA, **{f"column {i}": i for i in range(10_000)}, "source": "s" * 500}]
    rows += [{**QA, "source": f"source {i} " + "x" * 200} for i in range(300)]
    rows += [{"question": "x", "answer": ["y"] * i} for i in range(200)]
    rows += [{"messages": [{"role": f"role {i}", "content": "x" * i}]} for i in range(200)]
    rows += (
        [{"question": None, "answer": i} for i in range(200)]
        + list(range(200))
        + [{"q" * i: 1} for i in range(1, 200)]
    )
    rows += [{**QA, "answer": f"<|think_end|>{i}</s><|user|>"} for i in range(100)]
    for width in (80, 120):
        lines = checked(tmp_path, rows, width=width).splitlines()
        assert len(lines) < 66
        assert max(map(len, lines)) <= width


def test_a_long_row_is_shown_without_its_middle(tmp_path: Path) -> None:
    rows = [{"question": "\n".join(f"line {i}" for i in range(100)), "answer": "z" * 900}]
    lines = checked(tmp_path, rows, width=80).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("the first row, as the"))
    assert "line 0" in "".join(lines[start:])
    assert "line 50" not in "".join(lines[start:])
    assert len(lines) - start < 25


def test_a_recorded_csv_with_every_quote(tmp_path: Path) -> None:
    cells = ['a "quoted" one', "two\nlines", "comma, here", "=1+1", " spaced ", "'"]
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["question", "answer"], *([cell, cell] for cell in cells)])
    assert [
        (one.messages[0].content, one.answer) for one in read_examples(str(tmp_path / "rows.csv"))
    ] == [(cell, cell) for cell in cells]


def test_rows_in_the_shape_of_nq_open_and_svamp_are_read_by_the_settings_of_the_documentation(
    tmp_path: Path,
) -> None:
    """1,200 rows each, in the form in which these data sets come: lists of answers, and floats."""
    nq = [
        {"question": f"who was number {i}", "answer": [f"Ann {i}", f"A. {i}"][: 1 + i % 2]}
        for i in range(1200)
    ]
    examples = read(tmp_path, nq, **mappings("further shapes")["nq_open"])
    assert [one.answer for one in examples] == [f"Ann {i}" for i in range(1200)]
    assert sum(len(one.references) for one in examples) == 1800
    svamp = [
        {
            "ID": f"chal-{i}",
            "Body": f"Ann has {i} pens.",
            "Question": "How many?",
            "Answer": float(i),
            "Type": "Sum",
        }
        for i in range(1200)
    ]
    examples = read(tmp_path, svamp, **mappings("further shapes")["svamp"])
    assert [one.answer for one in examples] == [str(i) for i in range(1200)]
    assert examples[7].messages == (Message("user", "Ann has 7 pens. How many?"),)
    assert examples[7].extra == {"ID": "chal-7", "Type": "Sum"}
    for rows, name in ((nq, "nq_open"), (svamp, "svamp")):
        text = checked(tmp_path, rows, **mappings("further shapes")[name])
        assert "1,200 usable, 0 not" in text
        assert len(text.splitlines()) < 60
