"""`nrt rollout-server`: a sampler behind HTTP that a trainer sends weights and requests to.

`nrt.rollout.wire` describes the protocol.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from transformers import AutoModelForCausalLM

from nrt.config import MarkersConfig
from nrt.errors import InputError
from nrt.models import (
    add_markers,
    hide_progress_bars,
    load_configs,
    load_tokenizer,
    named_tensors,
    save_config,
)
from nrt.rollout.base import Sampler
from nrt.rollout.vllm import VLLMSampler
from nrt.rollout.wire import (
    PUSHER_HEADER,
    TOKEN_VARIABLE,
    VERSION_HEADER,
    request_from_json,
    samples_to_json,
)
from nrt.system.network import Handler, Server, is_loopback, read_token

MAX_LENGTH_DIGITS = 15
"""Maximum digits of a request's Content-Length."""


class RolloutServer(Server):
    """HTTP server of a sampler; call its `serve_forever`.

    It processes one request at a time, but answers /health immediately.
    """

    def __init__(
        self,
        sampler: Sampler,
        host: str,
        port: int,
        shapes: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        """Bind to host:port.

        Args:
            port: 0 means any free port.
            shapes: shapes of the sampler's weights by name. The server then refuses a push of other
                weights, or of a part of them, before it loads any. None: unknown.

        Beyond the loopback interface $NRT_ROLLOUT_TOKEN must be set, and every request must contain
        it. Raises InputError if it is not set, or if the address cannot be bound.
        """
        token = read_token(TOKEN_VARIABLE)
        if not token and not is_loopback(host):
            raise InputError(
                f"other machines can reach {host} and could replace the weights; "
                f"set {TOKEN_VARIABLE} here and for the trainer"
            )
        self.sampler, self.shapes = sampler, shapes
        self.weights: dict[str, Any] = {"pusher": None, "version": None}  # see `wire`
        threads = torch.get_num_threads()  # a new thread would use as many threads as cores
        self.worker = ThreadPoolExecutor(
            1, "sampler", initializer=lambda: torch.set_num_threads(threads)
        )
        token_hint = f"set {TOKEN_VARIABLE} to the server's value"
        super().__init__(host, port, _Handler, token=token, token_hint=token_hint)

    def load(self, body: bytes, pusher: str, version: int) -> dict[str, Any]:
        """Load all weights; return the weights record.

        Raises InputError for weights that do not fit the sampler, which keeps the previous ones.
        During the load the server has no weights.
        """
        try:
            weights = load(body)
        except SafetensorError as error:
            message = f"the weights are not a complete safetensors file: {error}; push them again"
            raise InputError(message) from None
        if self.shapes is not None:
            pushed = {name: tuple(weight.shape) for name, weight in weights.items()}
            _check_shapes(pushed, self.shapes)
        self.weights = {"pusher": None, "version": None}
        self.sampler.load_weights(weights.items())
        self.weights = {"pusher": pusher, "version": version}
        return self.weights

    def sample(self, body: bytes) -> dict[str, Any] | None:
        """Return the reply to a request for samples; None if there are no weights yet."""
        if self.weights["pusher"] is None:
            return None
        try:
            request = request_from_json(json.loads(body))
        except (ValueError, RecursionError) as error:
            message = f"the body is not a valid request for samples: {error}"
            raise InputError(message) from None
        return self.weights | {"samples": samples_to_json(self.sampler.sample(request))}


class _Handler(Handler):
    server: RolloutServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        if self._refuse():
            return
        if self.path == "/health":
            self._send(200, self.server.weights)
        else:
            self._send_not_found()

    def do_POST(self) -> None:
        if self._refuse():
            return
        server, headers = self.server, self.headers
        version = headers.get(VERSION_HEADER, "")
        if PUSHER_HEADER not in headers or not version.isdecimal():
            # Without permission, which nothing here gives, a browser sends neither header for a
            # page of another site.
            error = f"a request needs the headers {PUSHER_HEADER} and {VERSION_HEADER}"
            self._send(400, {"error": error})
            return
        body = self._read_body()
        if body is None:
            error = "the request has no length, or ends before it; send it again"
            self._send(400, {"error": error})
        elif self.path == "/sample":
            self._send_result(lambda: server.sample(body))
        elif self.path == "/weights":
            self._send_result(lambda: server.load(body, headers[PUSHER_HEADER], int(version)))
        else:
            self._send_not_found()

    def _read_body(self) -> bytes | None:
        """Return the request's body; None if it has no length or is not complete."""
        length = self.headers.get("Content-Length", "")
        if not (length.isdecimal() and length.isascii() and len(length) <= MAX_LENGTH_DIGITS):
            return None
        try:
            body = self.rfile.read(int(length))
        except (OSError, MemoryError):
            return None
        return body if len(body) == int(length) else None

    def _send_result(self, task: Callable[[], dict[str, Any] | None]) -> None:
        """Run a task in the worker thread and send its result; None: no weights yet."""
        try:
            result = self.server.worker.submit(task).result()
        except InputError as error:
            self._send(400, {"error": str(error)})
        except Exception as error:
            self._send(500, {"error": f"{type(error).__name__}: {error}"})
        else:
            if result is None:
                self._send(409, {"error": "no weights yet"})
            else:
                self._send(200, result)

    def _refuse(self) -> bool:
        """Refuse a request without access; return True if it was refused."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        refusal = self.server.refusal(self.headers, token)
        if refusal:
            self._send(401, {"error": refusal})
        else:
            self.server.admit(self.connection)
        return bool(refusal)

    def _send_not_found(self) -> None:
        error = "this server has GET /health, POST /sample and POST /weights"
        self._send(404, {"error": error})

    def _send(self, status: int, values: dict[str, Any]) -> None:
        self.reply(status, "application/json", json.dumps(values))


def open_vllm(
    model: str,
    markers: MarkersConfig,
    *,
    dtype: str,
    context: int | None = None,
    rows: int = 256,
    memory: float | None = None,
) -> tuple[VLLMSampler, dict[str, tuple[int, ...]]]:
    """Start vLLM with the architecture of `model` and rows for the markers, as at a run's start.

    The weights arrive with the first push. Arguments as those of `VLLMSampler`.

    Returns (sampler, shapes of its weights by name).
    """
    tokenizer = load_tokenizer(model)
    with hide_progress_bars(), torch.device("meta"):
        empty_model = AutoModelForCausalLM.from_config(load_configs(model).config)
        add_markers(empty_model, tokenizer, markers)
    with tempfile.TemporaryDirectory() as folder:
        save_config(empty_model, folder)
        sampler = VLLMSampler(
            folder, dtype=dtype, context=context, rows=rows, memory=memory, dummy=True
        )
    shapes = {name: tuple(weight.shape) for name, weight in named_tensors(empty_model)}
    return sampler, shapes


def _check_shapes(
    pushed: Mapping[str, Sequence[int]], expected: Mapping[str, Sequence[int]]
) -> None:
    """Raise InputError unless the pushed weights have exactly the expected names and shapes."""
    wrong = []
    for name, shape in expected.items():
        if name not in pushed or tuple(pushed[name]) != tuple(shape):
            wrong.append(name)
    wrong += pushed.keys() - expected.keys()
    if wrong:
        raise InputError(
            f"the weights are not this model's: {len(wrong)} of them are missing, of another shape "
            f"or unknown, the first is {wrong[0]}; start the server with the model that is trained"
        )
