"""Rows of the benchmarks, from plain files in a folder or from the Hugging Face hub.

The files have the form in which their authors publish them. The hub datasets are those that lm-eval
reads. Each function is a task's `custom_dataset`: lm-eval calls it with the task's metadata, in
which `folder` names the folder of the files. All sources give the same form of row. If OLMES uses a
sample of a benchmark, the sample is drawn here.
"""

from __future__ import annotations

import ast
import json
import random
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nrt.data.files import find_tables
from nrt.data.rows import BadRow
from nrt.errors import InputError, first_line

DatasetRow = dict[str, Any]

FILES = {
    "bbh": ("bbh/{task}.json", "bbh/bbh/{task}.json", "bbh/{task}.jsonl"),
    "mmlu": ("mmlu/test.jsonl", "mmlu/dev.jsonl"),
    "drop": ("drop/drop.jsonl", "drop/drop_validation_olmes1000.jsonl"),
    "popqa": ("popqa/popqa.jsonl", "popqa/popqa_subset.jsonl"),
    "truthfulqa": ("truthfulqa/mc_task.json", "truthfulqa/data/v1/mc_task.json"),
    "gsm8k": ("gsm8k/test.jsonl",),
    "math": ("math/test.jsonl",),
    "humaneval": ("humaneval/HumanEval.jsonl",),
    "humaneval_plus": ("humaneval_plus/HumanEvalPlus.jsonl",),
    "ifeval": ("ifeval/input_data.jsonl",),
}
"""Benchmark → paths in a folder; the first that exists is read, plain or with `.gz`."""

MATH_TYPES = (
    "algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory",
    "prealgebra", "precalculus",
)  # fmt: skip


def bbh(task: str, /, *, folder: str | None = None, **_: Any) -> dict[str, Any]:
    """Return rows {"input", "target"} of one of the 27 tasks."""
    return _test_split(_load_rows("bbh", folder, "lukaemon/bbh", task, "test", task=task))


def mmlu(*, folder: str | None = None, **_: Any) -> dict[str, Any]:
    """Return rows {"subject", "question", "choices", "answer"}, the answer as a letter."""
    return _test_split(
        row | {"answer": _letter(row["answer"])}
        for row in _load_rows("mmlu", folder, "cais/mmlu", "all", "test")
    )


def drop(*, folder: str | None = None, **_: Any) -> dict[str, Any]:
    """Return rows {"query_id", "passage", "question", "answers"}; from the hub, OLMES's 1,000."""
    rows = _load_rows("drop", folder, "EleutherAI/drop", None, "validation")
    if not folder:
        rows = random.Random(1234).sample(list(rows), 1000)
    return _test_split(_with_answers(row) for row in rows)


def popqa(*, folder: str | None = None, **_: Any) -> dict[str, Any]:
    """Return rows {"question", "possible_answers"}; the hub stores the names as text of a list."""
    return _test_split(
        {"question": row["question"], "possible_answers": _parse_names(row["possible_answers"])}
        for row in _load_rows("popqa", folder, "akariasai/PopQA", None, "test")
    )


def truthfulqa(*, folder: str | None = None, **_: Any) -> dict[str, Any]:
    """Return rows {"question", "choices", "labels"} of MC2; label 1 means true."""
    hub, config = "truthfulqa/truthful_qa", "multiple_choice"
    return _test_split(
        {"question": row["question"], **_choices(row["mc2_targets"])}
        for row in _load_rows("truthfulqa", folder, hub, config, "validation")
    )


def gsm8k(*, folder: str | None = None, **_: Any) -> dict[str, Any]:
    """Return rows {"question", "answer"}; the number follows "####" in the answer."""
    return _test_split(_load_rows("gsm8k", folder, "openai/gsm8k", "main", "test"))


def math(*, folder: str | None = None, **_: Any) -> dict[str, Any]:
    """Return rows {"problem", "solution", "level", "type"} of all seven types."""
    if folder:
        return _test_split(_load_rows("math", folder, "", None, ""))
    rows: list[DatasetRow] = []
    for kind in MATH_TYPES:
        rows.extend(_load_rows("math", None, "EleutherAI/hendrycks_math", kind, "test"))
    return _test_split(rows)


def humaneval(*, folder: str | None = None, **_: Any) -> dict[str, Any]:
    """Return rows {"task_id", "prompt", "entry_point", "test", "canonical_solution"}."""
    return _test_split(_load_rows("humaneval", folder, "openai/openai_humaneval", None, "test"))


def humaneval_plus(*, folder: str | None = None, **_: Any) -> dict[str, Any]:
    """Return HumanEval's rows with EvalPlus's tests."""
    return _test_split(_load_rows("humaneval_plus", folder, "evalplus/humanevalplus", None, "test"))


def ifeval(*, folder: str | None = None, **_: Any) -> dict[str, Any]:
    """Return rows {"key", "prompt", "instruction_id_list", "kwargs"}."""
    return _test_split(_load_rows("ifeval", folder, "google/IFEval", None, "train"))


def _load_rows(
    name: str, folder: str | None, hub: str, config: str | None, split: str, **fields: str
) -> Iterable[DatasetRow]:
    """Read rows from `folder` if it is set, else from the hub."""
    if folder:
        return _from_folder(name, Path(folder), **fields)
    return _from_hub(name, hub, config, split)


def _from_folder(name: str, folder: Path, **fields: str) -> Iterator[DatasetRow]:
    """Read rows of a file. Raises InputError if no file exists or a row is malformed."""
    paths = [path.format(**fields) for path in FILES[name]]
    candidates = [folder / (path + ending) for path in paths for ending in ("", ".gz")]
    file = next((candidate for candidate in candidates if candidate.is_file()), None)
    if file is None:
        raise InputError(
            f"{folder} has no file of {name}: expected {' or '.join(paths)}, plain or with .gz. "
            "docs/eval.md describes the layout."
        )
    table = "examples" if name == "bbh" and ".json" in file.suffixes else None
    for row in find_tables(str(file))[0].read(table):
        if isinstance(row, BadRow):
            raise InputError(str(row))
        yield row.value


def _from_hub(name: str, hub: str, config: str | None, split: str) -> Iterable[DatasetRow]:
    """Load a dataset. Raises InputError if neither the hub nor its cache has it."""
    import datasets

    try:
        return datasets.load_dataset(hub, config, split=split)  # pyright: ignore[reportReturnType]
    except Exception as error:  # the network, the hub and a dataset's script may raise anything
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(
            f"{name} needs the Hugging Face dataset {hub}, which could not be loaded ({reason}). "
            "Use plain files instead, with --data DIR."
        ) from None


def _test_split(rows: Iterable[DatasetRow]) -> dict[str, Any]:
    return {"test": _RowList(rows)}


class _RowList(list[DatasetRow]):
    """The part of a datasets.Dataset that lm-eval uses, without Arrow.

    Arrow would give every row's dict (IFEval's arguments) the keys of all rows.
    """

    @property
    def features(self) -> Mapping[str, Any]:
        return self[0]


def _letter(answer: int | str) -> str:
    return "ABCD"[answer] if isinstance(answer, int) else answer


def _with_answers(row: DatasetRow) -> DatasetRow:
    """Combine the one answer and the validated answers of official DROP rows, as lm-eval does."""
    if "answers" in row:
        return row
    from lm_eval.tasks.drop.utils import get_answers

    answers = [list(answer) for answer in get_answers(row)]
    kept = {key: row[key] for key in ("query_id", "passage", "question")}
    return {**kept, "answers": answers}


def _parse_names(names: str | list[str]) -> list[str]:
    if isinstance(names, list):
        return names
    try:
        return json.loads(names)
    except ValueError:
        return ast.literal_eval(names)


def _choices(targets: Mapping[str, Any]) -> DatasetRow:
    """Convert {choice: label} of the authors' file, or the two lists of the hub."""
    if "choices" in targets:
        return {"choices": list(targets["choices"]), "labels": list(targets["labels"])}
    return {"choices": list(targets), "labels": list(targets.values())}
