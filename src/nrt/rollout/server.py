"""`nrt rollout-server`: a sampler behind HTTP, whose weights come from a trainer. See `nrt.rollout.wire` for what is said."""

from __future__ import annotations

import hmac
import json
import socket
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from safetensors.torch import load
from transformers import AutoModelForCausalLM

from nrt.config import MarkersConfig
from nrt.errors import InputError
from nrt.models import add_markers, described, load_tokenizer, quiet, save_config
from nrt.network import host_of, is_loopback, token_of
from nrt.rollout.base import Sampler
from nrt.rollout.vllm import VLLMSampler
from nrt.rollout.wire import PUSHER, TOKEN, VERSION, request_from_json, samples_to_json


class RolloutServer(ThreadingHTTPServer):
    """Serves a sampler at host:port (0: a free one); call its `serve_forever`. One request is worked on at a time, /health at once.

    Beyond the loopback interface $NRT_ROLLOUT_TOKEN must be set, and then every request must bring it. Raises InputError where it is
    not, or where the address is taken.
    """

    daemon_threads = True

    def __init__(self, sampler: Sampler, host: str, port: int) -> None:
        self.sampler, self.host, self.token = sampler, host, token_of(TOKEN)
        if not self.token and not is_loopback(host):
            raise InputError(f"{host} can be reached from elsewhere: whoever asks could replace the weights; set {TOKEN} here and there")
        self.held: dict[str, Any] = {"pusher": None, "version": None}
        threads = torch.get_num_threads()  # a new thread would take as many as there are cores
        self.work = ThreadPoolExecutor(1, "sampler", initializer=lambda: torch.set_num_threads(threads))
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{host} port {port} cannot be served ({reason}); choose another with --host or --port") from error

    @property
    def url(self) -> str:
        host = socket.gethostname() if self.host in ("0.0.0.0", "::") else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.server_port}"

    def load(self, body: bytes, pusher: str, version: int) -> dict[str, Any]:
        """Until all weights are there, the server has none."""
        weights = load(body)
        self.held = {"pusher": None, "version": None}
        self.sampler.load_weights(weights.items())
        self.held = {"pusher": pusher, "version": version}
        return self.held

    def sample(self, body: bytes) -> dict[str, Any] | None:
        """None: no weights yet."""
        if self.held["pusher"] is None:
            return None
        request = request_from_json(json.loads(body))
        return self.held | {"samples": samples_to_json(self.sampler.sample(request))}

    def refusal(self, host: str, authorization: str) -> str:
        """Why a request is refused that came for this host with this header; empty if it is not."""
        if self.token:
            given = authorization.removeprefix("Bearer ")
            mend = f"only with the token: set {TOKEN} as the server has it"
            return "" if hmac.compare_digest(given.encode(), self.token.encode()) else mend
        # Without a token, a foreign name that resolves to this machine would let any web page ask.
        return "" if host in ("127.0.0.1", "localhost", self.host) else "only for this machine"


class _Handler(BaseHTTPRequestHandler):
    server: RolloutServer  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self._refused():
            return
        if self.path == "/health":
            self._send(200, self.server.held)
        else:
            self._send(404, {"error": "GET /health, POST /sample and POST /weights are here"})

    def do_POST(self) -> None:
        if self._refused():
            return
        server, headers = self.server, self.headers
        length = int(headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if len(body) < length:  # the trainer is gone
            self.close_connection = True
        elif self.path == "/sample":
            self._work(lambda: server.sample(body))
        elif self.path == "/weights":
            self._work(lambda: server.load(body, headers[PUSHER] or "", int(headers[VERSION] or 0)))
        else:
            self._send(404, {"error": "GET /health, POST /sample and POST /weights are here"})

    def _work(self, task: Callable[[], dict[str, Any] | None]) -> None:
        try:
            done = self.server.work.submit(task).result()
        except InputError as error:
            self._send(400, {"error": str(error)})
        except Exception as error:
            self._send(500, {"error": f"{type(error).__name__}: {error}"})
        else:
            self._send(409, {"error": "no weights yet"}) if done is None else self._send(200, done)

    def _refused(self) -> bool:
        refusal = self.server.refusal(host_of(self.headers.get("Host", "")), self.headers.get("Authorization", ""))
        if refusal:
            self.close_connection = True  # the body was not read
            self._send(401, {"error": refusal})
        return bool(refusal)

    def _send(self, status: int, values: dict[str, Any]) -> None:
        body = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        with suppress(ConnectionError):
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: a trainer asks twice a step."""


def open_vllm(
    model: str, markers: MarkersConfig, *, dtype: str, context: int | None = None, rows: int = 256, memory: float | None = None
) -> VLLMSampler:
    """vLLM with the shape of `model` and rows for the markers, as training begins with; its weights come with the first push."""
    tokenizer = load_tokenizer(model)
    with quiet(), torch.device("meta"):
        shape = AutoModelForCausalLM.from_config(described(model).config)
        add_markers(shape, tokenizer, markers)
    with tempfile.TemporaryDirectory() as folder:
        save_config(shape, folder)
        return VLLMSampler(folder, dtype=dtype, context=context, rows=rows, memory=memory, dummy=True)
