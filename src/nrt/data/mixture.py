"""The parquet files of `allenai/tulu-3-sft-mixture`: fetched, scanned row by row, and copied in part; one batch in memory at a time."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nrt.errors import InputError

MIXTURE = "allenai/tulu-3-sft-mixture"
COLUMNS = ("id", "messages", "source")
GROUP = 8192  # rows that are written at once


@dataclass(frozen=True, slots=True)
class Scan:
    """What the choice needs of every row R: its source, an index into `names` or −1 where it is left out, and 64 bits of hash."""

    names: tuple[str, ...]
    source_R: np.ndarray
    hash_R: np.ndarray  # of the messages: equal messages have equal hashes, and hardly any others
    left_out: Mapping[str, int]  # rows that cannot be trained on, by reason


def fetch_mixture() -> tuple[Path, str]:
    """The mixture's folder in the hub's cache, downloaded if need be, and its commit."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(MIXTURE, repo_type="dataset", allow_patterns=["data/*.parquet"]))
    except Exception as error:  # the library raises many kinds, and each means that the files cannot be had
        reason = " ".join(str(error).split())
        raise InputError(f"{MIXTURE} cannot be had from the hub ({reason:.200}); fetch its parquet files and give --input DIR") from error
    return folder, f"{MIXTURE}@{folder.name}"


def find_parquet(folder: Path) -> list[Path]:
    """The parquet files of a folder, or of `data/` in it, as the hub lays them out, by name."""
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; give the folder of the mixture's parquet files with --input DIR")
    files = sorted(folder.glob("*.parquet")) or sorted(folder.glob("data/*.parquet"))
    if not files:
        raise InputError(f"{folder} holds no parquet files, nor does {folder / 'data'}; give the folder of {MIXTURE} with --input DIR")
    return files


def scan_rows(files: Sequence[Path]) -> Scan:
    """Looks at every row once. Raises InputError for files that are broken or not of the mixture's schema, and if there is no row."""
    names: dict[str, int] = {}
    sources, hashes = array("i"), array("Q")
    left_out: Counter[str] = Counter()
    for file, batch in _batches(files):
        for messages, source in zip(_values(file, batch, "messages"), _values(file, batch, "source"), strict=True):
            reason = "no source" if source is None else unusable(messages)
            if reason:
                left_out[reason] += 1
            sources.append(-1 if reason else names.setdefault(str(source), len(names)))
            text = json.dumps([turn and (turn["role"], turn["content"]) for turn in messages or ()])
            hashes.append(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big"))
    if not hashes:
        raise InputError(f"{files[0].parent}: the parquet files hold no rows; fetch them again")
    return Scan(tuple(names), np.array(sources), np.array(hashes), dict(left_out.most_common()))


def unusable(messages: Sequence[Mapping[str, str | None]] | None) -> str | None:
    """Why no answer can be trained on in these turns, or None."""
    if not messages:
        return "no turns"
    if any(turn is None or turn["content"] is None for turn in messages):
        return "a turn without text"
    if any(turn["role"] not in ("system", "user", "assistant") for turn in messages):
        return "a turn of another role than system, user and assistant"
    if messages[-1]["role"] != "assistant":
        return "the last turn is not the assistant's"
    if len(messages) < 2 or messages[-2]["role"] != "user":
        return "the answer follows no user turn"
    if not str(messages[-1]["content"]).strip():
        return "an empty answer"
    return None if str(messages[-2]["content"]).strip() else "an empty question"


def copy_rows(files: Sequence[Path], chosen: Mapping[Path, np.ndarray]) -> None:
    """Writes the rows of each mask to its file, as they are and in their order."""
    schema = _schema(files[0], pq.read_schema(files[0]))
    writers = {file: pq.ParquetWriter(file, schema, compression="zstd") for file in chosen}
    waiting: dict[Path, list[pa.RecordBatch]] = {file: [] for file in chosen}

    def write(file: Path) -> None:
        writers[file].write_table(pa.Table.from_batches(waiting[file], schema), row_group_size=GROUP)
        waiting[file] = []

    row = 0
    for _, batch in _batches(files):
        for file, mask_R in chosen.items():
            waiting[file].append(batch.filter(pa.array(mask_R[row : row + len(batch)])).replace_schema_metadata(None))
            if sum(map(len, waiting[file])) >= GROUP:
                write(file)
        row += len(batch)
    for file, writer in writers.items():
        write(file)
        writer.close()


def sha256(file: Path) -> str:
    """Of a file's bytes, in hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _batches(files: Sequence[Path]) -> Iterator[tuple[Path, pa.RecordBatch]]:
    """Every batch of the three columns, in order. Raises InputError where a file is broken, or is not of the mixture's schema."""
    first: pa.Schema | None = None
    for file in files:
        try:
            with pq.ParquetFile(file) as table:
                schema = _schema(file, table.schema_arrow)
                if first is not None and schema != first:
                    raise InputError(f"{file}: its columns have other types than those of {files[0].name}; give the files of one version")
                first = first or schema
                for batch in table.iter_batches(batch_size=1024, columns=list(COLUMNS)):
                    yield file, batch.select(list(COLUMNS))
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{file}: not a whole parquet file ({' '.join(str(error).split()):.200}); fetch it again") from None


def _schema(file: Path, schema: pa.Schema) -> pa.Schema:
    absent = [name for name in COLUMNS if name not in schema.names]
    if absent:
        raise InputError(f"{file}: no column {' and no '.join(absent)} among {', '.join(schema.names)}; give the files of {MIXTURE}")
    turn = getattr(schema.field("messages").type, "value_type", None)
    fields = {turn.field(i).name for i in range(turn.num_fields)} if turn is not None and pa.types.is_struct(turn) else set()
    if not {"role", "content"} <= fields:
        kind = schema.field("messages").type
        raise InputError(f"{file}: column messages is {kind}, not a list of role and content; give the files of {MIXTURE}")
    return pa.schema([pa.field(name, schema.field(name).type) for name in COLUMNS])  # without the writer's own metadata


def _values(file: Path, batch: pa.RecordBatch, column: str) -> list:
    try:
        return batch[column].to_pylist()
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: column {column} holds what is not UTF-8 ({error.reason}); fetch the file again") from None
