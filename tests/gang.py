"""Real processes that talk over gloo, started once and then given function after function: imports cost more than the tests."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

PATIENCE = 120
"""Seconds that a function may take."""


class Gang:
    """`gang(function, *arguments)` calls it in every process and gives the results by rank. Functions stand at the top of a module.

    Where one fails all are ended, and the next call starts fresh ones.
    """

    def __init__(self, folder: Path, size: int = 2) -> None:
        self.folder, self.size, self.started = folder, size, 0
        self.members: list[Any] = []
        self.pipes: list[Any] = []

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        if not self.members:
            self._start()
        try:
            for pipe in self.pipes:
                pipe.send((function, arguments))
            answers = [
                pipe.recv() if pipe.poll(PATIENCE) else ("no answer", None) for pipe in self.pipes
            ]
        except (OSError, EOFError) as error:
            self.close()
            raise AssertionError("a process has ended") from error
        if failures := [what for what, _ in answers if what]:
            self.close()
            raise AssertionError("\n\n".join(failures))
        return [value for _, value in answers]

    def close(self) -> None:
        for member in self.members:
            member.kill()
            member.join()
        self.members, self.pipes = [], []

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.started += 1
        for rank in range(self.size):
            ours, theirs = context.Pipe()
            member = context.Process(
                target=_serve,
                args=(rank, self.size, str(self.folder / f"store-{self.started}"), theirs),
                daemon=True,
            )
            member.start()
            theirs.close()
            self.members.append(member)
            self.pipes.append(ours)


def _serve(rank: int, size: int, store: str, pipe: Any) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(size)
    )
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(("", function(*arguments)))
        except BaseException:
            pipe.send((f"in process {rank}:\n{traceback.format_exc()}", None))
