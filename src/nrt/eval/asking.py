"""Asks a model what it has not been asked yet, in this process or in several, one a GPU; every batch of replies is kept at once."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from typing import Any

from nrt.errors import NrtError, RunError
from nrt.eval.answering import answer_all
from nrt.eval.questions import Question, Replies
from nrt.eval.reasoner import Source, open_reasoner

Progress = Callable[[int], None]
"""Hears how many questions were answered since it last heard."""


@dataclass(frozen=True)
class Machine:
    """What answers: none of it is meant to change a reply."""

    backend: str = "hf"
    device: str = "auto"
    batch: int = 64  # sequences at a time
    processes: int = 1  # each with a copy of the model, on a GPU of its own where there are some


def ask_missing(source: Source, questions: Sequence[Question], replies: Replies, machine: Machine, progress: Progress) -> None:
    """Raises RunError where a process ends too early; what was answered by then is kept."""
    missing = replies.missing(questions)
    if not missing:
        return
    if machine.processes == 1:
        _answer(source, missing, replies, machine, progress)
    else:
        _answer_in_processes(source, missing, replies, machine, progress)
        replies.read()


def fingerprint(source: Source, backend: str) -> str:
    """Changes with the model's files (a hub's model goes by its name) and with what computes it: replies of another are not its own."""
    found = hashlib.sha256(f"{backend}\0{source.thinks}".encode())
    folder = Path(source.folder)
    if not folder.is_dir():
        found.update(source.folder.encode())
    for file in sorted(file for pattern in ("*.safetensors", "*.json", "*.jinja", "*.model") for file in folder.glob(pattern)):
        with file.open("rb") as content:
            found.update(file.name.encode() + hashlib.file_digest(content, "sha256").digest())
    return found.hexdigest()[:12]


def _answer(source: Source | str, questions: Sequence[Question], replies: Replies, machine: Machine, progress: Progress) -> None:
    reasoner = open_reasoner(source, device=machine.device, backend=machine.backend, max_rows=machine.batch)
    for task, found in answer_all(reasoner, questions, batch=machine.batch):
        replies.add(task, found)
        progress(len(found))


def _answer_in_processes(source: Source, questions: Sequence[Question], replies: Replies, machine: Machine, progress: Progress) -> None:
    context = multiprocessing.get_context("spawn")
    said = context.Queue()
    workers = [
        context.Process(target=_work, args=(i, source.name, questions[i :: machine.processes], replies.folder, machine, said), daemon=True)
        for i in range(machine.processes)
    ]
    for worker in workers:
        worker.start()
    try:
        failed = None
        while failed is None and (any(worker.is_alive() for worker in workers) or not said.empty()):
            try:
                message = said.get(timeout=0.2)
            except Empty:
                failed = next((f"it ended with status {worker.exitcode}" for worker in workers if worker.exitcode), None)
                continue
            if isinstance(message, str):
                failed = message
            else:
                progress(message)
        if failed:
            raise RunError(f"a process of the evaluation failed: {failed}; the same command goes on from what was answered")
    finally:
        for worker in workers:
            worker.kill()
            worker.join()


def _work(number: int, name: str, questions: Sequence[Question], folder: Path, machine: Machine, said: Any) -> None:
    """One process: writer `number + 1`, on the GPU of that number among those that this command may see."""
    import torch

    if gpus := torch.cuda.device_count():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(i) for i in range(gpus)]
        os.environ["CUDA_VISIBLE_DEVICES"] = names[number % len(names)]
    try:
        _answer(name, questions, Replies(folder, writer=number + 1), machine, said.put)
    except NrtError as error:
        said.put(str(error))
    except KeyboardInterrupt:  # it came to all; the first process says so
        pass
