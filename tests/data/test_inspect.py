"""`nrt data check` and `stats` on files worked by hand."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from nrt.cli.inspection import as_json, config_for
from nrt.cli.inspection_view import plot_lengths, print_check
from nrt.config import Config, build_config
from nrt.data.stats import find_overlap, inspect
from nrt.errors import InputError
from nrt.system.terminal import Terminal
from nrt.types import Message
from tests.data.cases import build_case
from tests.data.test_tokens import FRAME, write

CHAT = build_case("byte-level", "base").chat


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NRT_CACHE", str(tmp_path / "cache"))


ROWS: list[Any] = [
    {"question": "xx", "answer": "z", "source": "a", "note": 1},
    {"question": "xx", "answer": "z", "source": "a"},  # a duplicate
    {"question": "xx", "answer": "zz", "source": "b"},  # the same turns, another answer
    {"question": "x <|think_end|>", "answer": "z <|think_end|> </s>", "source": "a"},
    {"question": "xxx", "answer": "zzzzzz", "source": "b"},
    {"question": "", "answer": "z"},
    {"question": "", "answer": "z"},
    {"question": "x"},
]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    train = write(tmp_path / "train.jsonl", ROWS)
    valid = write(
        tmp_path / "valid.jsonl", [{"question": q, "answer": "z"} for q in (" XX ", "xx", "new")]
    )
    return build_config(
        {
            "data": {"train": str(train), "valid": str(valid)},
            "max_prompt_tokens": FRAME + 30,
            "max_answer_tokens": 5,
            "batch": 1,
        }
    )


def test_everything_by_hand(config: Config, tmp_path: Path) -> None:
    inspection = inspect(config, "train", CHAT)
    assert inspection.columns == {"question": "question", "answer": "answer", "source": "source"}
    assert inspection.other_columns == {"note": 1}
    assert (inspection.rows, inspection.kept, inspection.bad_rows) == (5, 3, 3)
    assert (inspection.duplicates, inspection.conflicts) == (1, 1)
    faults = {fault.message.split(";")[0]: (fault.rows, fault.first) for fault in inspection.bad}
    path = str(tmp_path / "train.jsonl")
    assert faults == {
        "the question (column 'question') is empty": (2, (f"{path}:6", f"{path}:7")),
        "no column 'answer' among question": (1, (f"{path}:8",)),
    }
    assert inspection.control == {"<|think_end|>": 1, "</s>": 1}, "rows, not finds"
    tokens = [len(CHAT.encode_answer(row["answer"])) for row in ROWS[:5]]
    assert tokens == [2, 2, 3, tokens[3], 7]
    assert inspection.answer.mean == sum(tokens) / 5
    assert inspection.answer.percentiles[50] == 3
    assert (inspection.answer.percentiles[0], inspection.answer.percentiles[100]) == (
        2,
        max(tokens),
    )
    assert (inspection.answer.cap, inspection.answer.over, inspection.prompt.over) == (5, 2, 0)
    assert [(name, share.rows, share.share) for name, share in inspection.sources.items()] == [
        ("a", 3, 0.6),
        ("b", 2, 0.4),
    ]
    assert inspection.sources["b"].mean_answer == 5.0


def test_truncated_answers_are_kept(config: Config) -> None:
    config = build_config(config.model_dump(), {"data": {"truncate_answers": True}})
    assert inspect(config, "train", CHAT).kept == 5


def test_leakage_is_blind_to_case_and_white_space(config: Config) -> None:
    overlap = find_overlap(inspect(config, "train", CHAT), inspect(config, "valid", CHAT))
    assert (overlap.rows, overlap.questions, overlap.first) == (
        2,
        1,
        ("valid.jsonl:1", "valid.jsonl:2"),
    )


def test_without_a_tokenizer_lengths_are_characters(config: Config) -> None:
    inspection = inspect(config, "train", None)
    assert (inspection.unit, inspection.rows, inspection.kept, inspection.bad_rows) == (
        "characters",
        5,
        5,
        3,
    )
    assert inspection.answer.percentiles[100] == len("z <|think_end|> </s>")
    assert (inspection.prompt.over, inspection.answer.over, inspection.control) == (0, 0, {})


def test_documents_need_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("One. Two three.")
    config = build_config({"data": {"train": str(tmp_path / "x.txt"), "text": {"stride": 1}}})
    with pytest.raises(InputError, match="documents are cut into tokens; set model=FOLDER"):
        inspect(config, "train", None)
    inspection = inspect(config, "train", CHAT)
    assert (inspection.rows, inspection.columns) == (1, {"text": "text"})


def test_a_file_of_which_nothing_can_be_used(tmp_path: Path) -> None:
    file = write(tmp_path / "x.jsonl", [{"q": 1}, [2]])
    inspection = inspect(build_config({"data": {"train": str(file)}}), "train", CHAT)
    assert (
        inspection.rows,
        inspection.kept,
        inspection.bad_rows,
        inspection.columns,
        inspection.sources,
    ) == (0, 0, 2, {}, {})


def test_nothing_is_measured_where_no_row_can_be_used(tmp_path: Path) -> None:
    rows = write(tmp_path / "train.jsonl", [{"Problem": "x", "Reference answer": "z"}])
    config = build_config({"data": {"train": str(rows), "valid": str(rows)}, "batch": 1})
    inspections = [inspect(config, kind, CHAT) for kind in ("train", "valid")]
    out = io.StringIO()
    overlap = find_overlap(*inspections)
    print_check(Terminal(file=out, width=200), config, inspections, overlap)
    assert "no question and answer among the columns" in out.getvalue()
    assert "0.0" not in out.getvalue()
    assert "leakage" not in out.getvalue()


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"Question": "x", "ANSWER": "z"}, ("Question", "ANSWER")),
        ({"Question": "y", "question": "x", "answer": "z"}, ("question", "answer")),
        ({"Instruction": "x", "input": "", "Output": "z"}, ("Instruction + input", "Output")),
    ],
)
def test_columns_are_guessed_whatever_their_case(
    row: dict[str, str], columns: tuple[str, str], tmp_path: Path
) -> None:
    rows = write(tmp_path / "train.jsonl", [row])
    inspection = inspect(build_config({"data": {"train": str(rows)}}), "train", CHAT)
    assert (inspection.columns["question"], inspection.columns["answer"]) == columns
    assert inspection.kept == 1


@pytest.mark.parametrize(("tokenizer", "unknown"), [("unigram", 3), ("byte-level", 0)])
def test_text_without_a_token_is_counted(tokenizer: str, unknown: int, tmp_path: Path) -> None:
    file = write(tmp_path / "x.jsonl", [{"question": "𒀀", "answer": "𒀁 𒀂"}])
    chat = build_case(tokenizer, "base").chat
    assert inspect(build_config({"data": {"train": str(file)}}), "train", chat).unknown == unknown


def test_text(config: Config) -> None:
    one, two = inspect(config, "train", CHAT), inspect(config, "valid", CHAT)
    console = Terminal(width=200, record=True, file=io.StringIO())
    print_check(console, config, [one, two], find_overlap(one, two))
    text = console.export_text()
    for expected in (
        "5 usable, 3 not",
        "2 × the question (column 'question') is empty",
        "1 rows repeat turns and answer, 1 repeat turns with another answer",
        "<|think_end|> in 1 rows",
        "3 of 5 (60.0%)",
        "2 (40.0%)",
        "leakage: 2 validation rows repeat a question of the training data (1 different questions)",
    ):
        assert expected in text


def test_json_and_histogram(config: Config, tmp_path: Path) -> None:
    one, two = inspect(config, "train", CHAT), inspect(config, "valid", CHAT)
    record = json.loads(json.dumps(as_json([one, two], find_overlap(one, two))))
    assert record["train"]["bad_rows"] == 3
    assert record["train"]["sources"]["b"]["mean_answer"] == 5.0
    assert record["leakage"]["rows"] == 2
    plot_lengths([one, two], tmp_path / "new" / "lengths.png")
    with pytest.raises(InputError, match=r"no plot has the ending \.foo; take \.png"):
        plot_lengths([one], tmp_path / "lengths.foo")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written: "):
        plot_lengths([one], tmp_path / "file" / "lengths.png")
    assert (tmp_path / "new" / "lengths.png").read_bytes()[:4] == b"\x89PNG"


def test_arguments_are_files_and_settings(tmp_path: Path) -> None:
    config = config_for(
        "gsm8k", ["a=b.jsonl", "c.csv", "max_answer_tokens=7", "data.valid=d.jsonl"]
    )
    assert [source.path for source in config.data.sources("train")] == ["a=b.jsonl", "c.csv"]
    assert (config.max_answer_tokens, config.data.answer, config.data.valid) == (
        7,
        "after:####",
        "d.jsonl",
    )
    with pytest.raises(
        InputError, match=r"unknown setting 'data\.vaild'; did you mean 'data\.valid'"
    ):
        config_for("", ["a.jsonl", "data.vaild=d.jsonl"])


def test_the_first_row_as_the_model_reads_it(tmp_path: Path) -> None:
    rows = [{"question": "", "answer": "z"}, {"question": "xx", "answer": "z", "system": "x"}]
    file = str(write(tmp_path / "first.jsonl", rows))
    config = build_config({"data": {"train": file, "on_bad_row": "skip"}})
    prompt = [Message("system", "x"), Message("user", "xx")]
    assert CHAT.start_id is not None
    expected = CHAT.decode((*CHAT.encode_prompt(prompt), CHAT.start_id)) + "[…]"
    expected += CHAT.decode((CHAT.end_id, *CHAT.encode_answer("z")))
    found = inspect(config, "train", CHAT)
    assert found.example == expected
    assert inspect(config, "train", None).example == ""
    output = io.StringIO()
    print_check(Terminal(file=output), config, [found], None)
    assert expected in output.getvalue()
