"""`nrt rollout-server` with the real vLLM in processes of their own, on a CPU; and a run whose server is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

import nrt
from nrt.config import MarkersConfig
from nrt.errors import RunError
from nrt.models import add_markers, load_model
from nrt.rollout import RemoteSampler, Request
from nrt.trainer.listener import NullListener
from nrt.trainer.setup import prepare
from tests.steps import collect, local_engine
from tests.vllm.common import MEMORY, make_config, move, save_trainable, scores

pytestmark = pytest.mark.vllm
pytest.importorskip("vllm")

ROOT = Path(__file__).parent.parent.parent


@contextmanager
def server(model: str, port: int = 0):
    """(process, address), once it listens."""
    command = [
        sys.executable,
        "-m",
        "nrt",
        "rollout-server",
        model,
        "--port",
        str(port),
        "--dtype",
        "float32",
        "--memory",
        str(MEMORY),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield (
                process,
                next(line for line in process.stdout if line.startswith("http://")).split()[0],
            )
        finally:
            process.kill()


@pytest.fixture(scope="module")
def trainable(tmp_path_factory):
    return save_trainable(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def url(trainable):
    with server(trainable) as (_, address):
        yield address


def test_pushed_weights_sample_and_versions_are_kept_apart(trainable, url):
    """The server made room for the markers by itself."""
    model, tokenizer = load_model(trainable, dtype="float32", device="cpu")  # pyright: ignore[reportArgumentType]
    add_markers(model, tokenizer, MarkersConfig())
    request = Request(
        [(1, 5, 6), (1, 7), (1, 8, 9, 10)], n=2, stop_ids=frozenset({2}), cap=12, seed=1
    )
    one, two = RemoteSampler([url]), RemoteSampler([url, url])
    for version in range(3):
        one.load_weights(model.named_parameters(), version)
        groups = one.sample(request)
        for prompt, group in zip(request.prompts, groups, strict=True):
            for sample in group:
                assert sample.version == version
                assert sample.logps == pytest.approx(scores(model, prompt, sample.ids), abs=1e-4)
        two.load_weights(model.named_parameters(), version)
        assert [[s.ids for s in group] for group in two.sample(request)] == [
            [s.ids for s in group] for group in groups
        ]
        with pytest.raises(RunError, match="that another trainer pushed"):
            one.sample(request)
        move(model)


@pytest.mark.parametrize("strict", [True, False])
def test_other_weights_than_claimed(trainable, url, tmp_path, strict):
    """In strict mode an error; otherwise groups whose ratio is to what the sampler reported."""
    settings = {"vllm": {"urls": [url], "strict": strict}}
    parts = prepare(make_config(trainable, tmp_path, **settings))
    policy, thief = parts.learner.policy, RemoteSampler([url])
    policy.push_weights()
    thief.load_weights(
        ((name, weight + 0.01) for name, weight in local_engine(parts).model.named_parameters()), 0
    )
    roll = lambda: collect(parts.learner, parts.draw, 4, seed=1)  # noqa: E731
    if strict:
        with pytest.raises(RunError, match="this run pushed version 0"):
            roll()
        return
    rollout = roll()
    assert rollout.metrics["sampler/behind"] == 1
    assert rollout.metrics["sampler/logp_gap"] > 1e-4
    for group in rollout.groups:
        for credit, trace in zip(group.row_credits(), group.traces, strict=True):
            assert trace.version == -1
            assert credit.old_logp_N[1 : 1 + trace.n_sampled].tolist() == pytest.approx(trace.logps)


class KillAt(NullListener):
    """Kills the server when the rollout of a step begins, and starts another one at its port."""

    def __init__(self, process: subprocess.Popen, step: int, revive) -> None:
        self.process, self.at, self.revive, self.seen, self.said = process, step, revive, 0, []

    def phase(self, name: str) -> None:
        self.seen += name == "sampling"
        if name == "sampling" and self.seen == self.at:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            threading.Thread(target=self.revive, daemon=True).start()

    def say(self, text: str) -> None:
        self.said.append(text)


def test_a_server_killed_in_the_midst_of_a_run_costs_no_step(trainable, url, tmp_path):
    """kill -9; the run waits, pushes, and comes out as the one whose server lived."""
    whole = nrt.train(
        make_config(trainable, tmp_path, run=str(tmp_path / "whole"), vllm={"urls": [url]})
    )
    done = threading.Event()

    def revive(port: int) -> None:
        with server(trainable, port):
            done.wait(300)

    with server(trainable) as (process, address):
        killer = KillAt(process, 3, lambda: revive(int(address.rsplit(":", 1)[1])))
        try:
            run = nrt.train(
                make_config(trainable, tmp_path, vllm={"urls": [address], "wait": 300}),
                listener=killer,
            )
        finally:
            done.set()
    assert [record["step"] for record in run.metrics()] == list(range(7))
    assert run.traces() == whole.traces()
    kinds = [warning["kind"] for warning in run.warnings()]
    assert kinds == ["held-out-is-trained"] + ["rollout-server"] * 2
    assert any("is back after" in text for text in killer.said)


def test_two_servers_and_overlap(trainable, url, tmp_path):
    with server(trainable) as (_, second):
        run = nrt.train(
            make_config(trainable, tmp_path, vllm={"urls": [url, second]}, overlap=True)
        )
    assert [group["traces"][0]["version"] for group in run.traces()] == [0, 0, 1, 2, 3, 4]
