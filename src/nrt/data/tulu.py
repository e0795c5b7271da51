"""The paper's training data: a subset of `allenai/tulu-3-sft-mixture`, by the counts of Table 4 or plain random.

A first pass over the mixture looks at every row: its source, whether it can be trained on, and a hash of its messages. Then rows are
chosen by number, and a second pass copies them in the order of the input. The choice is a function of the seed and of the input's rows
in their order, files by name: each source draws from a generator of its own, and the validation rows, drawn last, change nothing of it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from nrt.data.mixture import Scan, copy_rows, find_parquet, scan_rows, sha256
from nrt.durable import beside
from nrt.errors import InputError

TABLE_4: Mapping[str, int] = {
    "ai2-adapt-dev/personahub_math_v5_regen_149960": 33036,
    "ai2-adapt-dev/evol_codealpaca_heval_decontaminated": 23778,
    "ai2-adapt-dev/tulu_v3.9_aya_100k": 22088,
    "ai2-adapt-dev/flan_v2_converted": 20010,
    "ai2-adapt-dev/tulu_v3.9_wildchat_100k": 19378,
    "ai2-adapt-dev/numinamath_tir_math_decontaminated": 13999,
    "allenai/tulu-3-sft-personas-math-grade": 11115,
    "ai2-adapt-dev/tulu_v3.9_open_math_2_gsm8k_50k": 11081,
    "ai2-adapt-dev/tulu_v3.9_wildjailbreak_decontaminated_50k": 11069,
    "ai2-adapt-dev/tulu_v3.9_synthetic_finalresp_wildguardmixtrain_decontaminated_50k": 10935,  # in print cut after "wildguardmixtrain"
    "ai2-adapt-dev/personahub_code_v2_34999": 7859,
    "ai2-adapt-dev/personahub_ifdata_manual_seed_v3_29980": 6483,
    "ai2-adapt-dev/tulu_v3.9_personahub_math_interm_algebra_20k": 4529,
    "ai2-adapt-dev/coconot_converted": 2441,
    "ai2-adapt-dev/tulu_v3.9_sciriff_10k": 2177,
    "ai2-adapt-dev/no_robots_converted": 2114,
    "ai2-adapt-dev/oasst1_converted": 1606,
    "ai2-adapt-dev/tulu_v3.9_table_gpt_5k": 1062,
    "ai2-adapt-dev/tulu_hard_coded_repeated_10": 40,
}
"""Rows of each source in the paper's subset; 204,800 together."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to draw: `size` training rows, stratified by Table 4 unless `plain`, and `valid` validation rows."""

    size: int = 204_800
    seed: int = 0
    valid: int = 1024
    plain: bool = False


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file that was read."""

    name: str
    rows: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Part:
    """One file that was written. `wanted` is empty where the draw was plain."""

    file: str
    rows: int
    sha256: str
    wanted: Mapping[str, int]
    sources: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What stands in manifest.json: all that it takes to draw the same rows again, and what was left out."""

    command: str
    request: Request
    origin: str  # the hub's name and commit, or "local files"
    rows: int
    left_out: Mapping[str, int]  # rows that cannot be trained on, by reason
    kept_from_valid: int  # rows with the messages of a training row, which validation must not draw
    train: Part
    valid: Part | None
    input: tuple[InputFile, ...]
    versions: Mapping[str, str]


def wanted_counts(size: int) -> dict[str, int]:
    """Table 4 scaled to `size` rows by largest remainder; the earlier in the table wins a tie.

    >>> list(wanted_counts(204_800).values()) == list(TABLE_4.values())
    True
    """
    total = sum(TABLE_4.values())
    counts = {name: count * size // total for name, count in TABLE_4.items()}
    by_remainder = sorted(TABLE_4, key=lambda name: -(TABLE_4[name] * size % total))
    for name in by_remainder[: size - sum(counts.values())]:
        counts[name] += 1
    return counts


def check_output(output: Path) -> None:
    """Raises InputError if a subset cannot be written there, before hours of downloading."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output} is there already; give another folder with -o, or remove it")


def draw_subset(folder: Path, output: Path, request: Request, *, origin: str, command: str) -> Manifest:
    """Writes train.parquet, valid.parquet and manifest.json into the new folder `output`, which appears whole or not at all.

    Same request, files and pyarrow: the same bytes. Raises InputError for a request that these rows cannot meet.
    """
    check_output(output)
    files = find_parquet(folder)
    scan = scan_rows(files)
    wanted = {} if request.plain else wanted_counts(request.size)
    train_R = _choose_train(scan, request, wanted)
    taken_R = np.isin(scan.hash_R, scan.hash_R[train_R])
    valid_R = _choose_valid(scan, request, taken_R)

    new = beside(output, "new")
    new.mkdir(parents=True)
    chosen = {"train.parquet": train_R} | ({"valid.parquet": valid_R} if request.valid else {})
    copy_rows(files, {new / name: rows_R for name, rows_R in chosen.items()})

    def part(name: str, wanted: Mapping[str, int]) -> Part:
        rows_R = chosen[name]
        got = Counter(scan.names[code] for code in scan.source_R[rows_R].tolist())
        return Part(name, int(rows_R.sum()), sha256(new / name), wanted, dict(got.most_common()))

    manifest = Manifest(
        command=command,
        request=request,
        origin=origin,
        rows=len(scan.source_R),
        left_out=scan.left_out,
        kept_from_valid=int((taken_R & ~train_R & (scan.source_R >= 0)).sum()),
        train=part("train.parquet", wanted),
        valid=part("valid.parquet", {}) if request.valid else None,
        input=tuple(InputFile(file.name, pq.read_metadata(file).num_rows, sha256(file)) for file in files),
        versions={name: _version(name) for name in ("native-reasoning", "pyarrow", "datasets", "numpy")},
    )
    (new / "manifest.json").write_text(json.dumps(asdict(manifest), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if output.exists():
        output.rmdir()
    new.rename(output)
    return manifest


# --- the choice: masks over all rows ---


def _choose_train(scan: Scan, request: Request, wanted: Mapping[str, int]) -> np.ndarray:
    if request.plain:
        usable = np.flatnonzero(scan.source_R >= 0)
        if len(usable) < request.size:
            raise InputError(f"{len(usable)} rows can be trained on, fewer than {request.size}; give a smaller --size")
        return _mask(scan, _draw(usable, request.size, request.seed, 0))
    if strangers := sorted(set(scan.names) - TABLE_4.keys()):
        raise InputError(f"the source '{strangers[0]}' is none of Table 4's {len(TABLE_4)}; draw from any sources with --plain")
    codes = {name: code for code, name in enumerate(scan.names)}
    rows = {name: np.flatnonzero(scan.source_R == codes.get(name, -2)) for name in wanted}
    for name, count in wanted.items():
        there = len(rows[name])
        if there < count:
            most = min(len(rows[name]) * sum(TABLE_4.values()) // TABLE_4[name] for name in TABLE_4)
            mend = f"give --size {most} or less, or --plain" if most else "give all files of the mixture, or --plain"
            raise InputError(f"the source '{name}' has {there} rows that can be trained on, fewer than the {count} wanted; {mend}")
    return _mask(scan, np.concatenate([_draw(rows[name], wanted[name], request.seed, 1 + i) for i, name in enumerate(TABLE_4)]))


def _choose_valid(scan: Scan, request: Request, taken_R: np.ndarray) -> np.ndarray:
    free = np.flatnonzero((scan.source_R >= 0) & ~taken_R)
    if len(free) < request.valid:
        raise InputError(
            f"{len(free)} rows are left whose messages are not in the training rows, fewer than {request.valid}; "
            "give a smaller --valid or a smaller --size"
        )
    return _mask(scan, _draw(free, request.valid, request.seed, 1 + len(TABLE_4)))


def _draw(rows: np.ndarray, count: int, seed: int, stream: int) -> np.ndarray:
    seeds = np.random.SeedSequence([seed % 2**64, stream])  # takes no negative numbers
    return np.random.Generator(np.random.Philox(seeds)).permutation(rows)[:count]


def _mask(scan: Scan, rows: np.ndarray) -> np.ndarray:
    mask_R = np.zeros(len(scan.source_R), dtype=bool)
    mask_R[rows] = True
    return mask_R


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
