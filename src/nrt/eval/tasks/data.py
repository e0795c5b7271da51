"""Rows of the nine benchmarks: plain files of a folder, as their authors publish them, or the hub's datasets that lm-eval reads.

Each function is a task's `custom_dataset`: lm-eval calls it with the task's metadata, in which `folder` names the files. Rows come out
in one form, whatever they came from. Where OLMES takes a sample of a benchmark, the sample is taken here.
"""

from __future__ import annotations

import ast
import json
import random
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nrt.data.files import Bad, find_tables
from nrt.errors import InputError

Row = dict[str, Any]

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
"""Where a folder may hold a benchmark: the first that exists, plain or with `.gz`."""

MATH_TYPES = ("algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra", "precalculus")


def bbh(task: str, /, *, folder: str | None = None, **_: Any) -> dict[str, Any]:
    """{"input", "target"} of one of the 27 tasks."""
    return _test(_found("bbh", folder, "lukaemon/bbh", task, "test", task=task))


def mmlu(*, folder: str | None = None, **_: Any) -> dict[str, Any]:
    """{"subject", "question", "choices", "answer"}, the answer a letter."""
    rows = _found("mmlu", folder, "cais/mmlu", "all", "test")
    return _test(row | {"answer": "ABCD"[row["answer"]] if isinstance(row["answer"], int) else row["answer"]} for row in rows)


def drop(*, folder: str | None = None, **_: Any) -> dict[str, Any]:
    """{"query_id", "passage", "question", "answers"}; of the hub's rows OLMES's 1,000."""
    rows = _found("drop", folder, "EleutherAI/drop", None, "validation")
    if not folder:
        rows = random.Random(1234).sample(list(rows), 1000)
    return _test(_with_answers(row) for row in rows)


def popqa(*, folder: str | None = None, **_: Any) -> dict[str, Any]:
    """{"question", "possible_answers"}; the hub writes the names as a list in a string."""
    return _test(
        {"question": row["question"], "possible_answers": _listed(row["possible_answers"])}
        for row in _found("popqa", folder, "akariasai/PopQA", None, "test")
    )


def truthfulqa(*, folder: str | None = None, **_: Any) -> dict[str, Any]:
    """{"question", "choices", "labels"} of MC2: 1 for what is true."""
    return _test(
        {"question": row["question"], **_choices(row["mc2_targets"])}
        for row in _found("truthfulqa", folder, "truthfulqa/truthful_qa", "multiple_choice", "validation")
    )


def gsm8k(*, folder: str | None = None, **_: Any) -> dict[str, Any]:
    """{"question", "answer"}, the number after "####"."""
    return _test(_found("gsm8k", folder, "openai/gsm8k", "main", "test"))


def math(*, folder: str | None = None, **_: Any) -> dict[str, Any]:
    """{"problem", "solution", "level", "type"} of all seven types."""
    if folder:
        return _test(_found("math", folder, "", None, ""))
    return _test(row for kind in MATH_TYPES for row in _found("math", None, "EleutherAI/hendrycks_math", kind, "test"))


def humaneval(*, folder: str | None = None, **_: Any) -> dict[str, Any]:
    """{"task_id", "prompt", "entry_point", "test", "canonical_solution"}."""
    return _test(_found("humaneval", folder, "openai/openai_humaneval", None, "test"))


def humaneval_plus(*, folder: str | None = None, **_: Any) -> dict[str, Any]:
    """As HumanEval, with EvalPlus's tests."""
    return _test(_found("humaneval_plus", folder, "evalplus/humanevalplus", None, "test"))


def ifeval(*, folder: str | None = None, **_: Any) -> dict[str, Any]:
    """{"key", "prompt", "instruction_id_list", "kwargs"}."""
    return _test(_found("ifeval", folder, "google/IFEval", None, "train"))


def _found(name: str, folder: str | None, hub: str, config: str | None, split: str, **names: str) -> Iterable[Row]:
    return _from_folder(name, Path(folder), **names) if folder else _from_hub(name, hub, config, split)


def _from_folder(name: str, folder: Path, **names: str) -> Iterator[Row]:
    """Raises InputError where the folder has no such file, or a row of it cannot be read."""
    places = [place.format(**names) for place in FILES[name]]
    file = next((folder / (place + end) for place in places for end in ("", ".gz") if (folder / (place + end)).is_file()), None)
    if file is None:
        raise InputError(f"{folder} has no rows of {name}: looked for {', '.join(places)}, plain or with .gz; docs/eval.md has the layout")
    for row in find_tables(str(file))[0].read("examples" if name == "bbh" and ".json" in file.suffixes else None):
        if isinstance(row, Bad):
            raise InputError(str(row))
        yield row.value


def _from_hub(name: str, hub: str, config: str | None, split: str) -> Iterable[Row]:
    """Raises InputError where the hub does not give it and its cache has it not."""
    import datasets

    try:
        return datasets.load_dataset(hub, config, split=split)  # pyright: ignore[reportReturnType]
    except Exception as error:  # whatever the network, the hub or a script among its files may raise
        raise InputError(
            f"{name} needs the hub's dataset {hub}, which cannot be had ({type(error).__name__}: {str(error).splitlines()[0]}); "
            "give plain files with --data DIR"
        ) from None


def _test(rows: Iterable[Row]) -> dict[str, Any]:
    return {"test": _Rows(rows)}


class _Rows(list[Row]):
    """What lm-eval asks of a datasets.Dataset, without Arrow, which gives every row's dict (IFEval's arguments) the keys of all rows."""

    @property
    def features(self) -> Mapping[str, Any]:
        return self[0]


def _with_answers(row: Row) -> Row:
    """Official DROP has one answer and validated ones, as lm-eval reads them."""
    if "answers" in row:
        return row
    from lm_eval.tasks.drop.utils import get_answers

    answers = [list(answer) for answer in get_answers(row)]
    return {"query_id": row["query_id"], "passage": row["passage"], "question": row["question"], "answers": answers}


def _listed(names: str | list[str]) -> list[str]:
    if isinstance(names, list):
        return names
    try:
        return json.loads(names)
    except ValueError:
        return ast.literal_eval(names)


def _choices(targets: Mapping[str, Any]) -> Row:
    """{choice: label} in the authors' file, two lists in the hub's."""
    if "choices" in targets:
        return {"choices": list(targets["choices"]), "labels": list(targets["labels"])}
    return {"choices": list(targets), "labels": list(targets.values())}
