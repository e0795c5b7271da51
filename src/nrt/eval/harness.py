"""Use the tasks of lm-evaluation-harness without its models.

lm-eval's tasks build the prompts and grade the answers; nrt generates the answers.

    load_tasks → tasks      named_docs → rows      build_row → TaskRow, with its EvalQuestion
    grade(TaskRows, ReplyStore) → one record per row

lm-eval returns prompts as chat turns, not as text, so nrt's own tokenization applies
(`data/chat.py`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from nrt.errors import InputError, install_hint
from nrt.eval.questions import EvalQuestion, ReplyStore, as_messages
from nrt.eval.tasks import Doc

Record = dict[str, Any]


@dataclass(frozen=True)
class Decoding:
    """Decoding settings for all tasks."""

    max_trace_tokens: int = 2048
    max_answer_tokens: int | None = None  # upper limit on each task's own cap; None: no limit
    temperature: float | None = None  # of traces and answers of greedy tasks; None: greedy
    seed: int = 0


@dataclass(frozen=True)
class TaskRow:
    """One row of a task: lm-eval's document and requests, and the question made of them."""

    task: Any  # lm_eval.api.task.Task
    id: str
    stratum: str  # the row's group, if the benchmark's score is the mean over groups
    doc: Doc
    requests: Sequence[Any]  # lm_eval.api.instance.Instance: one, or one per choice
    question: EvalQuestion


def load_tasks(specs: Sequence[str | dict[str, Any]], *, folder: str | None = None) -> list[Any]:
    """Load tasks with their rows, from `folder` or from the Hugging Face hub.

    A spec is the name of one of nrt's tasks (`eval/tasks/*.yaml`) or an lm-eval configuration.
    Raises InputError if lm-eval is not installed or the rows cannot be loaded.
    """
    manager = _task_manager()
    yaml_folder = str(Path(__file__).parent / "tasks")
    metadata = {"folder": folder}
    tasks = manager(include_path=yaml_folder, include_defaults=False, metadata=metadata)
    return list(tasks.load(list(specs))["tasks"].values())


def named_docs(task: Any) -> list[tuple[str, Doc]]:
    """Return (id, document) of every row.

    The id is a hash of the content, so a row has the same id in every file. Repeated rows get a
    number.
    """
    named, counts = [], Counter()
    for doc in task.eval_docs:
        text = json.dumps(doc, sort_keys=True, ensure_ascii=False, default=str)
        name = hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:12]
        counts[name] += 1
        named.append((name if counts[name] == 1 else f"{name}-{counts[name]}", doc))
    return named


def build_row(task: Any, name: str, doc: Doc, decoding: Decoding, stratum: str = "") -> TaskRow:
    """Build the prompt of a document with lm-eval, as chat turns, and make a question of it."""
    chat = {"apply_chat_template": True, "chat_template": _as_json}
    context = task.fewshot_context(
        doc,
        num_fewshot=task.config.num_fewshot or 0,
        fewshot_as_multiturn=True,
        gen_prefix=task.doc_to_prefix(doc),
        **chat,
    )
    metadata = (task.config.task, 0, task.config.repeats)
    requests = task.construct_requests(doc=doc, ctx=context, metadata=metadata, **chat)
    if not isinstance(requests, list):
        requests = [requests]
    return TaskRow(task, name, stratum, doc, requests, _question(task, requests, decoding))


def grade(rows: Sequence[TaskRow], replies: ReplyStore) -> list[Record]:
    """Apply lm-eval's filters and metrics to the replies and return one record per row.

    The records lack the benchmark's name. Raises InputError if a reply is missing.
    """
    # One task and seed at a time: all seeds share lm-eval's requests, which hold the answers.
    groups: dict[tuple[str, int], list[TaskRow]] = {}
    for row in rows:
        groups.setdefault((row.question.task, row.question.seed), []).append(row)
    records: list[Record] = []
    for group in groups.values():
        records.extend(_grade(group[0].task, group, replies))
    return records


def _grade(task: Any, rows: Sequence[TaskRow], replies: ReplyStore) -> Iterator[Record]:
    for row in rows:
        responses = replies[row.question].said
        for i, request in enumerate(row.requests):
            if row.question.choices:
                request.resps = [(responses[0].logps[i], False)]
            else:
                request.resps = [response.answer for response in responses]
            request.filtered_resps = {}
    task._instances = [request for row in rows for request in row.requests]
    task.apply_filters()
    for row in rows:
        reply = replies[row.question]
        (filter_name,) = row.requests[0].filtered_resps  # every task has one filter
        results = [request.filtered_resps[filter_name] for request in row.requests]
        metrics = task.process_results(row.doc, results)
        if row.question.choices and not reply.said[0].finished:
            # An unfinished trace counts as wrong, as with generated answers.
            metrics = dict.fromkeys(metrics, 0.0)
        yield {
            "task": row.question.task,
            "stratum": row.stratum,
            "id": row.id,
            "seed": row.question.seed,
            "question": row.question.messages[-1].content,
            "target": _target(row),
            "extracted": None if row.question.choices else _unwrap(results[0]),
            "score": float(metrics["score"]),
            "also": {key: value for key, value in metrics.items() if key != "score"},
            "said": [asdict(response) for response in reply.said],
            "seconds": reply.seconds,
        }


def _target(row: TaskRow) -> str:
    """Return the reference answer; for scored choices, all that are labelled as true."""
    if row.question.choices and "labels" in row.doc:
        labelled = zip(row.question.choices, row.doc["labels"], strict=True)
        return "\n".join(choice for choice, label in labelled if label)
    return str(row.task.doc_to_target(row.doc))


def _unwrap(extracted: Any) -> Any:
    """Remove lists of one item around the extracted answer."""
    while isinstance(extracted, list) and len(extracted) == 1:
        (extracted,) = extracted
    return extracted


def _question(task: Any, requests: Sequence[Any], decoding: Decoding) -> EvalQuestion:
    """Convert lm-eval's requests. Raises InputError for an unsupported request type."""
    (kind,) = {request.request_type for request in requests}
    name = str(task.config.task)
    if kind not in ("loglikelihood", "generate_until"):
        raise InputError(
            f"{name}: nrt cannot run requests of type {kind}; "
            "use a task with generated answers or with choices"
        )
    turns = json.loads(requests[0].args[0])
    opening = turns.pop()["content"] if turns[-1]["role"] == "assistant" else ""
    common = {
        "task": name,
        "messages": as_messages(turns),
        "opening": opening,
        "max_trace_tokens": decoding.max_trace_tokens,
        "seed": decoding.seed,
    }
    if kind == "loglikelihood":
        null = bool((task.config.metadata or {}).get("null"))
        choices = tuple(request.args[1] for request in requests)
        temperature = decoding.temperature or 0.0
        return EvalQuestion(**common, choices=choices, null=null, temperature=temperature)
    settings = requests[0].args[1]
    until = settings.get("until") or ()
    temperature = float(settings.get("temperature") or 0.0) if settings.get("do_sample") else 0.0
    if temperature == 0 and decoding.temperature is not None:
        temperature = decoding.temperature
    cap = int(settings.get("max_gen_toks", 2048))
    return EvalQuestion(
        **common,
        n=requests[0].repeats,
        max_answer_tokens=min(cap, decoding.max_answer_tokens or sys.maxsize),
        until=(until,) if isinstance(until, str) else tuple(until),
        temperature=temperature,
        top_p=float(settings.get("top_p", 1.0)),
    )


def _as_json(turns: list[dict[str, str]], **_: Any) -> str:
    return json.dumps(turns, ensure_ascii=False)


def check_harness() -> None:
    """Raise InputError unless lm-evaluation-harness is installed."""
    try:
        import lm_eval.tasks  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"benchmarks need lm-evaluation-harness ({error}); {install_hint('eval')}"
        ) from None


def _task_manager() -> Callable[..., Any]:
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns about every custom_dataset
    check_harness()
    from lm_eval import utils
    from lm_eval.tasks import TaskManager

    if not hasattr(utils.env.from_string, "cache_info"):
        # Without this cache lm-eval compiles every template again for every row and example.
        setattr(utils.env, "from_string", lru_cache(utils.env.from_string))  # noqa: B010
    return TaskManager
