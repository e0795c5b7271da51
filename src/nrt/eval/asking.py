"""Answer the questions that have no reply yet, in this process or in one process per GPU.

Every batch of replies is stored as soon as it is complete.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from typing import Any

from nrt.errors import NrtError, RunError
from nrt.eval.answering import answer_all
from nrt.eval.questions import EvalQuestion, ReplyStore
from nrt.eval.reasoner import ModelSource, open_reasoner

ProgressCallback = Callable[[int], None]
"""Receives the number of questions answered since the last call."""


@dataclass(frozen=True)
class Backend:
    """Inference settings; none of them is meant to change a reply."""

    backend: str = "hf"
    device: str = "auto"
    batch: int = 64  # sequences at a time
    processes: int = 1  # each with a copy of the model, on its own GPU if there are GPUs


def ask_missing(
    source: ModelSource,
    questions: Sequence[EvalQuestion],
    replies: ReplyStore,
    backend: Backend,
    progress: ProgressCallback,
) -> None:
    """Answer the questions that `replies` lacks and store the replies.

    Raises RunError if a process ends too early; replies stored until then are kept.
    """
    missing = replies.missing(questions)
    if not missing:
        return
    if backend.processes == 1:
        _answer(source, missing, replies, backend, progress)
    else:
        _answer_in_processes(source, missing, replies, backend, progress)
        replies.read()


def _answer(
    source: ModelSource | str,
    questions: Sequence[EvalQuestion],
    replies: ReplyStore,
    backend: Backend,
    progress: ProgressCallback,
) -> None:
    reasoner = open_reasoner(
        source, device=backend.device, backend=backend.backend, max_rows=backend.batch
    )
    for task, batch in answer_all(reasoner, questions, batch=backend.batch):
        replies.add(task, batch)
        progress(len(batch))


def _answer_in_processes(
    source: ModelSource,
    questions: Sequence[EvalQuestion],
    replies: ReplyStore,
    backend: Backend,
    progress: ProgressCallback,
) -> None:
    context = multiprocessing.get_context("spawn")
    messages = context.Queue()  # a count of new replies, or the text of an error
    workers = []
    for rank in range(backend.processes):
        share = questions[rank :: backend.processes]
        arguments = (rank, source.name, share, replies.folder, backend, messages)
        workers.append(context.Process(target=_work, args=arguments, daemon=True))
    for worker in workers:
        worker.start()
    try:
        failure = None
        while failure is None and (
            any(worker.is_alive() for worker in workers) or not messages.empty()
        ):
            try:
                message = messages.get(timeout=0.2)
            except Empty:
                statuses = [worker.exitcode for worker in workers if worker.exitcode]
                failure = f"exit status {statuses[0]}" if statuses else None
                continue
            if isinstance(message, str):
                failure = message
            else:
                progress(message)
        if failure:
            raise RunError(
                f"an evaluation process failed: {failure}. "
                "Run the same command again to answer the remaining questions."
            )
    finally:
        for worker in workers:
            worker.kill()
            worker.join()


def _work(
    rank: int,
    name: str,
    questions: Sequence[EvalQuestion],
    folder: Path,
    backend: Backend,
    messages: Any,
) -> None:
    """Answer questions in a worker process, on the `rank`-th of the visible GPUs.

    The worker writes the reply files of worker `rank + 1`.
    """
    import torch

    if gpus := torch.cuda.device_count():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(i) for i in range(gpus)]
        os.environ["CUDA_VISIBLE_DEVICES"] = names[rank % len(names)]
    try:
        _answer(name, questions, ReplyStore(folder, worker=rank + 1), backend, messages.put)
    except NrtError as error:
        messages.put(str(error))
    except KeyboardInterrupt:  # all processes receive it; the first process reports it
        pass
