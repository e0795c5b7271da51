"""The paper's subset, drawn from small parquet files of the mixture's schema."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nrt.cli import app as cli
from nrt.config import DataConfig
from nrt.data import read_examples
from nrt.data.mixture import MIXTURE, fetch_mixture, unusable_reason
from nrt.data.tulu import TABLE_4, DrawRequest, Manifest, draw_subset, wanted_counts
from nrt.errors import InputError

TURN = pa.struct([("content", pa.string()), ("role", pa.string())])
SCHEMA = pa.schema([("id", pa.string()), ("messages", pa.list_(TURN)), ("source", pa.string())])
PER_SOURCE = 60
REPEATED = "ai2-adapt-dev/tulu_hard_coded_repeated_10"
Row = dict[str, Any]


def row(name: str, source: str, *texts: str | None, roles: str = "uauaua") -> Row:
    names = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}
    return {
        "id": name,
        "messages": [{"role": names[r], "content": t} for r, t in zip(roles, texts, strict=False)],
        "source": source,
    }


def mixture_rows() -> list[Row]:
    """60 rows of each source, shuffled by source; every third has two questions, and the repeated source says 6 things 10 times."""
    rows = []
    for i in range(PER_SOURCE):
        for n, source in enumerate(TABLE_4):
            topic = f"{n}-{i % 6 if source == REPEATED else i}"
            texts = [f"what is {topic}?", f"it is {topic}\n"] * (2 if i % 3 == 0 else 1)
            rows.append(row(f"{n}_{i}", source, *texts))
    return rows


BAD = [
    (row("bad-1", REPEATED, "what?"), "the last turn is not the assistant's"),
    (row("bad-2", REPEATED, "what?", " \n"), "an empty answer"),
    (row("bad-3", REPEATED, "what?", ""), "an empty answer"),
    (row("bad-4", REPEATED, " ", "this"), "an empty question"),
    (row("bad-5", REPEATED, "this", roles="a"), "the answer follows no user turn"),
    (row("bad-6", REPEATED, "be brief", "this", roles="sa"), "the answer follows no user turn"),
    (row("bad-7", REPEATED, "what?", None), "a turn without text"),
    (
        row("bad-8", REPEATED, "what?", "this", "and?", "that", roles="utua"),
        "a turn of another role than system, user and assistant",
    ),
    (row("bad-9", REPEATED), "no turns"),
    ({"id": "bad-10", "messages": None, "source": REPEATED}, "no turns"),
    ({**row("bad-11", REPEATED, "what?", "this"), "source": None}, "no source"),
]


def write_files(folder: Path, rows: Sequence[Row], files: int = 3) -> Path:
    folder.mkdir(parents=True)
    for n in range(files):
        share = rows[n * len(rows) // files : (n + 1) * len(rows) // files]
        pq.write_table(
            pa.Table.from_pylist(share, SCHEMA),
            folder / f"train-{n:05}-of-{files:05}.parquet",
            row_group_size=100,
        )
    return folder


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mixture in the hub's layout, with bad rows among the others."""
    rows = mixture_rows()
    for n, (bad, _) in enumerate(BAD):
        rows.insert(97 * n, bad)
    return write_files(tmp_path_factory.mktemp("hub") / "mixture" / "data", rows).parent


@pytest.fixture
def draw(mixture: Path, tmp_path: Path) -> Callable[..., Manifest]:
    def call(name: str = "out", folder: Path = mixture, **request: Any) -> Manifest:
        full_request = DrawRequest(**{"size": 200, "seed": 5, "valid": 40, **request})
        return draw_subset(
            folder, tmp_path / name, full_request, origin="local files", command="nrt data tulu"
        )

    return call


def read(file: Path) -> list[Row]:
    return pq.read_table(file).to_pylist()


def conversations(rows: Iterable[Row]) -> set[str]:
    return {json.dumps(row["messages"]) for row in rows}


# --- Table 4 ---


def test_table_4_adds_up() -> None:
    assert len(TABLE_4) == 19
    assert sum(TABLE_4.values()) == 204_800
    assert wanted_counts(204_800) == TABLE_4


@pytest.mark.parametrize("size", [1, 19, 200, 1000, 99_999, 400_000])
def test_other_sizes_by_largest_remainder(size: int) -> None:
    counts = wanted_counts(size)
    assert sum(counts.values()) == size
    for name, count in TABLE_4.items():
        assert abs(counts[name] - count * size / 204_800) < 1


def test_largest_remainders_by_hand() -> None:
    """1,000 rows: shares × 1000 end in .308 .104 .852 .705 .619 .355 .272 .106 .048 .394 .374 .655 .114 .919 .630 .322 .842 .186 .195:
    992 whole rows; the 8 others go to .919 .852 .842 .705 .655 .630 .619 .394."""
    assert list(wanted_counts(1000).values()) == [
        161,
        116,
        108,
        98,
        95,
        68,
        54,
        54,
        54,
        54,
        38,
        32,
        22,
        12,
        11,
        10,
        8,
        5,
        0,
    ]


# --- the draw ---


def test_counts_are_exact_and_rows_are_as_they_were(
    draw: Callable[..., Manifest], mixture: Path, tmp_path: Path
) -> None:
    manifest = draw()
    originals = {
        row["id"]: row for file in sorted(mixture.rglob("*.parquet")) for row in read(file)
    }
    train, valid = (
        read(tmp_path / "out" / "train.parquet"),
        read(tmp_path / "out" / "valid.parquet"),
    )
    wanted = {name: count for name, count in wanted_counts(200).items() if count}
    assert Counter(row["source"] for row in train) == wanted == manifest.train.sources
    assert manifest.train.wanted == wanted_counts(200)
    assert len(valid) == 40
    assert len({row["id"] for row in train + valid}) == 240
    assert all(row == originals[row["id"]] for row in train + valid)
    order = list(originals)
    assert [order.index(row["id"]) for row in train] == sorted(
        order.index(row["id"]) for row in train
    )
    assert any(len(row["messages"]) == 4 for row in train)  # several turns are kept
    assert pq.read_schema(tmp_path / "out" / "train.parquet") == SCHEMA


@pytest.mark.parametrize("plain", [False, True])
def test_no_message_stands_in_both(
    draw: Callable[..., Manifest], tmp_path: Path, plain: bool
) -> None:
    """All that is left goes to validation, but for the repetitions of what is trained on."""
    manifest = draw(plain=plain, size=360, valid=0)
    assert manifest.valid is None
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "train.parquet",
        "manifest.json",
    }
    remaining = 19 * PER_SOURCE - 360 - manifest.kept_from_valid
    everything = draw("whole", plain=plain, size=360, valid=remaining)
    train, valid = (
        read(tmp_path / "whole" / "train.parquet"),
        read(tmp_path / "whole" / "valid.parquet"),
    )
    assert (
        everything.train.sha256 == manifest.train.sha256
    )  # validation rows change nothing of the training rows
    assert len(valid) == remaining
    assert conversations(train).isdisjoint(conversations(valid))
    with pytest.raises(
        InputError,
        match=rf"^{remaining} rows are left .* fewer than {remaining + 1}; give a smaller --valid",
    ):
        draw("more", plain=plain, size=360, valid=remaining + 1)
    if plain:
        assert manifest.kept_from_valid > 0
        assert manifest.train.wanted == {}


def test_a_plain_draw_is_not_table_4(draw: Callable[..., Manifest]) -> None:
    sources = draw(plain=True, size=950, valid=0).train.sources
    assert all(
        abs(count - 50) < 12 for count in sources.values()
    )  # of 60 each; a standard deviation is 2.8


def test_the_seed_decides_every_byte(draw: Callable[..., Manifest], tmp_path: Path) -> None:
    def files(name: str) -> list[bytes]:
        return [
            (tmp_path / name / file).read_bytes()
            for file in ("train.parquet", "valid.parquet", "manifest.json")
        ]

    for name, seed in (("a", 5), ("b", 5), ("c", 6), ("d", -5)):
        draw(name, seed=seed)
    assert files("a") == files("b")
    for x, y, z in zip(files("a"), files("c"), files("d"), strict=True):
        assert len({x, y, z}) == 3


def test_what_cannot_be_trained_on_is_counted_and_the_reader_takes_the_rest(
    draw: Callable[..., Manifest], tmp_path: Path
) -> None:
    manifest = draw(plain=True, size=19 * PER_SOURCE, valid=0)
    assert manifest.left_out == Counter(reason for _, reason in BAD)
    assert manifest.rows == 19 * PER_SOURCE + len(BAD)
    examples = read_examples(str(tmp_path / "out" / "train.parquet"), DataConfig())
    assert len(examples) == 19 * PER_SOURCE
    assert {example.source for example in examples} == set(TABLE_4)
    with pytest.raises(
        InputError, match=r"^1140 rows can be trained on, fewer than 1141; give a smaller --size$"
    ):
        draw("more", plain=True, size=19 * PER_SOURCE + 1)


@pytest.mark.parametrize(("bad", "reason"), BAD[:10])
def test_the_reader_refuses_what_is_left_out(bad: Row, reason: str, tmp_path: Path) -> None:
    assert unusable_reason(bad["messages"]) == reason
    pq.write_table(pa.Table.from_pylist([bad], SCHEMA), tmp_path / "bad.parquet")
    with pytest.raises(InputError):
        read_examples(str(tmp_path / "bad.parquet"), DataConfig())


def test_many_batches_and_row_groups(draw: Callable[..., Manifest], tmp_path: Path) -> None:
    rows = [row(str(i), "x", f"what is {i}?", str(i)) for i in range(20_000)]
    folder = write_files(tmp_path / "many", rows, files=2)
    manifest = draw(folder=folder, plain=True, size=19_000, valid=1000)
    train, valid = (
        read(tmp_path / "out" / "train.parquet"),
        read(tmp_path / "out" / "valid.parquet"),
    )
    assert sorted((row["id"] for row in train + valid), key=int) == [row["id"] for row in rows]
    assert pq.read_metadata(tmp_path / "out" / "train.parquet").num_row_groups < 6
    assert [file.rows for file in manifest.input] == [10_000, 10_000]


# --- errors, each with its fix ---


def rewritten(folder: Path, table: pa.Table) -> Path:
    folder.mkdir()
    pq.write_table(table, folder / "train-00000.parquet")
    return folder


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: f / "nowhere", r"nowhere is not a folder; give the folder .* --input DIR$"),
        (
            lambda f: (f / "empty").mkdir() or f / "empty",
            r"empty has no parquet files, nor has .*data; give the folder",
        ),
        (
            lambda f: rewritten(f / "x", pa.table({"id": ["1"], "text": ["a"]})),
            r"no column messages and no source among id, text; give",
        ),
        (
            lambda f: rewritten(
                f / "x", pa.table({"id": ["1"], "messages": ["a"], "source": ["b"]})
            ),
            r"column messages is string, not a list of role and content; give",
        ),
        (
            lambda f: rewritten(f / "x", SCHEMA.empty_table()),
            r"x: the parquet files have no rows; download them again$",
        ),
        (
            lambda f: rewritten(
                f / "x", pa.Table.from_pylist([row("1", "flan", "a", "b")], SCHEMA)
            ),
            r"^the source 'flan' is none of Table 4's 19; draw from any sources with --plain$",
        ),
        (
            lambda f: rewritten(
                f / "x", pa.Table.from_pylist([row("1", REPEATED, "a", "b")], SCHEMA)
            ),
            r"has 0 rows that can be trained on, fewer than the 32 wanted; give all files of the mixture, or --plain$",
        ),
    ],
)
def test_files_of_another_kind(
    draw: Callable[..., Manifest], tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        draw(folder=make(tmp_path))
    assert not (tmp_path / "out").exists()


def test_too_few_rows_of_a_source(draw: Callable[..., Manifest]) -> None:
    """60 rows of the largest source are 60 ÷ 33,036 of 371.9 … rows, so 371 can be drawn and 375 not."""
    with pytest.raises(
        InputError,
        match=r"math_v5_regen_149960' has 60 rows .* fewer than the 65 wanted; give --size 371 or less, or --plain",
    ):
        draw(size=400)
    assert draw(size=371).train.rows == 371


def test_a_broken_file_and_files_of_two_versions(
    draw: Callable[..., Manifest], mixture: Path, tmp_path: Path
) -> None:
    first, second, _ = sorted(mixture.rglob("*.parquet"))
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.parquet").write_bytes(first.read_bytes())
    (broken / "b.parquet").write_bytes(second.read_bytes()[:-100])
    with pytest.raises(
        InputError, match=r"b\.parquet: not a complete parquet file \(.*\); download it again"
    ):
        draw(folder=broken)
    (broken / "b.parquet").write_text("<html>")
    with pytest.raises(InputError, match=r"b\.parquet: not a complete parquet file"):
        draw(folder=broken)
    table = pq.read_table(second).set_column(
        0, "id", pa.array(range(pq.read_metadata(second).num_rows))
    )
    pq.write_table(table, broken / "b.parquet")
    with pytest.raises(
        InputError,
        match=r"b\.parquet: its columns have other types than those of a\.parquet; give files of one version",
    ):
        draw(folder=broken)


def test_nothing_is_written_over(draw: Callable[..., Manifest], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()  # empty: may be filled
    draw()
    with pytest.raises(
        InputError, match=r"out already exists; give another folder with -o, or remove it"
    ):
        draw()
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


@pytest.mark.skipif(os.environ.get("HF_HUB_OFFLINE") != "1", reason="asks the hub")
def test_without_the_hub_the_error_names_the_other_way() -> None:
    message = rf"^{MIXTURE} cannot be downloaded from the hub \(.*\); download its parquet files yourself, and give --input DIR$"
    with pytest.raises(InputError, match=message):
        fetch_mixture()


# --- the command ---


def test_the_command(
    mixture: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [
        "data",
        "tulu",
        "--size",
        "200",
        "--seed",
        "3",
        "--valid",
        "10",
        "--input",
        str(mixture),
        "-o",
        "sub/tulu",
    ]
    monkeypatch.setattr(sys, "argv", ["nrt", *arguments])
    with pytest.raises(SystemExit) as done:
        cli.main()
    assert not done.value.code
    out = capsys.readouterr().out
    assert "16.00%" in out
    assert "left out: 2 rows, an empty answer" in out
    assert "written: sub/tulu" in out
    manifest = json.loads((tmp_path / "sub" / "tulu" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["command"] == "nrt data tulu --size 200 --seed 3 --valid 10 --input mixture"
    assert manifest["request"] == {"size": 200, "seed": 3, "valid": 10, "plain": False}
    assert [file["name"] for file in manifest["input"]] == [
        f"train-{n:05}-of-00003.parquet" for n in range(3)
    ]
    assert {
        len(part["sha256"]) for part in (manifest["train"], manifest["valid"], *manifest["input"])
    } == {64}
    assert str(tmp_path) not in json.dumps(manifest)
    with pytest.raises(SystemExit) as refused:
        cli.main()
    assert refused.value.code == 2
    assert (
        capsys.readouterr().err
        == "error: sub/tulu already exists; give another folder with -o, or remove it\n"
    )
