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

from nrt import lock
from nrt.config import Config
from nrt.errors import InputError
from nrt.run import Run, RunWriter


@pytest.fixture
def other_process(tmp_path):
    """Another process that is writing to tmp_path / "run"."""
    code = (
        "import sys, time; from nrt.config import Config; from nrt.run import RunWriter\n"
        "writer = RunWriter.create(sys.argv[1], Config()); print('ready', flush=True); time.sleep(600)"
    )
    source = str(Path(lock.__file__).parents[1])
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


def test_a_live_process_keeps_others_out(tmp_path, other_process):
    for enter in (lambda: RunWriter.create(tmp_path / "run", Config()), lambda: RunWriter.reopen(tmp_path / "run", 0)):
        with pytest.raises(InputError, match=f"process {other_process.pid} on .* is at work in .*run; wait for it"):
            enter()
    assert json.loads((tmp_path / "run" / "lock").read_text())["pid"] == other_process.pid


def test_a_killed_process_does_not(tmp_path, other_process, caplog):
    other_process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    while lock._birth(other_process.pid) is not None and time.monotonic() < deadline:  # a zombie: nobody has waited for it
        time.sleep(0.01)
    with caplog.at_level(logging.WARNING), RunWriter.reopen(tmp_path / "run", 0):
        assert json.loads((tmp_path / "run" / "lock").read_text())["pid"] == os.getpid()
    assert f"took over the lock of process {other_process.pid}" in caplog.text
    assert Run(tmp_path / "run").environment[-1]["replaced_lock"]["pid"] == other_process.pid
    assert not (tmp_path / "run" / "lock").exists()


def test_the_same_process_is_kept_out_too(tmp_path):
    with RunWriter.create(tmp_path, Config()):
        with pytest.raises(InputError, match=f"process {os.getpid()} on"):
            RunWriter.reopen(tmp_path, 0)
        assert (tmp_path / "lock").exists(), "the refused one must not take the lock away"


def lock_file(tmp_path, **changes):
    holder = {"pid": os.getpid(), "host": lock._this_process()["host"], "birth": lock._birth(os.getpid()), "started": ""} | changes
    (tmp_path / "lock").write_text(json.dumps(holder))
    return tmp_path / "lock"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system does not tell when a process started")
def test_a_later_process_with_the_same_pid_is_not_the_holder(tmp_path):
    """A restarted container deals out the same pids."""
    assert lock.take(lock_file(tmp_path, birth="1")).replaced is not None


def test_without_a_birth_a_living_pid_counts(tmp_path):
    with pytest.raises(InputError, match="is at work"):
        lock.take(lock_file(tmp_path, birth=""))


def test_another_host_cannot_be_asked(tmp_path):
    with pytest.raises(InputError, match=r"process 1 on elsewhere is at work .* delete .*lock if you know that it is gone"):
        lock.take(lock_file(tmp_path, host="elsewhere", pid=1))


TAKER = """
import sys, time
from pathlib import Path
from nrt import lock
from nrt.errors import InputError
for line in sys.stdin:
    while time.monotonic() < float(line):
        pass
    try:
        held = lock.take(Path(sys.argv[1]))
    except InputError as error:
        print(error, flush=True)
        continue
    print("held", flush=True)
    sys.stdin.readline()
    held.release()
    print("released", flush=True)
"""


def test_of_many_that_find_a_stale_lock_one_takes_it(tmp_path):
    """Real processes, let go at the same moment, two hundred times; the refused ones name the one that has it."""
    path, environment = tmp_path / "lock", {**os.environ, "PYTHONPATH": str(Path(lock.__file__).parents[1])}
    command, pipes = [sys.executable, "-c", TAKER, str(path)], {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    takers = [subprocess.Popen(command, env=environment, **pipes) for _ in range(4)]

    def said(taker):
        return taker.stdout.readline().strip()

    def tell(taker, line):
        taker.stdin.write(line + "\n")
        taker.stdin.flush()

    try:
        for _ in range(200):
            lock_file(tmp_path, birth="1")  # of an earlier process with the pid of this one
            moment = str(time.monotonic() + 0.002)
            for taker in takers:
                tell(taker, moment)
            answers = [said(taker) for taker in takers]
            (holder,) = [taker for taker, answer in zip(takers, answers, strict=True) if answer == "held"]
            refused = [answer for answer in answers if answer != "held"]
            assert all(answer.startswith(f"process {holder.pid} on {socket.gethostname()} is at work in") for answer in refused), refused
            assert json.loads(path.read_text())["pid"] == holder.pid
            tell(holder, "release")
            assert said(holder) == "released"
            assert list(tmp_path.iterdir()) == []
    finally:
        for taker in takers:
            taker.kill()
            taker.communicate()


def test_a_holder_in_another_container_lives(tmp_path):
    """Its host has our name and its pid means another process here, but it has the kernel's lock."""
    path = lock_file(tmp_path, birth="1")
    with path.open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="is at work"):
            lock.take(path)
    lock.take(path).release()  # it is gone
    assert not path.exists()


def test_a_forked_child_does_not_keep_it(tmp_path):
    """Killed like any holder, while its child lives on."""
    code = (
        "import os, sys, time; from pathlib import Path; from nrt import lock\n"
        "held = lock.take(Path(sys.argv[1])); child = os.fork()\n"
        "if not child: held.release(); time.sleep(600)\n"
        "print(child, flush=True); time.sleep(600)"
    )
    environment, path = {**os.environ, "PYTHONPATH": str(Path(lock.__file__).parents[1])}, tmp_path / "lock"
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        time.sleep(0.1)
        with pytest.raises(InputError, match=f"process {process.pid} on"):
            lock.take(path)
        process.kill()
        process.wait()
        held = lock.take(path)
        assert held.replaced is not None
        assert held.replaced["pid"] == process.pid
        held.release()
    finally:
        os.kill(child, signal.SIGKILL)
        process.stdout.close()


def test_a_file_system_without_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    held = lock.take(tmp_path / "lock")
    with pytest.raises(InputError, match=f"process {os.getpid()} on"):
        lock.take(tmp_path / "lock")
    held.release()
    assert list(tmp_path.iterdir()) == []


def test_an_unreadable_lock_is_not_taken(tmp_path):
    (tmp_path / "lock").write_text("")
    with pytest.raises(InputError, match=r"lock does not say whose it is .*; delete it if no process is at work there"):
        lock.take(tmp_path / "lock")


def test_a_lock_of_someone_else_is_not_given_back(tmp_path):
    path = tmp_path / "lock"
    ours = lock.take(path)
    path.unlink()  # by hand
    lock_file(tmp_path, host="elsewhere")
    ours.release()
    assert path.exists()


def test_the_lock_is_given_back_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), RunWriter.create(tmp_path, Config()):
        raise ZeroDivisionError
    assert not (tmp_path / "lock").exists()


@pytest.mark.parametrize("pid", [2**31, 2**63, 10**30, 0, -1, True, 1.5, "7", None, [1]])
def test_a_lock_with_a_pid_that_is_none_is_nobodys_that_can_be_known(pid, tmp_path):
    RunWriter.create(tmp_path / "run", Config()).close()
    text = json.dumps({"pid": pid, "host": socket.gethostname(), "birth": ""})
    (tmp_path / "run" / "lock").write_text(text)
    with pytest.raises(InputError, match="does not say whose it is"):
        RunWriter.reopen(tmp_path / "run", 0)
    assert (tmp_path / "run" / "lock").read_text() == text


def test_a_lock_of_nested_lists_is_nobodys_either(tmp_path):
    RunWriter.create(tmp_path / "run", Config()).close()
    (tmp_path / "run" / "lock").write_text("[" * 60_000)
    with pytest.raises(InputError, match="does not say whose it is"):
        RunWriter.reopen(tmp_path / "run", 0)


@pytest.mark.parametrize("target", ["nowhere", "precious", "."])
def test_a_link_in_the_locks_place_is_refused(target, tmp_path):
    """One that leads nowhere was waited for without end: it could be neither opened nor made."""
    RunWriter.create(tmp_path / "run", Config()).close()
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "run" / "lock").symlink_to(tmp_path / target)
    with pytest.raises(InputError, match="lock is a link, not a plain file"):
        RunWriter.reopen(tmp_path / "run", 0)
    assert (tmp_path / "precious").read_text() == "mine"
