"""The paper's training data: a subset of `allenai/tulu-3-sft-mixture`, by Table 4 or plain random.

A first pass over the mixture reads every row: its source, whether it can be trained on, and a hash
of its messages. Then rows are chosen by number, and a second pass copies them in the order of the
input. The choice is a function of the seed and of the input's rows in their order, files by name.
Each source has a generator of its own. The validation rows are drawn last, so they do not change
the training rows.
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

from nrt.data.mixture import MixtureIndex, copy_rows, find_parquet, scan_rows
from nrt.errors import InputError
from nrt.system.files import file_sha256, temporary_path

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
    # The paper prints this name only up to "wildguardmixtrain".
    "ai2-adapt-dev/tulu_v3.9_synthetic_finalresp_wildguardmixtrain_decontaminated_50k": 10935,
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
class DrawRequest:
    """Rows to draw: `size` for training, by Table 4 unless `plain`, and `valid` for validation."""

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
class DrawnFile:
    """A file that was written. `wanted` is empty for a plain draw."""

    file: str
    rows: int
    sha256: str
    wanted: Mapping[str, int]  # rows of each source by Table 4
    sources: Mapping[str, int]  # rows of each source in the file


@dataclass(frozen=True, slots=True)
class Manifest:
    """Content of manifest.json: all that is needed to draw the rows again, and what is left out."""

    command: str
    request: DrawRequest
    origin: str  # the hub's name and commit, or "local files"
    rows: int
    left_out: Mapping[str, int]  # reason → rows that cannot be trained on
    kept_from_valid: int  # rows that validation must not draw: a training row has their messages
    train: DrawnFile
    valid: DrawnFile | None
    input: tuple[InputFile, ...]
    versions: Mapping[str, str]


def wanted_counts(size: int) -> dict[str, int]:
    """Return Table 4 scaled to `size` rows by largest remainder; earlier sources win ties.

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
    """Raise InputError if a subset cannot be written there; call this before a long download."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output} already exists; give another folder with -o, or remove it")


def draw_subset(
    folder: Path, output: Path, request: DrawRequest, *, origin: str, command: str
) -> Manifest:
    """Write train.parquet, valid.parquet and manifest.json into the new folder `output`.

    The folder appears complete or not at all. The same request, files and version of pyarrow give
    the same bytes. Raises InputError for a request that these rows cannot meet.
    """
    check_output(output)
    files = find_parquet(folder)
    index = scan_rows(files)
    wanted = {} if request.plain else wanted_counts(request.size)
    train_R = _choose_train(index, request, wanted)
    has_train_messages_R = np.isin(index.hash_R, index.hash_R[train_R])
    valid_R = _choose_valid(index, request, has_train_messages_R)
    is_usable_R = index.source_R >= 0

    new = temporary_path(output, "new")
    new.mkdir(parents=True)
    chosen = {"train.parquet": train_R}
    if request.valid:
        chosen["valid.parquet"] = valid_R
    copy_rows(files, {new / name: rows_R for name, rows_R in chosen.items()})

    def drawn_file(name: str, wanted: Mapping[str, int]) -> DrawnFile:
        rows_R = chosen[name]
        sources = Counter(index.names[code] for code in index.source_R[rows_R].tolist())
        digest = file_sha256(new / name)
        return DrawnFile(name, int(rows_R.sum()), digest, wanted, dict(sources.most_common()))

    manifest = Manifest(
        command=command,
        request=request,
        origin=origin,
        rows=len(index.source_R),
        left_out=index.left_out,
        kept_from_valid=int((has_train_messages_R & ~train_R & is_usable_R).sum()),
        train=drawn_file("train.parquet", wanted),
        valid=drawn_file("valid.parquet", {}) if request.valid else None,
        input=tuple(
            InputFile(file.name, pq.read_metadata(file).num_rows, file_sha256(file))
            for file in files
        ),
        versions={
            name: _version(name) for name in ("native-reasoning", "pyarrow", "datasets", "numpy")
        },
    )
    text = json.dumps(asdict(manifest), indent=2, ensure_ascii=False) + "\n"
    (new / "manifest.json").write_text(text, encoding="utf-8")
    if output.exists():
        output.rmdir()
    new.rename(output)
    return manifest


# --- the choice: masks over all rows ---


def _choose_train(
    index: MixtureIndex, request: DrawRequest, wanted: Mapping[str, int]
) -> np.ndarray:
    if request.plain:
        usable = np.flatnonzero(index.source_R >= 0)
        if len(usable) < request.size:
            raise InputError(
                f"{len(usable)} rows can be trained on, fewer than {request.size}; "
                "give a smaller --size"
            )
        return _mask(index, _draw(usable, request.size, request.seed, 0))
    unknown_sources = sorted(set(index.names) - TABLE_4.keys())
    if unknown_sources:
        raise InputError(
            f"the source '{unknown_sources[0]}' is none of Table 4's {len(TABLE_4)}; "
            "draw from any sources with --plain"
        )
    codes = {name: code for code, name in enumerate(index.names)}
    # No row has the code −2; −1 marks rows that are left out.
    rows = {name: np.flatnonzero(index.source_R == codes.get(name, -2)) for name in wanted}
    for name, count in wanted.items():
        if len(rows[name]) < count:
            raise _too_few_rows(rows, name, count)
    drawn = [
        _draw(rows[name], wanted[name], request.seed, stream)
        for stream, name in enumerate(TABLE_4, start=1)
    ]
    return _mask(index, np.concatenate(drawn))


def _too_few_rows(rows: Mapping[str, np.ndarray], name: str, count: int) -> InputError:
    total = sum(TABLE_4.values())
    largest = min(len(rows[source]) * total // TABLE_4[source] for source in TABLE_4)
    if largest:
        advice = f"give --size {largest} or less, or --plain"
    else:
        advice = "give all files of the mixture, or --plain"
    return InputError(
        f"the source '{name}' has {len(rows[name])} rows that can be trained on, "
        f"fewer than the {count} wanted; {advice}"
    )


def _choose_valid(
    index: MixtureIndex, request: DrawRequest, has_train_messages_R: np.ndarray
) -> np.ndarray:
    free = np.flatnonzero((index.source_R >= 0) & ~has_train_messages_R)
    if len(free) < request.valid:
        raise InputError(
            f"{len(free)} rows are left whose messages are not in the training rows, "
            f"fewer than {request.valid}; give a smaller --valid or a smaller --size"
        )
    return _mask(index, _draw(free, request.valid, request.seed, 1 + len(TABLE_4)))


def _draw(rows: np.ndarray, count: int, seed: int, stream: int) -> np.ndarray:
    seeds = np.random.SeedSequence([seed % 2**64, stream])  # takes no negative numbers
    return np.random.Generator(np.random.Philox(seeds)).permutation(rows)[:count]


def _mask(index: MixtureIndex, rows: np.ndarray) -> np.ndarray:
    mask_R = np.zeros(len(index.source_R), dtype=bool)
    mask_R[rows] = True
    return mask_R


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
