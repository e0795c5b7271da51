import json
import logging
import os
import signal
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
    assert lock.take(lock_file(tmp_path, birth="1")) is not None


def test_without_a_birth_a_living_pid_counts(tmp_path):
    with pytest.raises(InputError, match="is at work"):
        lock.take(lock_file(tmp_path, birth=""))


def test_another_host_cannot_be_asked(tmp_path):
    with pytest.raises(InputError, match=r"process 1 on elsewhere is at work .* delete .*lock if you know that it is gone"):
        lock.take(lock_file(tmp_path, host="elsewhere", pid=1))


def test_an_unreadable_lock_is_not_taken(tmp_path):
    (tmp_path / "lock").write_text("")
    with pytest.raises(InputError, match=r"delete .*lock"):
        lock.take(tmp_path / "lock")


def test_a_lock_of_someone_else_is_not_given_back(tmp_path):
    path = lock_file(tmp_path, host="elsewhere")
    lock.release(path)
    assert path.exists()


def test_the_lock_is_given_back_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), RunWriter.create(tmp_path, Config()):
        raise ZeroDivisionError
    assert not (tmp_path / "lock").exists()
