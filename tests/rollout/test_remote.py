"""Rollout servers by real requests: weights as bytes, versions, tokens, and a server that is killed."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection

import pytest
import torch
from safetensors.torch import save

from nrt.errors import InputError, RunError
from nrt.rollout import HFSampler, RemoteSampler, Request
from nrt.rollout.remote import FOREIGN
from nrt.rollout.server import RolloutServer
from nrt.rollout.wire import PUSHER, TOKEN, VERSION, request_from_json, request_to_json
from tests.tiny import PAD, tiny_model

FROM_A_TRAINER = {PUSHER: "me", VERSION: "1", "Content-Length": "0"}
REQUEST = Request([(3, 4), (5,), (6, 7, 8)], n=2, stop_ids=frozenset({2}), cap=9, seed=1)


@contextmanager
def served(model=None, host="127.0.0.1", port=0):
    """Its address, in this process."""
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
    found = connection.getresponse().status
    connection.close()
    return found


def move(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.ones_like(parameter).cumsum(-1).sin())


def here(model):
    """What the model samples in this process, given the seeds that servers are given."""
    return HFSampler(model, PAD).sample(request_from_json(request_to_json(REQUEST)))


def ids(groups):
    return [[sample.ids for sample in group] for group in groups]


def test_weights_are_pushed_and_prompts_shared_out():
    model = tiny_model("llama-tied-mha")
    with served(tiny_model("llama-tied-mha", seed=5)) as one, served(tiny_model("llama-tied-mha", seed=6)) as two:
        for urls in ([one], [one, two], [one, two, one, two]):
            sampler = RemoteSampler(urls)
            for version in range(3):
                sampler.load_weights(model.named_parameters(), version)
                groups = sampler.sample(REQUEST)
                assert ids(groups) == ids(here(model))
                assert {sample.version for group in groups for sample in group} == {version}
                for group, expected in zip(groups, here(model), strict=True):
                    assert [s.logps for s in group] == [pytest.approx(s.logps, abs=1e-5) for s in expected]
                move(model)


def test_samples_of_weights_that_another_pushed():
    model, other = tiny_model(), tiny_model(seed=3)
    with served() as url:
        strict, lax, foreign = RemoteSampler([url]), RemoteSampler([url], strict=False), RemoteSampler([url])
        strict.load_weights(model.named_parameters(), 4)
        foreign.load_weights(other.named_parameters(), 4)
        with pytest.raises(RunError, match="version 4 that another trainer pushed, this run pushed version 4"):
            strict.sample(REQUEST)
        lax.load_weights(model.named_parameters(), 4)
        foreign.load_weights(other.named_parameters(), 5)
        groups = lax.sample(REQUEST)
        assert {sample.version for group in groups for sample in group} == {FOREIGN}
        assert ids(groups) == ids(here(other))


def test_without_weights_it_says_so_and_wrong_ones_are_an_error():
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


def test_a_request_that_cannot_be_answered_is_not_asked_again():
    with served() as url:
        sampler = RemoteSampler([url])
        sampler.load_weights(tiny_model().named_parameters(), 0)
        with pytest.raises(InputError, match="a prompt without tokens"):
            sampler.sample(Request([()], n=1, stop_ids=frozenset(), cap=2, seed=0))


def test_a_token_keeps_others_out(monkeypatch):
    monkeypatch.setenv(TOKEN, "a-token-of-sixteen")
    with served(host="0.0.0.0") as url:
        sampler = RemoteSampler([url])
        sampler.load_weights(tiny_model().named_parameters(), 0)
        assert len(sampler.sample(REQUEST)) == 3
        assert [status(url, "/health"), status(url, "/weights", "POST"), status(url, "/health", Authorization="Bearer no")] == [401] * 3
        monkeypatch.delenv(TOKEN)
        with pytest.raises(InputError, match=f"set {TOKEN} as the server has it"):
            RemoteSampler([url]).load_weights(tiny_model().named_parameters(), 0)


def test_beyond_this_machine_a_token_must_be_set(monkeypatch):
    monkeypatch.delenv(TOKEN, raising=False)
    with pytest.raises(InputError, match=f"set {TOKEN} here and there"):
        RolloutServer(HFSampler(tiny_model(), PAD), "0.0.0.0", 0)
    monkeypatch.setenv(TOKEN, "short")
    with pytest.raises(InputError, match="16 or more"):
        RolloutServer(HFSampler(tiny_model(), PAD), "127.0.0.1", 0)
    monkeypatch.delenv(TOKEN)
    with served() as url:
        assert status(url, "/health", Host="evil.example") == 401
        assert status(url, "/health", Host="localhost:1") == 200


def raw(url, text, then=b""):
    """The first line of the reply to what is sent as it stands; the client then sends no more."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(text.replace("\n", "\r\n").encode() + then)
        connection.shutdown(socket.SHUT_WR)
        return connection.makefile("rb").readline().decode().strip()


HEAD = "POST {} HTTP/1.1\nHost: localhost\n"
TRAINERS = "X-Nrt-Pusher: me\nX-Nrt-Version: 1\n"


def test_a_page_of_another_site_cannot_push_weights():
    """A browser sends such a page's requests without asking first only if they have no header of their own (fetch's no-cors)."""
    body = save({name: weight.detach() for name, weight in tiny_model().named_parameters()})
    with served() as url:
        for headers, expected in (
            ("", "400"),
            ("Origin: http://evil.example\n", "401"),
            (TRAINERS + "Origin: http://evil.example\n", "401"),
            (TRAINERS + "Origin: null\n", "401"),
            (TRAINERS, "200"),
        ):
            text = HEAD.format("/weights") + headers + f"Content-Type: text/plain\nContent-Length: {len(body)}\n\n"
            assert raw(url, text, body).split()[1] == expected, headers
        assert status(url, "/weights", "OPTIONS") == 501, "a browser that asks first is allowed nothing"


@pytest.mark.parametrize("cut", [0, 7, 100, -1])
def test_an_incomplete_push_is_refused(cut):
    model = tiny_model()
    body = save({name: weight.detach() for name, weight in model.named_parameters()})
    with served() as url:
        sampler = RemoteSampler([url])
        sampler.load_weights(model.named_parameters(), 1)
        text = HEAD.format("/weights") + TRAINERS
        assert raw(url, text + f"Content-Length: {len(body)}\n\n", body[:cut]).split()[1] == "400", "the connection ended"
        assert raw(url, text + f"Content-Length: {len(body[:cut])}\n\n", body[:cut]).split()[1] == "400", "the file ends"
        assert ids(sampler.sample(REQUEST)) == ids(here(model)), "it has the weights that it had"


@pytest.mark.parametrize("length", ["abc", "-1", "", "1e3", "9" * 15, "9" * 400])
def test_a_length_that_is_none(length, capfd):
    with served() as url:
        assert raw(url, HEAD.format("/sample") + TRAINERS + f"Content-Length: {length}\n\n").split()[1] == "400"
        assert status(url, "/health") == 200
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("body", [b"", b"[]", b"nonsense", b"\xff", b"[" * 100_000, b'{"prompts": 3}'])
def test_a_request_that_is_none(body):
    with served() as url:
        RemoteSampler([url]).load_weights(tiny_model().named_parameters(), 1)
        text = HEAD.format("/sample") + TRAINERS + f"Content-Length: {len(body)}\n\n"
        assert raw(url, text, body).split()[1] == "400"


@pytest.mark.parametrize("url", ["127.0.0.1:80", "ftp://x/", "http://"])
def test_what_is_no_address(url):
    with pytest.raises(InputError, match="no address of a server"):
        RemoteSampler([url])


def test_a_server_that_was_away_gets_the_weights_again():
    """The next samples wait for it, and are the ones that it would have given."""
    model, said = tiny_model(), []
    move(model)
    with served() as url:
        sampler = RemoteSampler([url], wait=60, say=said.append)
        sampler.load_weights(model.named_parameters(), 3)
        before = sampler.sample(REQUEST)
    with ThreadPoolExecutor(1) as thread:
        found = thread.submit(sampler.sample, REQUEST)
        while not said:
            time.sleep(0.01)
        with served(port=int(url.rsplit(":", 1)[1])):
            assert found.result() == before
    assert "does not answer" in said[0]
    assert "is back after" in said[1]


def test_patience_ends():
    with served() as url:
        sampler, said = RemoteSampler([url], wait=0.2), []
        sampler.say = said.append
        sampler.load_weights(tiny_model().named_parameters(), 0)
    with pytest.raises(RunError, match=r"did not answer for 0.2 s"):
        sampler.sample(REQUEST)
    assert len(said) == 1
