"""lm-evaluation-harness without its models: its tasks say what is asked and what an answer is worth, we ask.

    load_tasks → tasks      docs_of → rows      ask → Asked: lm-eval's requests, as a Question      grade(Asked, Replies) → a record a row

Prompts come out of lm-eval as turns of a chat, not as text, so that our own tokenisation stays in force (`data/chat.py`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from nrt.errors import InputError
from nrt.eval.questions import Question, Replies, as_messages

Doc = Mapping[str, Any]
Record = dict[str, Any]


@dataclass(frozen=True)
class Decoding:
    """How questions are asked, whatever the task."""

    max_trace_tokens: int = 2048
    max_answer_tokens: int | None = None  # where a task's own cap is higher; None: the task's
    temperature: float | None = None  # of traces and answers of tasks that are greedy; None: as the task has it
    seed: int = 0


@dataclass(frozen=True)
class Asked:
    """One row of a task: lm-eval's document and requests, and the one question that they are."""

    task: Any  # lm_eval.api.task.Task
    id: str
    stratum: str  # its group, where a score is the mean over groups
    doc: Doc
    requests: Sequence[Any]  # lm_eval.api.instance.Instance: one, or one a choice
    question: Question


def load_tasks(specs: Sequence[str | dict[str, Any]], *, folder: str | None = None) -> list[Any]:
    """Tasks by our own names (`eval/tasks/*.yaml`), or by lm-eval configurations, with their rows: those of `folder`, else the hub's.

    Raises InputError where lm-eval is not installed, or rows cannot be had.
    """
    manager = _task_manager()
    place = str(Path(__file__).parent / "tasks")
    found = manager(include_path=place, include_defaults=False, metadata={"folder": folder}).load(list(specs))["tasks"]
    return list(found.values())


def docs_of(task: Any) -> list[tuple[str, Doc]]:
    """Every row, by a name made of its content: one row is one row whatever file it came from. One that occurs again is numbered."""
    named, seen = [], Counter()
    for doc in task.eval_docs:
        text = json.dumps(doc, sort_keys=True, ensure_ascii=False, default=str)
        name = hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:12]
        seen[name] += 1
        named.append((name if seen[name] == 1 else f"{name}-{seen[name]}", doc))
    return named


def ask(task: Any, name: str, doc: Doc, how: Decoding, stratum: str = "") -> Asked:
    """The row as lm-eval words it, in turns of a chat."""
    chat = {"apply_chat_template": True, "chat_template": _as_json}
    shots = task.config.num_fewshot or 0
    context = task.fewshot_context(doc, num_fewshot=shots, fewshot_as_multiturn=True, gen_prefix=task.doc_to_prefix(doc), **chat)
    made = task.construct_requests(doc=doc, ctx=context, metadata=(task.config.task, 0, task.config.repeats), **chat)
    requests = made if isinstance(made, list) else [made]
    return Asked(task, name, stratum, doc, requests, _question(task, requests, how))


def grade(asked: Sequence[Asked], replies: Replies) -> list[Record]:
    """lm-eval's filters and metrics over the replies, as records without the benchmark's name. Raises InputError where one is missing.

    One task and seed at a time: lm-eval's requests, which hold the answers, are the same for all seeds.
    """
    groups: dict[tuple[str, int], list[Asked]] = {}
    for row in asked:
        groups.setdefault((row.question.task, row.question.seed), []).append(row)
    return [record for rows in groups.values() for record in _grade(rows[0].task, rows, replies)]


def _grade(task: Any, rows: Sequence[Asked], replies: Replies) -> Iterable[Record]:
    for row in rows:
        said = replies[row.question].said
        for place, request in enumerate(row.requests):
            request.resps = [(said[0].logps[place], False)] if row.question.choices else [one.answer for one in said]
            request.filtered_resps = {}
    task._instances = [request for row in rows for request in row.requests]
    task.apply_filters()
    for row in rows:
        reply = replies[row.question]
        (name,) = row.requests[0].filtered_resps  # one filter a task
        results = [request.filtered_resps[name] for request in row.requests]
        metrics = task.process_results(row.doc, results)
        if row.question.choices and not reply.said[0].finished:  # wrong, as an answer would be
            metrics = dict.fromkeys(metrics, 0.0)
        yield {
            "task": row.question.task,
            "stratum": row.stratum,
            "id": row.id,
            "seed": row.question.seed,
            "question": row.question.messages[-1].content,
            "target": _target(row),
            "extracted": None if row.question.choices else _extracted(results[0]),
            "score": float(metrics["score"]),
            "also": {key: value for key, value in metrics.items() if key != "score"},
            "said": [asdict(one) for one in reply.said],
            "seconds": reply.seconds,
        }


def _target(row: Asked) -> str:
    """The reference; of choices all that are labelled right."""
    if row.question.choices and "labels" in row.doc:
        return "\n".join(choice for choice, label in zip(row.question.choices, row.doc["labels"], strict=True) if label)
    return str(row.task.doc_to_target(row.doc))


def _extracted(found: Any) -> Any:
    """What the filter left of an answer, or of each of several."""
    while isinstance(found, list) and len(found) == 1:
        (found,) = found
    return found


def _question(task: Any, requests: Sequence[Any], how: Decoding) -> Question:
    """Raises InputError for a request of a kind that needs no reasoning model: the likelihood of running text."""
    (kind,) = {request.request_type for request in requests}
    name = str(task.config.task)
    if kind not in ("loglikelihood", "generate_until"):
        raise InputError(f"{name} asks for {kind}; only generated answers and likelihoods of choices are asked here")
    turns = json.loads(requests[0].args[0])
    opening = turns.pop()["content"] if turns[-1]["role"] == "assistant" else ""
    base = {"task": name, "messages": as_messages(turns), "opening": opening, "max_trace_tokens": how.max_trace_tokens, "seed": how.seed}
    if kind == "loglikelihood":
        null = bool((task.config.metadata or {}).get("null"))
        choices = tuple(request.args[1] for request in requests)
        return Question(**base, choices=choices, null=null, temperature=how.temperature or 0.0)
    wanted = requests[0].args[1]
    until = wanted.get("until") or ()
    temperature = float(wanted.get("temperature") or 0.0) if wanted.get("do_sample") else 0.0
    return Question(
        **base,
        n=requests[0].repeats,
        max_answer_tokens=min(int(wanted.get("max_gen_toks", 2048)), how.max_answer_tokens or sys.maxsize),
        until=(until,) if isinstance(until, str) else tuple(until),
        temperature=how.temperature if temperature == 0 and how.temperature is not None else temperature,
        top_p=float(wanted.get("top_p", 1.0)),
    )


def _as_json(turns: list[dict[str, str]], **_: Any) -> str:
    return json.dumps(turns, ensure_ascii=False)


def _task_manager() -> Callable[..., Any]:
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of every custom_dataset
    try:
        from lm_eval import utils
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise InputError(
            f"this needs lm-evaluation-harness ({error}): {Path(sys.executable).name} -m pip install 'native-reasoning[eval]'"
        ) from None
    if not hasattr(utils.env.from_string, "cache_info"):  # else every template is compiled anew for every row and example
        setattr(utils.env, "from_string", lru_cache(utils.env.from_string))  # noqa: B010
    return TaskManager
