"""Data and models that a caller passes as objects, written into the run folder.

A run's config holds paths and names only, so that resume, report and compare need no object of the
process that started the run.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from nrt.data.files import without_media
from nrt.errors import InputError
from nrt.models import save_model
from nrt.run.layout import DATA_FOLDER, MODEL_FOLDER
from nrt.system.files import TEXT_OPTIONS


def store_rows(data: Any, run: Path, name: str) -> str:
    """Write rows to `run`/data/<name>-<hash of the content>.jsonl, and return the path.

    Args:
        data: a `datasets` split, a pandas DataFrame, or an iterable of dicts.
        name: argument that the rows were passed as, for file name and errors.

    Raises InputError for other data, for a row that is no dict, and for a value that JSON does not
    have.
    """
    folder = run / DATA_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    content = hashlib.sha256()
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        file = Path(temporary, "rows")
        with file.open("wb") as output:
            for line in _lines(_rows_of(data, name), name):
                content.update(line)
                output.write(line)
        if not file.stat().st_size:
            raise InputError(f"{name} has no rows; give one question–answer pair per row")
        stored = folder / f"{name.removesuffix('_dataset')}-{content.hexdigest()[:16]}.jsonl"
        file.replace(stored)
    return str(stored)


def store_model(model: Any, processing_class: Any, run: Path) -> str:
    """Save a loaded model and its tokenizer to `run`/initial, and return the path.

    Raises InputError for another object, a model without tokenizer, adapters, and quantised
    weights.
    """
    if hasattr(model, "merge_and_unload") or getattr(model, "_hf_peft_config_loaded", False):
        raise InputError(
            "the loaded model has adapters; merge them (model.merge_and_unload()), and set "
            "lora.rank to train new ones"
        )
    if not isinstance(model, PreTrainedModel):
        raise InputError(
            f"model is of type {type(model).__name__}; give a folder, a hub name, or a loaded "
            "causal language model of transformers"
        )
    if processing_class is None:
        raise InputError(
            "a loaded model needs its tokenizer: processing_class=AutoTokenizer.from_pretrained(…)"
        )
    if getattr(model, "is_quantized", False):
        raise InputError(
            "the loaded model is quantised; give its folder or hub name, and set quantize=nf4 and "
            "lora.rank=16"
        )
    if not hasattr(processing_class, "chat_template"):
        raise InputError(
            f"processing_class is of type {type(processing_class).__name__}; give a tokenizer of "
            "transformers, such as AutoTokenizer.from_pretrained(…)"
        )
    folder = run / MODEL_FOLDER
    folder.parent.mkdir(parents=True, exist_ok=True)
    save_model(model, processing_class, folder, template=processing_class.chat_template)
    return str(folder)


def _rows_of(data: Any, name: str) -> Iterable[Any]:
    pandas = sys.modules.get("pandas")  # a caller with a DataFrame has imported it
    if pandas and isinstance(data, pandas.DataFrame):
        names = [str(column) for column in data.columns]
        if len(set(names)) < len(names):
            twice = next(column for column in names if names.count(column) > 1)
            raise InputError(f"{name} has several columns '{twice}'; rename or drop all but one")
        return data.astype(object).where(data.notna(), None).to_dict("records")
    if isinstance(data, Mapping):  # DatasetDict is one
        fix = "give one split, such as dataset['train']"
        if _holds_columns(data):
            fix = "give datasets.Dataset.from_dict(…), or a list with a dict for each row"
        raise InputError(
            f"{name} is of type {type(data).__name__}, with the keys "
            f"{', '.join(map(str, data)):.200}; {fix}"
        )
    if not isinstance(data, Iterable):
        raise InputError(
            f"{name} is of type {type(data).__name__}; give a path, a dataset, a DataFrame or a "
            "list of dicts"
        )
    return without_media(data)


def _holds_columns(data: Mapping[Any, Any]) -> bool:
    """Return whether the values are columns: sequences or arrays of anything but dicts."""
    return all(
        (isinstance(values, list | tuple) or hasattr(values, "dtype"))
        and not any(isinstance(value, Mapping) for value in values)
        for values in data.values()
    )


def _lines(rows: Iterable[Any], name: str) -> Iterator[bytes]:
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            raise InputError(
                f"{name}, row {number} is of type {type(row).__name__}, not dict; give rows such "
                "as {'question': …, 'answer': …}"
            )
        values: dict[str, Any] = {}
        for column, value in row.items():
            if str(column) in values:
                raise InputError(f"{name}, row {number}: '{column}' is a key twice, as text")
            try:
                values[str(column)] = _plain(value)
            except TypeError as error:
                raise InputError(
                    f"{name}, row {number}, column '{column}': {error}; convert it to text or drop "
                    "the column"
                ) from None
        line = json.dumps(values, ensure_ascii=False) + "\n"
        yield line.encode(errors=TEXT_OPTIONS["errors"])


def _plain(value: Any) -> Any:
    """Return the value in the types of JSON, which has no NaN. Raises TypeError for other types."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # numpy and torch
        return _plain(value.tolist())
    raise TypeError(f"a value of type {type(value).__name__} cannot be stored as JSON")
