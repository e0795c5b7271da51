"""Small inputs that want to be large, slow, or another file: each is read, or refused in a line, within SECONDS."""

from __future__ import annotations

import gzip
import json
import shutil
import time
from pathlib import Path
from random import Random

import pyarrow

from nrt.analysis.report.data import build_report
from nrt.config import RowsConfig, parse_plain_yaml
from nrt.data.files import find_tables
from nrt.data.rows import BadRow
from nrt.data.sources import iterate_examples
from nrt.errors import InputError
from nrt.run import RunWriter, load_run
from nrt.serving.export import export_run
from tests.fuzz.outcome import outcome, verdict
from tests.runs import write_run

SECONDS = 2.0


def merge_keys(rng: Random, folder: Path) -> str:
    """YAML of a few hundred bytes whose aliases and merge keys are written out to anything between nothing and 10^30 values."""
    lines = []
    for number in range(rng.randrange(1, 16)):
        earlier = (
            [f"*a{rng.randrange(number + (rng.random() < 0.1))}" for _ in range(rng.randrange(12))]
            if number
            else []
        )
        merged = f"[{', '.join(earlier)}]" if len(earlier) != 1 else earlier[0]
        own = ", ".join(
            f"k{rng.randrange(5)}: {rng.choice((*earlier, '1', '1:1:1', '[]'))}"
            for _ in range(rng.randrange(4))
        )
        forms = (
            f"{{<<: {merged}, {own}}}",
            merged,
            f"{{k: {merged}, <<: {merged}}}",
            f"{{? {merged} : 1}}",
            f"{{{own}}}",
        )
        lines.append(f"a{number}: &a{number} {rng.choice(forms)}")
    text = "\n".join(lines) + "\n"
    started = time.process_time()
    found = outcome(lambda: parse_plain_yaml(text, "recipe.yaml"))
    assert time.process_time() - started < SECONDS
    return found


def duplicate_keys(rng: Random, folder: Path) -> str:
    """A row of which an object may have a key twice: it is refused if one has, whatever is nested in what."""
    twice = False

    def text(depth: int) -> str:
        nonlocal twice
        if depth == 0 or rng.random() < 0.3:
            return rng.choice(("1", '"x"', "null", "[]", "{}", '["a", "a"]'))
        keys = [rng.choice("abcdefgh") for _ in range(rng.randrange(4))]
        twice = twice or len(set(keys)) < len(keys)
        spelled = [f'"{key}"' if rng.random() < 0.8 else f'"\\u{ord(key):04x}"' for key in keys]
        return "{" + ", ".join(f"{key}: {text(depth - 1)}" for key in spelled) + "}"

    more = text(3)
    file = folder / "rows.jsonl"
    file.write_text(f'{{"question": "x", "answer": "y", "more": {more}}}\n')
    (found,) = [
        item for table in find_tables(str(file)) for item in iterate_examples(table, RowsConfig())
    ]
    assert isinstance(found, BadRow) == twice, more
    if isinstance(found, BadRow):
        assert "twice" in found.message
        return "refused"
    assert found.extra == {"more": json.loads(more)}
    return "taken"


def links(rng: Random, folder: Path) -> str:
    """A run folder with a link at one place of it. What it leads to is neither shown, nor copied, nor written."""
    secret = folder / "secret"
    secret.write_text('{"step": 1, "secret": "do not show"}\n')
    (folder / "secrets").mkdir()
    (folder / "secrets" / "step-000002.jsonl").write_text(
        '{"step": 2, "id": "a:1", "secret": "do not show"}\n'
    )
    path = write_run(folder / "run", groups=2, traces=2)
    (path / "model" / "config.json").write_text("{}")
    places = [p.relative_to(path) for p in sorted(path.rglob("*"))]
    more = [
        Path(p)
        for p in (
            "judge",
            "eval",
            "skipped",
            "checkpoints",
            "checkpoints/step-000001",
            ".report.html.tmp",
            "report.html",
            "wandb",
            "lock",
        )
    ]
    place = path / rng.choice(places + more)
    if place.is_dir():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(rng.choice((secret, folder / "secrets", folder / "nowhere", place)))
    shown: list[str] = []

    def reopened() -> None:
        with RunWriter.reopen(path, 1) as writer:
            writer.metrics({"step": 2})

    found = [
        outcome(lambda: shown.append(repr(build_report([path])))),
        outcome(lambda: export_run(load_run(path), folder / "out")),
        outcome(reopened),
    ]
    assert "do not show" not in "".join(shown)
    assert not any(
        "do not show" in file.read_text() for file in (folder / "out").rglob("*") if file.is_file()
    )
    assert secret.read_text() == '{"step": 1, "secret": "do not show"}\n'
    assert [file.name for file in (folder / "secrets").iterdir()] == ["step-000002.jsonl"]
    return verdict(found)


UNITS = (
    b"\n",
    b" ",
    b"x\n",
    b"[",
    b"[],",
    b"{}\n",
    b'{"question":',
    b'{"a": 1}\n',
    b"0",
    b'"',
    b",",
    b"\x00",
    b"\xff\n",
    b"[[],[]]\n",
)


def bombs(rng: Random, folder: Path) -> str:
    """A file of kilobytes that unpacks to 100 MiB, through all readers."""
    ending, packed = rng.choice(("json", "jsonl", "csv", "txt")), rng.choice(("gz", "zst"))
    unit = rng.choice(UNITS)
    data = rng.choice(
        (b"", b'{"question": "x", "answer": "y"}\n', b"question,answer\nx,y\n", b'[{"a": "')
    ) + unit * (100 * 2**20 // len(unit))
    file = folder / f"rows.{ending}.{packed}"
    file.write_bytes(
        gzip.compress(data, 1)
        if packed == "gz"
        else pyarrow.compress(data, codec="zstd", asbytes=True)
    )
    del data
    reading = RowsConfig.model_validate({"text": {}} if ending == "txt" else {})
    started = time.process_time()
    good = bad = 0
    try:
        for table in find_tables(str(file)):
            for item in iterate_examples(table, reading):
                good, bad = good + (not isinstance(item, BadRow)), bad + isinstance(item, BadRow)
    except InputError:
        return "refused"
    assert time.process_time() - started < SECONDS, (file.name, unit, good, bad)
    return "refused" if bad else "taken"
