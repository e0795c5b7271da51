"""The trainer's side of rollout servers: prompts shared out among them, weights pushed to all, and patience with one that is gone."""

from __future__ import annotations

import json
import math
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, TypeVar
from urllib.parse import urlsplit

from safetensors.torch import save
from torch import Tensor

from nrt.errors import InputError, RunError
from nrt.rollout.base import Request
from nrt.rollout.wire import PUSHER, TOKEN, VERSION, request_to_json, samples_from_json
from nrt.types import Sample

FOREIGN = -1
"""Version of samples from weights that another trainer pushed."""
T = TypeVar("T")


class RemoteSampler:
    """Samples at rollout servers, all with the same weights.

    strict   samples from other weights than were pushed are an error; otherwise they come with the version that they have
    wait     seconds to wait for a server that does not answer; it gets the weights again when it does
    say      hears of it
    """

    def __init__(self, urls: Sequence[str], *, strict: bool = True, wait: float = 600.0, say: Callable[[str], None] = print) -> None:
        for url in urls:
            if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
                raise InputError(f"vllm.urls: {url!r} is no address of a server, such as http://127.0.0.1:8643")
        self.urls, self.strict, self.wait, self.say = tuple(urls), strict, wait, say
        self.version: int | None = None
        self._body = b""
        self._pusher = secrets.token_hex(8)  # versions of two trainers are not the same weights
        self._token = os.environ.get(TOKEN, "")
        self._threads = ThreadPoolExecutor(len(self.urls), "servers")

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int | None = None) -> None:
        """Pushes them to all servers at once. Their bytes stay in memory, for a server that comes back."""
        if version is not None and version == self.version:
            return
        self._body = save({name: tensor.detach().cpu().contiguous() for name, tensor in weights})
        self.version = version if version is not None else (self.version or 0) + 1
        list(self._threads.map(lambda url: self._insist(url, lambda: self._push(url), again=False), self.urls))

    def sample(self, request: Request) -> list[list[Sample]]:
        """See `Sampler.sample`. Each server takes a share of the prompts; which one samples a prompt does not change its samples.

        Raises RunError where a server stays away, and for samples from other weights (`strict`).
        """
        if self.version is None:
            raise RunError("the rollout servers have no weights: load_weights comes first")
        parts = list(zip(self.urls, _shared(request, len(self.urls)), strict=False))
        found = self._threads.map(lambda part: self._insist(part[0], lambda: self._ask(*part), again=True), parts)
        return [group for groups in found for group in groups]

    def rest(self) -> None:
        """The memory is elsewhere."""

    def _ask(self, url: str, request: Request) -> list[list[Sample]]:
        reply = self._call(url, "/sample", json.dumps(request_to_json(request)).encode())
        mine = reply["pusher"] == self._pusher
        if self.strict and not (mine and reply["version"] == self.version):
            whose = "" if mine else " that another trainer pushed"
            raise RunError(
                f"{url} sampled with weights of version {reply['version']}{whose}, this run pushed version {self.version}; "
                "give each run servers of its own, or let the ratio correct for it with vllm.strict=false"
            )
        return samples_from_json(reply["samples"], reply["version"] if mine else FOREIGN)

    def _push(self, url: str) -> None:
        self._call(url, "/weights", self._body)

    def _insist(self, url: str, work: Callable[[], T], *, again: bool) -> T:
        """The work's result. Where the server is gone, waits for it, and (`again`) pushes the weights before it goes on."""
        lost: float | None = None
        while True:
            try:
                if lost is not None:
                    self._call(url, "/health", None)
                    if again:
                        self._push(url)
                result = work()
            except (OSError, HTTPException, _NoWeights) as error:
                now = time.monotonic()
                if lost is None:
                    lost = now
                    self.say(f"rollout server {url} does not answer ({_reason(error)}); waiting for up to {self.wait:g} s")
                elif now - lost > self.wait:
                    message = f"rollout server {url} did not answer for {self.wait:g} s ({_reason(error)}); resume when it is back"
                    raise RunError(message) from error
                time.sleep(min(1.0, self.wait))
            else:
                if lost is not None:
                    self.say(f"rollout server {url} is back after {time.monotonic() - lost:.0f} s, with weights of version {self.version}")
                return result

    def _call(self, url: str, path: str, body: bytes | None) -> dict[str, Any]:
        """The reply to a POST, or without a body to a GET. Raises OSError or HTTPException where the server is gone."""
        at = urlsplit(url)
        kind = HTTPSConnection if at.scheme == "https" else HTTPConnection
        connection = kind(at.hostname or "", at.port, timeout=10)
        try:
            connection.connect()
            if body is not None:
                _be_patient(connection.sock)
            headers = {PUSHER: self._pusher, VERSION: str(self.version)}
            if self._token:
                headers["Authorization"] = f"Bearer {self._token}"
            connection.request("GET" if body is None else "POST", at.path.rstrip("/") + path, body, headers)
            reply = connection.getresponse()
            text = reply.read()
        finally:
            connection.close()
        try:
            values = json.loads(text)
        except ValueError:
            values = {"error": text[:200].decode(errors="replace")}
        if reply.status == 409:
            raise _NoWeights("it has no weights")
        if reply.status in (400, 401):
            raise InputError(f"rollout server {url}: {values['error']}")
        if reply.status != 200:
            raise RunError(f"rollout server {url} failed with status {reply.status}: {values.get('error')}")
        return values


class _NoWeights(Exception):
    """The server was started again since the last push."""


def _shared(request: Request, parts: int) -> list[Request]:
    """The prompts in equal runs, at most `parts` of them, each prompt with its own seed."""
    prompts, seeds = ([values[place] for place in request.places] for values in (request.prompts, request.seeds))
    size = max(1, math.ceil(len(prompts) / parts))
    starts = range(0, len(prompts), size)
    return [replace(request, prompts=prompts[i : i + size], seed=seeds[i : i + size], only=None) for i in starts]


def _be_patient(sock: socket.socket) -> None:
    """Sampling may take long; a machine that is gone is found out in a minute or two."""
    sock.settimeout(None)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
