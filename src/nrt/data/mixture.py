"""The parquet files of `allenai/tulu-3-sft-mixture`: download, scan row by row, and copy in part.

Only one batch at a time is in memory.
"""

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

ROW_GROUP_SIZE = 8192
"""Rows that are written at once."""


@dataclass(frozen=True, slots=True)
class MixtureIndex:
    """The facts about every row R of the mixture that decide which rows are drawn."""

    names: tuple[str, ...]  # the sources
    source_R: np.ndarray  # index into `names`, or −1 for a row that is left out
    hash_R: np.ndarray  # 64 bits, equal for equal messages and almost never for others
    left_out: Mapping[str, int]  # reason → rows that cannot be trained on


def fetch_mixture() -> tuple[Path, str]:
    """Return (folder in the hub's cache, name@commit) of the mixture, downloaded if necessary."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(MIXTURE, repo_type="dataset", allow_patterns=["data/*.parquet"])
    except Exception as error:  # the library raises many types; after each, there are no files
        reason = " ".join(str(error).split())
        raise InputError(
            f"{MIXTURE} cannot be downloaded from the hub ({reason:.200}); "
            "download its parquet files yourself, and give --input DIR"
        ) from error
    return Path(folder), f"{MIXTURE}@{Path(folder).name}"


def find_parquet(folder: Path) -> list[Path]:
    """Return the parquet files of a folder, or of its subfolder `data` as on the hub, by name."""
    if not folder.is_dir():
        raise InputError(
            f"{folder} is not a folder; "
            "give the folder of the mixture's parquet files with --input DIR"
        )
    files = sorted(folder.glob("*.parquet")) or sorted(folder.glob("data/*.parquet"))
    if not files:
        raise InputError(
            f"{folder} has no parquet files, nor has {folder / 'data'}; "
            f"give the folder of {MIXTURE} with --input DIR"
        )
    return files


def scan_rows(files: Sequence[Path]) -> MixtureIndex:
    """Read every row once.

    Raises InputError for files that are broken or of another schema, and if there is no row.
    """
    names: dict[str, int] = {}
    sources, hashes = array("i"), array("Q")
    left_out: Counter[str] = Counter()
    for file, batch in _batches(files):
        all_messages, all_sources = _values(file, batch, "messages"), _values(file, batch, "source")
        for messages, source in zip(all_messages, all_sources, strict=True):
            reason = "no source" if source is None else unusable_reason(messages)
            if reason:
                left_out[reason] += 1
            sources.append(-1 if reason else names.setdefault(str(source), len(names)))
            text = json.dumps([turn and (turn["role"], turn["content"]) for turn in messages or ()])
            digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
            hashes.append(int.from_bytes(digest, "big"))
    if not hashes:
        raise InputError(f"{files[0].parent}: the parquet files have no rows; download them again")
    left_out_by_rows = dict(left_out.most_common())
    return MixtureIndex(tuple(names), np.array(sources), np.array(hashes), left_out_by_rows)


def unusable_reason(messages: Sequence[Mapping[str, str | None]] | None) -> str | None:
    """Return why no answer can be trained on in these turns, or None if one can."""
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
    if not str(messages[-2]["content"]).strip():
        return "an empty question"
    return None


def copy_rows(files: Sequence[Path], chosen: Mapping[Path, np.ndarray]) -> None:
    """Write the rows of each mask [R] to its file, unchanged and in their order."""
    schema = _schema(files[0], pq.read_schema(files[0]))
    writers = {file: pq.ParquetWriter(file, schema, compression="zstd") for file in chosen}
    pending: dict[Path, list[pa.RecordBatch]] = {file: [] for file in chosen}

    def write(file: Path) -> None:
        table = pa.Table.from_batches(pending[file], schema)
        writers[file].write_table(table, row_group_size=ROW_GROUP_SIZE)
        pending[file] = []

    first_row = 0
    for _, batch in _batches(files):
        for file, mask_R in chosen.items():
            mask = pa.array(mask_R[first_row : first_row + len(batch)])
            pending[file].append(batch.filter(mask).replace_schema_metadata(None))
            if sum(map(len, pending[file])) >= ROW_GROUP_SIZE:
                write(file)
        first_row += len(batch)
    for file, writer in writers.items():
        write(file)
        writer.close()


def _batches(files: Sequence[Path]) -> Iterator[tuple[Path, pa.RecordBatch]]:
    """Yield (file, batch of the three columns) in order.

    Raises InputError if a file is broken or of another schema.
    """
    first: pa.Schema | None = None
    for file in files:
        try:
            with pq.ParquetFile(file) as table:
                schema = _schema(file, table.schema_arrow)
                if first is not None and schema != first:
                    raise InputError(
                        f"{file}: its columns have other types than those of {files[0].name}; "
                        "give files of one version"
                    )
                first = first or schema
                for batch in table.iter_batches(batch_size=1024, columns=list(COLUMNS)):
                    yield file, batch.select(list(COLUMNS))
        except (pa.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"{file}: not a complete parquet file ({reason:.200}); download it again"
            ) from None


def _schema(file: Path, schema: pa.Schema) -> pa.Schema:
    """Return the schema of the three columns. Raises InputError if they are not the mixture's."""
    absent = [name for name in COLUMNS if name not in schema.names]
    if absent:
        raise InputError(
            f"{file}: no column {' and no '.join(absent)} among {', '.join(schema.names)}; "
            f"give the files of {MIXTURE}"
        )
    messages_type = schema.field("messages").type
    turn_type = getattr(messages_type, "value_type", None)
    turn_fields: set[str] = set()
    if turn_type is not None and pa.types.is_struct(turn_type):
        turn_fields = {turn_type.field(i).name for i in range(turn_type.num_fields)}
    if not {"role", "content"} <= turn_fields:
        raise InputError(
            f"{file}: column messages is {messages_type}, not a list of role and content; "
            f"give the files of {MIXTURE}"
        )
    # A new schema, without the writer's own metadata.
    return pa.schema([pa.field(name, schema.field(name).type) for name in COLUMNS])


def _values(file: Path, batch: pa.RecordBatch, column: str) -> list:
    try:
        return batch[column].to_pylist()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file}: column {column} has text that is not UTF-8 ({error.reason}); "
            "download the file again"
        ) from None
