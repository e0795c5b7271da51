"""Lock of a run folder: a live holder keeps it, one other process takes over a dead holder's."""

import errno
import fcntl
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nrt.config import Config
from nrt.errors import InputError
from nrt.run import Run, RunWriter
from nrt.system import lock


@pytest.fixture
def other_process(tmp_path):
    """Another process that holds the lock of tmp_path / "run"."""
    code = (
        "import sys, time; from nrt.config import Config; from nrt.run import RunWriter\n"
        "writer = RunWriter.create(sys.argv[1], Config()); print('ready', flush=True); time.sleep(600)"
    )
    source = str(Path(lock.__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": source},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_live_process_keeps_the_lock(tmp_path, other_process):
    for enter in (
        lambda: RunWriter.create(tmp_path / "run", Config()),
        lambda: RunWriter.reopen(tmp_path / "run", 0),
    ):
        with pytest.raises(
            InputError, match=f"process {other_process.pid} on .* is using .*run; wait for it"
        ):
            enter()
    assert json.loads((tmp_path / "run" / "lock").read_text())["pid"] == other_process.pid


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path, other_process, caplog):
    other_process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    # The process stays a zombie until its parent waits for it.
    while lock._birth(other_process.pid) is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    with caplog.at_level(logging.WARNING), RunWriter.reopen(tmp_path / "run", 0):
        assert json.loads((tmp_path / "run" / "lock").read_text())["pid"] == os.getpid()
    assert f"took over the lock of process {other_process.pid}" in caplog.text
    assert Run(tmp_path / "run").environment[-1]["replaced_lock"]["pid"] == other_process.pid
    assert not (tmp_path / "run" / "lock").exists()


def test_the_same_process_cannot_lock_twice(tmp_path):
    with RunWriter.create(tmp_path, Config()):
        with pytest.raises(InputError, match=f"process {os.getpid()} on"):
            RunWriter.reopen(tmp_path, 0)
        assert (tmp_path / "lock").exists(), "the refused writer must not remove the lock"


def lock_file(tmp_path, **changes):
    holder = {
        "pid": os.getpid(),
        "host": lock._this_process()["host"],
        "birth": lock._birth(os.getpid()),
        "started": "",
    } | changes
    (tmp_path / "lock").write_text(json.dumps(holder))
    return tmp_path / "lock"


@pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="the system does not report start times"
)
def test_a_later_process_with_the_same_pid_is_not_the_holder(tmp_path):
    """A restarted container assigns the same pids again."""
    assert lock.acquire(lock_file(tmp_path, birth="1")).replaced is not None


def test_without_a_start_time_a_live_pid_counts_as_the_holder(tmp_path):
    with pytest.raises(InputError, match="is using"):
        lock.acquire(lock_file(tmp_path, birth=""))


def test_the_lock_of_another_host_is_not_taken_over(tmp_path):
    with pytest.raises(
        InputError,
        match=r"process 1 on elsewhere is using .* delete .*lock if you know that the process has ended",
    ):
        lock.acquire(lock_file(tmp_path, host="elsewhere", pid=1))


TAKER = """
import sys, time
from pathlib import Path
from nrt.system import lock
from nrt.errors import InputError
for line in sys.stdin:
    while time.monotonic() < float(line):
        pass
    try:
        held = lock.acquire(Path(sys.argv[1]))
    except InputError as error:
        print(error, flush=True)
        continue
    print("held", flush=True)
    sys.stdin.readline()
    held.release()
    print("released", flush=True)
"""


def test_exactly_one_of_many_processes_takes_over_a_stale_lock(tmp_path):
    """Four real processes start at the same moment, two hundred times.

    The refused ones name the new holder.
    """
    path, environment = (
        tmp_path / "lock",
        {**os.environ, "PYTHONPATH": str(Path(lock.__file__).parents[2])},
    )
    command, pipes = (
        [sys.executable, "-c", TAKER, str(path)],
        {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True},
    )
    takers = [subprocess.Popen(command, env=environment, **pipes) for _ in range(4)]

    def read(taker):
        return taker.stdout.readline().strip()

    def send(taker, line):
        taker.stdin.write(line + "\n")
        taker.stdin.flush()

    try:
        for _ in range(200):
            lock_file(tmp_path, birth="1")  # of an earlier process with this pid
            moment = str(time.monotonic() + 0.002)
            for taker in takers:
                send(taker, moment)
            answers = [read(taker) for taker in takers]
            (holder,) = [
                taker for taker, answer in zip(takers, answers, strict=True) if answer == "held"
            ]
            refused = [answer for answer in answers if answer != "held"]
            assert all(
                answer.startswith(f"process {holder.pid} on {socket.gethostname()} is using")
                for answer in refused
            ), refused
            assert json.loads(path.read_text())["pid"] == holder.pid
            send(holder, "release")
            assert read(holder) == "released"
            assert list(tmp_path.iterdir()) == []
    finally:
        for taker in takers:
            taker.kill()
            taker.communicate()


def test_a_holder_in_another_container_counts_as_live(tmp_path):
    """It has this host's name and a pid of another process here, but also the kernel's lock."""
    path = lock_file(tmp_path, birth="1")
    with path.open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="is using"):
            lock.acquire(path)
    lock.acquire(path).release()  # the holder has exited
    assert not path.exists()


def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    """The holder is killed while its child still runs."""
    code = (
        "import os, sys, time; from pathlib import Path; from nrt.system import lock\n"
        "held = lock.acquire(Path(sys.argv[1])); child = os.fork()\n"
        "if not child: held.release(); time.sleep(600)\n"
        "print(child, flush=True); time.sleep(600)"
    )
    environment, path = (
        {**os.environ, "PYTHONPATH": str(Path(lock.__file__).parents[2])},
        tmp_path / "lock",
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        time.sleep(0.1)
        with pytest.raises(InputError, match=f"process {process.pid} on"):
            lock.acquire(path)
        process.kill()
        process.wait()
        held = lock.acquire(path)
        assert held.replaced is not None
        assert held.replaced["pid"] == process.pid
        held.release()
    finally:
        os.kill(child, signal.SIGKILL)
        process.stdout.close()


def test_the_lock_works_on_a_file_system_without_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    held = lock.acquire(tmp_path / "lock")
    with pytest.raises(InputError, match=f"process {os.getpid()} on"):
        lock.acquire(tmp_path / "lock")
    held.release()
    assert list(tmp_path.iterdir()) == []


def test_an_unreadable_lock_is_not_taken_over(tmp_path):
    (tmp_path / "lock").write_text("")
    with pytest.raises(
        InputError, match=r"lock does not name its process .*; delete it if no process is using"
    ):
        lock.acquire(tmp_path / "lock")


def test_release_leaves_the_lock_of_another_process(tmp_path):
    path = tmp_path / "lock"
    held = lock.acquire(path)
    path.unlink()  # as a user would
    lock_file(tmp_path, host="elsewhere")
    held.release()
    assert path.exists()


def test_the_lock_is_released_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), RunWriter.create(tmp_path, Config()):
        raise ZeroDivisionError
    assert not (tmp_path / "lock").exists()


@pytest.mark.parametrize("pid", [2**31, 2**63, 10**30, 0, -1, True, 1.5, "7", None, [1]])
def test_a_lock_with_an_invalid_pid_is_not_taken_over(pid, tmp_path):
    RunWriter.create(tmp_path / "run", Config()).close()
    text = json.dumps({"pid": pid, "host": socket.gethostname(), "birth": ""})
    (tmp_path / "run" / "lock").write_text(text)
    with pytest.raises(InputError, match="does not name its process"):
        RunWriter.reopen(tmp_path / "run", 0)
    assert (tmp_path / "run" / "lock").read_text() == text


def test_a_lock_of_deeply_nested_lists_is_not_taken_over(tmp_path):
    RunWriter.create(tmp_path / "run", Config()).close()
    (tmp_path / "run" / "lock").write_text("[" * 60_000)
    with pytest.raises(InputError, match="does not name its process"):
        RunWriter.reopen(tmp_path / "run", 0)


@pytest.mark.parametrize("target", ["nowhere", "precious", "."])
def test_a_link_at_the_path_of_the_lock_is_refused(target, tmp_path):
    """A dangling link once caused an endless loop: it could be neither opened nor created."""
    RunWriter.create(tmp_path / "run", Config()).close()
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "run" / "lock").symlink_to(tmp_path / target)
    with pytest.raises(InputError, match="lock is a link, not a plain file"):
        RunWriter.reopen(tmp_path / "run", 0)
    assert (tmp_path / "precious").read_text() == "mine"


def test_the_next_run_removes_a_lock_file_that_was_half_written(tmp_path, monkeypatch):
    """As if the process had been killed before the lock had its name."""

    def killed(temporary, path):
        os.link(temporary, tmp_path / temporary.name)
        raise KeyboardInterrupt

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(lock, "_publish", killed)
        with pytest.raises(KeyboardInterrupt):
            RunWriter.create(folder, Config())
    (half,) = tmp_path.glob(".lock.*")
    half.rename(folder / half.name)
    RunWriter.create(folder, Config()).close()
    assert not list(folder.glob(".lock.*"))
