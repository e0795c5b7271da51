"""`nrt rollout-server`: a sampler behind HTTP, whose weights come from a trainer. See `nrt.rollout.wire` for what is said."""

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
from nrt.models import add_markers, described, load_tokenizer, quiet, save_config
from nrt.network import Handler, Server, is_loopback, token_of
from nrt.rollout.base import Sampler
from nrt.rollout.vllm import VLLMSampler
from nrt.rollout.wire import PUSHER, TOKEN, VERSION, request_from_json, samples_to_json

MOST_DIGITS = 15
"""Of a request's length."""


class RolloutServer(Server):
    """Serves a sampler at host:port (0: a free one); call its `serve_forever`. One request is worked on at a time, /health at once.

    shapes   of the sampler's weights by name, where they are known: a push of others, or of some, is refused before any is taken

    Beyond the loopback interface $NRT_ROLLOUT_TOKEN must be set, and then every request must bring it. Raises InputError where it is
    not, or where the address is taken.
    """

    def __init__(self, sampler: Sampler, host: str, port: int, shapes: Mapping[str, Sequence[int]] | None = None) -> None:
        token = token_of(TOKEN)
        if not token and not is_loopback(host):
            raise InputError(f"{host} can be reached from elsewhere: whoever asks could replace the weights; set {TOKEN} here and there")
        self.sampler, self.shapes = sampler, shapes
        self.held: dict[str, Any] = {"pusher": None, "version": None}
        threads = torch.get_num_threads()  # a new thread would take as many as there are cores
        self.work = ThreadPoolExecutor(1, "sampler", initializer=lambda: torch.set_num_threads(threads))
        super().__init__(host, port, _Handler, token=token, token_from=f"set {TOKEN} as the server has it")

    def load(self, body: bytes, pusher: str, version: int) -> dict[str, Any]:
        """Take all weights, or refuse them (InputError) and keep those that are there. While they are taken, the server has none."""
        try:
            weights = load(body)
        except SafetensorError as error:
            raise InputError(f"the weights are not whole: {error}; push them again") from None
        if self.shapes is not None:
            wrong = [name for name, shape in self.shapes.items() if name not in weights or tuple(weights[name].shape) != tuple(shape)]
            if others := [*wrong, *(weights.keys() - self.shapes.keys())]:
                message = f"the weights are not this model's: {len(others)} of them are missing, of another shape or unknown"
                raise InputError(f"{message}, the first is {others[0]}; start the server with the model that is trained")
        self.held = {"pusher": None, "version": None}
        self.sampler.load_weights(weights.items())
        self.held = {"pusher": pusher, "version": version}
        return self.held

    def sample(self, body: bytes) -> dict[str, Any] | None:
        """None: no weights yet."""
        if self.held["pusher"] is None:
            return None
        try:
            request = request_from_json(json.loads(body))
        except (ValueError, RecursionError) as error:
            raise InputError(f"this is no request for samples: {error}") from None
        return self.held | {"samples": samples_to_json(self.sampler.sample(request))}


class _Handler(Handler):
    server: RolloutServer  # pyright: ignore[reportIncompatibleVariableOverride]

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
        if PUSHER not in headers or not (VERSION in headers and headers[VERSION].isdecimal()):
            # A browser sends neither for a page of another site unless it is allowed to, which nothing here allows.
            self._send(400, {"error": f"a request needs the headers {PUSHER} and {VERSION}"})
        elif (body := self._body()) is None:
            self._send(400, {"error": "the request has no length, or ends before it; send it again"})
        elif self.path == "/sample":
            self._work(lambda: server.sample(body))
        elif self.path == "/weights":
            self._work(lambda: server.load(body, headers[PUSHER], int(headers[VERSION])))
        else:
            self._send(404, {"error": "GET /health, POST /sample and POST /weights are here"})

    def _body(self) -> bytes | None:
        """None where it is not whole."""
        length = self.headers.get("Content-Length", "")
        if not (length.isdecimal() and length.isascii() and len(length) <= MOST_DIGITS):
            return None
        try:
            body = self.rfile.read(int(length))
        except (OSError, MemoryError):
            return None
        return body if len(body) == int(length) else None

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
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        refusal = self.server.refusal(self.headers, token)
        if refusal:
            self._send(401, {"error": refusal})
        else:
            self.server.admit(self.connection)
        return bool(refusal)

    def _send(self, status: int, values: dict[str, Any]) -> None:
        self.reply(status, "application/json", json.dumps(values))


def open_vllm(
    model: str, markers: MarkersConfig, *, dtype: str, context: int | None = None, rows: int = 256, memory: float | None = None
) -> tuple[VLLMSampler, dict[str, tuple[int, ...]]]:
    """vLLM with the shape of `model` and rows for the markers, as training begins with; and the shapes of its weights by name.

    The weights come with the first push.
    """
    tokenizer = load_tokenizer(model)
    with quiet(), torch.device("meta"):
        shape = AutoModelForCausalLM.from_config(described(model).config)
        add_markers(shape, tokenizer, markers)
    with tempfile.TemporaryDirectory() as folder:
        save_config(shape, folder)
        sampler = VLLMSampler(folder, dtype=dtype, context=context, rows=rows, memory=memory, dummy=True)
    return sampler, {name: tuple(weight.shape) for name, weight in shape.named_parameters()}
