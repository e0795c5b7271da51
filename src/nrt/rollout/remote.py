"""Client of rollout servers: splits prompts among them, pushes weights, waits for lost servers."""

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
from nrt.rollout.wire import (
    PUSHER_HEADER,
    TOKEN_VARIABLE,
    VERSION_HEADER,
    request_to_json,
    samples_from_json,
)
from nrt.system.network import parse_http_url
from nrt.types import Sample

FOREIGN_VERSION = -1
"""Version of samples from weights that another trainer pushed."""

T = TypeVar("T")


class RemoteSampler:
    """Samples on rollout servers, which all have the same weights."""

    def __init__(
        self,
        urls: Sequence[str],
        *,
        strict: bool = True,
        wait: float = 600.0,
        warn: Callable[[str], None] = print,
    ) -> None:
        """Check the addresses; nothing is sent yet.

        Args:
            urls: addresses of the servers.
            strict: samples from other weights than those pushed are an error. Otherwise they have
                the version of their weights, or FOREIGN_VERSION.
            wait: seconds to wait for a server that does not answer. When it answers again, it
                receives the weights again.
            warn: receives a message when a server is lost, and when it is back.

        Raises InputError for an address that is not valid.
        """
        for url in urls:
            if parse_http_url(url) is None:
                raise InputError(
                    f"vllm.urls: {url!r} is not the address of a server, "
                    "such as http://127.0.0.1:8643"
                )
        self.urls, self.strict, self.wait, self.warn = tuple(urls), strict, wait, warn
        self.version: int | None = None
        self._body = b""
        self._pusher = secrets.token_hex(8)  # two trainers' equal versions are different weights
        self._token = os.environ.get(TOKEN_VARIABLE, "")
        self._threads = ThreadPoolExecutor(len(self.urls), "servers")

    def load_weights(
        self, weights: Iterable[tuple[str, Tensor]], version: int | None = None
    ) -> None:
        """Push the weights to all servers at once.

        Their bytes stay in memory for a server that returns without weights.
        """
        if version is not None and version == self.version:
            return
        self._body = save({name: tensor.detach().cpu().contiguous() for name, tensor in weights})
        self.version = version if version is not None else (self.version or 0) + 1

        def push(url: str) -> None:
            self._retry(url, lambda: self._push(url), push_again=False)

        list(self._threads.map(push, self.urls))

    def sample(self, request: Request) -> list[list[Sample]]:
        """See `Sampler.sample`. The server that samples a prompt does not change its samples.

        Each server receives a part of the prompts. Raises RunError if a server stays lost, and for
        samples from other weights (`strict`).
        """
        if self.version is None:
            raise RunError("the rollout servers have no weights: load_weights comes first")

        def sample_part(url: str, part: Request) -> list[list[Sample]]:
            return self._retry(url, lambda: self._sample(url, part), push_again=True)

        parts = _split(request, len(self.urls))
        urls = self.urls[: len(parts)]
        samples = self._threads.map(sample_part, urls, parts)
        return [group for groups in samples for group in groups]

    def sleep(self) -> None:
        """Do nothing: the servers use their own memory."""

    def _sample(self, url: str, request: Request) -> list[list[Sample]]:
        reply = self._call(url, "/sample", json.dumps(request_to_json(request)).encode())
        is_own = reply["pusher"] == self._pusher
        if self.strict and not (is_own and reply["version"] == self.version):
            whose = "" if is_own else " that another trainer pushed"
            raise RunError(
                f"{url} sampled with weights of version {reply['version']}{whose}, this run pushed "
                f"version {self.version}; give each run its own servers, "
                "or set vllm.strict=false: the importance ratio then corrects for it"
            )
        return samples_from_json(reply["samples"], reply["version"] if is_own else FOREIGN_VERSION)

    def _push(self, url: str) -> None:
        self._call(url, "/weights", self._body)

    def _retry(self, url: str, work: Callable[[], T], *, push_again: bool) -> T:
        """Return the result of `work`; if the server is lost, wait for it and try again.

        Args:
            push_again: push the weights to a server that is back, before `work`.
        """
        lost: float | None = None  # since when, not counting time in which it worked
        while True:
            began: float | None = None
            try:
                if lost is not None:
                    self._call(url, "/health", None)
                    if push_again:
                        self._push(url)
                began = time.monotonic()
                result = work()
            except (OSError, HTTPException, _NoWeights) as error:
                now = time.monotonic()
                if lost is None:
                    lost = now
                    self.warn(
                        f"rollout server {url} does not answer ({_reason(error)}); "
                        f"waiting for up to {self.wait:g} s"
                    )
                elif began is not None:  # it was back, and is lost again
                    lost += now - began
                if now - lost > self.wait:
                    raise RunError(
                        f"rollout server {url} did not answer for {self.wait:g} s "
                        f"({_reason(error)}); resume the run when the server is back"
                    ) from error
                time.sleep(min(1.0, self.wait))
            else:
                if lost is not None:
                    self.warn(
                        f"rollout server {url} is back after {time.monotonic() - lost:.0f} s, "
                        f"with weights of version {self.version}"
                    )
                return result

    def _call(self, url: str, path: str, body: bytes | None) -> dict[str, Any]:
        """Return the JSON reply to a POST of `body`, or to a GET if it is None.

        Raises OSError or HTTPException if the server is lost.
        """
        address = urlsplit(url)
        connection_type = HTTPSConnection if address.scheme == "https" else HTTPConnection
        connection = connection_type(address.hostname or "", address.port, timeout=10)
        headers = {PUSHER_HEADER: self._pusher, VERSION_HEADER: str(self.version)}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        try:
            connection.connect()
            if body is not None:
                _wait_without_limit(connection.sock)
            method = "GET" if body is None else "POST"
            connection.request(method, address.path.rstrip("/") + path, body, headers)
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
            raise RunError(
                f"rollout server {url} failed with status {reply.status}: {values.get('error')}"
            )
        return values


class _NoWeights(Exception):
    """The server was restarted after the last push."""


def _split(request: Request, parts: int) -> list[Request]:
    """Split the prompts in order into at most `parts` requests of equal size.

    Each prompt keeps its own seed.
    """
    all_seeds = request.seeds
    prompts = [request.prompts[place] for place in request.places]
    seeds = [all_seeds[place] for place in request.places]
    size = max(1, math.ceil(len(prompts) / parts))
    requests = []
    for i in range(0, len(prompts), size):
        part_prompts, part_seeds = prompts[i : i + size], seeds[i : i + size]
        # vLLM finds by itself what prompts have in common
        changes = {"prompts": part_prompts, "seed": part_seeds, "only": None}
        requests.append(replace(request, **changes, prefix_lengths=None))
    return requests


def _wait_without_limit(sock: socket.socket) -> None:
    """Remove the time-out, since sampling may take long; keep-alive probes detect a lost machine.

    Detection takes a minute or two.
    """
    sock.settimeout(None)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
