"""`torchrun -m nrt train …` for `kills.py`: torchrun's own agent, whose processes are forked and armed, so that none has to import anew."""

from __future__ import annotations

import os
import signal
import time
import uuid
from pathlib import Path
from typing import NoReturn

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from tests.reliability.armed import PHASES, Armed, Instant, Usual, call, log_to, speaker


def run(
    size: int,
    command: list[str],
    instant: Instant | None,
    usual: dict[str, Usual],
    folder: Path,
    pipe: int,
    log: Path,
) -> NoReturn:
    """torchrun in this process, with the settings of `--standalone`; it and its own are a process group."""
    os.setpgid(0, 0)
    log_to(log.with_name("torchrun.log"))
    status = 1
    try:
        config = LaunchConfig(
            1,
            1,
            size,
            run_id=str(uuid.uuid4()),
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            start_method="fork",
        )
        elastic_launch(config, _process)(command, instant, usual, folder, pipe, log)
        status = 0
    except ChildFailedError as failed:
        print(failed, flush=True)
    finally:
        os._exit(status)


def _process(
    command: list[str],
    instant: Instant | None,
    usual: dict[str, Usual],
    folder: Path,
    pipe: int,
    log: Path,
) -> None:
    """One of the processes; as if it had been executed, it knows nothing of torchrun's own way with signals."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    log_to(log)
    rank, say = int(os.environ["RANK"]), speaker(pipe)
    _pid_file(folder, rank).write_text(str(os.getpid()))
    if rank == 0:
        Armed(PHASES, instant, usual, folder, say, lambda: _target(folder, instant))
    status = call(command)
    say({"status": status, "rank": rank})
    if status:
        os._exit(status)


def _target(folder: Path, instant: Instant | None) -> int:
    if instant is None or instant.victim == "0":
        return os.getpid()
    if instant.victim == "all":
        return -os.getpgrp()
    file = _pid_file(folder, int(instant.victim))
    while not (file.exists() and (text := file.read_text())):
        time.sleep(0.01)  # it has not come so far yet
    return int(text)


def forget_pids(folder: Path) -> None:
    """Of the processes of an earlier start."""
    for file in folder.parent.glob("pid-*"):
        file.unlink()


def _pid_file(folder: Path, rank: int) -> Path:
    return folder.parent / f"pid-{rank}"
