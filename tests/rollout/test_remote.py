"""Rollout servers with real requests: weights as bytes, versions, tokens, and a killed server."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.client import HTTPConnection

import pytest
import torch
from safetensors.torch import save

from nrt.errors import InputError, RunError
from nrt.rollout import HFSampler, RemoteSampler, Request
from nrt.rollout.remote import FOREIGN_VERSION
from nrt.rollout.server import RolloutServer
from nrt.rollout.wire import (
    PUSHER_HEADER,
    TOKEN_VARIABLE,
    VERSION_HEADER,
    request_from_json,
    request_to_json,
)
from tests.tiny import PAD, tiny_model

FROM_A_TRAINER = {PUSHER_HEADER: "me", VERSION_HEADER: "1", "Content-Length": "0"}
REQUEST = Request([(3, 4), (5,), (6, 7, 8)], n=2, stop_ids=frozenset({2}), cap=9, seed=1)


@contextmanager
def served(model=None, host="127.0.0.1", port=0):
    """Serve a sampler in this process; yields the server's address."""
    model = model or tiny_model(seed=5)
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    with RolloutServer(HFSampler(model, PAD), host, port, shapes) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def status(url, path, method="GET", **headers):
    connection = HTTPConnection(url.removeprefix("http://"), timeout=30)
    connection.request(method, path, headers=headers)
    code = connection.getresponse().status
    connection.close()
    return code


def move(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.ones_like(parameter).cumsum(-1).sin())


def sample_locally(model):
    """Sample in this process with the seeds that servers receive."""
    return HFSampler(model, PAD).sample(request_from_json(request_to_json(REQUEST)))


def ids(groups):
    return [[sample.ids for sample in group] for group in groups]


def test_weights_are_pushed_and_prompts_split():
    model = tiny_model("llama-tied-mha")
    with (
        served(tiny_model("llama-tied-mha", seed=5)) as one,
        served(tiny_model("llama-tied-mha", seed=6)) as two,
    ):
        for urls in ([one], [one, two], [one, two, one, two]):
            sampler = RemoteSampler(urls)
            for version in range(3):
                sampler.load_weights(model.named_parameters(), version)
                groups = sampler.sample(REQUEST)
                assert ids(groups) == ids(sample_locally(model))
                assert {sample.version for group in groups for sample in group} == {version}
                for group, expected in zip(groups, sample_locally(model), strict=True):
                    assert [s.logps for s in group] == [
                        pytest.approx(s.logps, abs=1e-5) for s in expected
                    ]
                move(model)


def test_samples_from_weights_of_another_trainer():
    model, other = tiny_model(), tiny_model(seed=3)
    with served() as url:
        strict, tolerant, foreign = (
            RemoteSampler([url]),
            RemoteSampler([url], strict=False),
            RemoteSampler([url]),
        )
        strict.load_weights(model.named_parameters(), 4)
        foreign.load_weights(other.named_parameters(), 4)
        with pytest.raises(
            RunError, match="version 4 that another trainer pushed, this run pushed version 4"
        ):
            strict.sample(REQUEST)
        tolerant.load_weights(model.named_parameters(), 4)
        foreign.load_weights(other.named_parameters(), 5)
        groups = tolerant.sample(REQUEST)
        assert {sample.version for group in groups for sample in group} == {FOREIGN_VERSION}
        assert ids(groups) == ids(sample_locally(other))


def test_missing_and_wrong_weights_are_errors():
    with served() as url:
        with pytest.raises(RunError, match="load_weights comes first"):
            RemoteSampler([url]).sample(REQUEST)
        for wrong in (
            [("nothing.like.this", torch.zeros(1))],
            list(tiny_model().named_parameters())[1:],
            [(name, weight[:-1]) for name, weight in tiny_model().named_parameters()],
        ):
            with pytest.raises(InputError, match="the weights are not this model's"):
                RemoteSampler([url]).load_weights(wrong, 0)
        assert status(url, "/sample", "POST", **FROM_A_TRAINER) == 409
        assert status(url, "/elsewhere") == 404


def test_an_invalid_request_is_not_repeated():
    with served() as url:
        sampler = RemoteSampler([url])
        sampler.load_weights(tiny_model().named_parameters(), 0)
        with pytest.raises(InputError, match="a prompt without tokens"):
            sampler.sample(Request([()], n=1, stop_ids=frozenset(), cap=2, seed=0))


def test_requests_without_the_token_are_refused(monkeypatch):
    monkeypatch.setenv(TOKEN_VARIABLE, "a-token-of-sixteen")
    with served(host="0.0.0.0") as url:
        sampler = RemoteSampler([url])
        sampler.load_weights(tiny_model().named_parameters(), 0)
        assert len(sampler.sample(REQUEST)) == 3
        assert [
            status(url, "/health"),
            status(url, "/weights", "POST"),
            status(url, "/health", Authorization="Bearer no"),
        ] == [401] * 3
        monkeypatch.delenv(TOKEN_VARIABLE)
        with pytest.raises(InputError, match=f"set {TOKEN_VARIABLE} to the server's value"):
            RemoteSampler([url]).load_weights(tiny_model().named_parameters(), 0)


def test_a_server_for_other_machines_needs_a_token(monkeypatch):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    with pytest.raises(InputError, match=f"set {TOKEN_VARIABLE} here and for the trainer"):
        RolloutServer(HFSampler(tiny_model(), PAD), "0.0.0.0", 0)
    monkeypatch.setenv(TOKEN_VARIABLE, "short")
    with pytest.raises(InputError, match="16 or more"):
        RolloutServer(HFSampler(tiny_model(), PAD), "127.0.0.1", 0)
    monkeypatch.delenv(TOKEN_VARIABLE)
    with served() as url:
        assert status(url, "/health", Host="evil.example") == 401
        assert status(url, "/health", Host="localhost:1") == 200


def raw(url, text, body=b""):
    """Send bytes, then close the sending side; return the first line of the reply."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(text.replace("\n", "\r\n").encode() + body)
        with suppress(OSError):  # a refusal may come, and the connection end, before the body
            connection.shutdown(socket.SHUT_WR)
        return connection.makefile("rb").readline().decode().strip()


HEAD = "POST {} HTTP/1.1\nHost: localhost\n"
TRAINER_HEADERS = "X-Nrt-Pusher: me\nX-Nrt-Version: 1\n"


def test_a_page_of_another_site_cannot_push_weights():
    """Without a preflight, a browser sends such a page's requests only without custom headers (fetch's no-cors)."""
    body = save({name: weight.detach() for name, weight in tiny_model().named_parameters()})
    with served() as url:
        for headers, expected in (
            ("", "400"),
            ("Origin: http://evil.example\n", "401"),
            (TRAINER_HEADERS + "Origin: http://evil.example\n", "401"),
            (TRAINER_HEADERS + "Origin: null\n", "401"),
            (TRAINER_HEADERS, "200"),
        ):
            text = (
                HEAD.format("/weights")
                + headers
                + f"Content-Type: text/plain\nContent-Length: {len(body)}\n\n"
            )
            assert raw(url, text, body).split()[1] == expected, headers
        assert status(url, "/weights", "OPTIONS") == 501, "a preflight gets no permission"


@pytest.mark.parametrize("cut", [0, 7, 100, -1])
def test_an_incomplete_push_is_refused(cut):
    model = tiny_model()
    body = save({name: weight.detach() for name, weight in model.named_parameters()})
    with served() as url:
        sampler = RemoteSampler([url])
        sampler.load_weights(model.named_parameters(), 1)
        text = HEAD.format("/weights") + TRAINER_HEADERS
        assert (
            raw(url, text + f"Content-Length: {len(body)}\n\n", body[:cut]).split()[1] == "400"
        ), "the connection ended"
        assert (
            raw(url, text + f"Content-Length: {len(body[:cut])}\n\n", body[:cut]).split()[1]
            == "400"
        ), "the file ends"
        assert ids(sampler.sample(REQUEST)) == ids(sample_locally(model)), (
            "the server keeps its weights"
        )


@pytest.mark.parametrize("length", ["abc", "-1", "", "1e3", "9" * 15, "9" * 400])
def test_invalid_content_length(length, capfd):
    with served() as url:
        assert (
            raw(
                url, HEAD.format("/sample") + TRAINER_HEADERS + f"Content-Length: {length}\n\n"
            ).split()[1]
            == "400"
        )
        assert status(url, "/health") == 200
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"nonsense", b"\xff", b"[" * 100_000, b'{"prompts": 3}']
)
def test_invalid_request_body(body):
    with served() as url:
        RemoteSampler([url]).load_weights(tiny_model().named_parameters(), 1)
        text = HEAD.format("/sample") + TRAINER_HEADERS + f"Content-Length: {len(body)}\n\n"
        assert raw(url, text, body).split()[1] == "400"


@pytest.mark.parametrize("url", ["127.0.0.1:80", "ftp://x/", "http://"])
def test_invalid_address(url):
    with pytest.raises(InputError, match="is not the address of a server"):
        RemoteSampler([url])


def test_a_restarted_server_gets_the_weights_again():
    """The next samples wait for it and are those of a server that was never lost."""
    model, warnings = tiny_model(), []
    move(model)
    with served() as url:
        sampler = RemoteSampler([url], wait=60, warn=warnings.append)
        sampler.load_weights(model.named_parameters(), 3)
        expected = sampler.sample(REQUEST)
    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(sampler.sample, REQUEST)
        while not warnings:
            time.sleep(0.01)
        with served(port=int(url.rsplit(":", 1)[1])):
            assert future.result() == expected
    assert "does not answer" in warnings[0]
    assert "is back after" in warnings[1]


def test_a_server_may_be_lost_twice_in_one_request(monkeypatch):
    """Time in which it worked, here longer than `wait`, does not count as lost."""
    sampler = RemoteSampler(["http://127.0.0.1:9"], wait=1.5, warn=lambda message: None)
    monkeypatch.setattr(sampler, "_call", lambda *_: {})
    calls = []

    def work():
        calls.append(len(calls))
        if len(calls) == 2:
            time.sleep(2.0)
        if len(calls) < 3:
            raise ConnectionResetError
        return "samples"

    assert sampler._retry("http://127.0.0.1:9", work, push_again=False) == "samples"


def test_a_lost_server_is_an_error_after_the_wait():
    with served() as url:
        sampler, warnings = RemoteSampler([url], wait=0.2), []
        sampler.warn = warnings.append
        sampler.load_weights(tiny_model().named_parameters(), 0)
    with pytest.raises(RunError, match=r"did not answer for 0.2 s"):
        sampler.sample(REQUEST)
    assert len(warnings) == 1
