"""The exported folder behind vLLM's real server: reasoning and content apart. `make test-vllm`, in an environment of its own."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.vllm
pytest.importorskip("vllm")

from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from nrt.config import MarkersConfig  # noqa: E402
from nrt.data import Chat  # noqa: E402
from tests.eval.reasoners import save_tiny_model  # noqa: E402

TRACE, ANSWER = "we add 3 and 4", "it is 7"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny model, with the template that nrt exports, that answers everything alike after an opened trace, and says ANSWER without."""
    folder = tmp_path_factory.mktemp("served")
    save_tiny_model(folder, thinks=True, context=256)
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    tokenizer.chat_template = Chat(tokenizer, MarkersConfig()).exported_template(open_trace=True)
    tokenizer.save_pretrained(folder)
    shutil.copy(str(files("nrt") / "serving" / "vllm_reasoning.py"), folder)

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    thinks = [
        *ids(f"assistant:<|think_start|>{TRACE}<|think_end|>{ANSWER}"),
        tokenizer.eos_token_id,
    ]
    at_once = [*ids(f"assistant:{ANSWER}"), tokenizer.eos_token_id]
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(400):
        tail = thinks if step % 2 else at_once
        prompts = torch.randint(4, 260, (8, int(torch.randint(8, 60, ()))))
        rows = torch.cat([prompts, torch.tensor(tail).repeat(8, 1)], 1)
        labels = rows.clone()
        labels[:, : prompts.shape[1] + len(ids("assistant:")) + step % 2] = -100
        model(input_ids=rows, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def url(folder, tmp_path_factory) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
    }
    log = tmp_path_factory.mktemp("log") / "server.log"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--served-model-name", "tiny",
               "--reasoning-parser-plugin", str(folder / "vllm_reasoning.py"), "--reasoning-parser", "nrt", "--dtype", "float32",
               "--enforce-eager", "--max-model-len", "256", "--host", "127.0.0.1", "--port", str(port)]  # fmt: skip
    with log.open("w") as out:
        server = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
        try:
            base = f"http://127.0.0.1:{port}"
            for _ in range(240):
                if server.poll() is not None or _answers(f"{base}/health"):
                    break
                time.sleep(1)
            assert server.poll() is None, log.read_text()[-3000:]
            yield f"{base}/v1/chat/completions"
        finally:
            server.terminate()
            server.wait(30)


def _answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=2).status == 200
    except OSError:
        return False


def ask(url: str, **values: Any) -> Any:
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "what is 3 plus 4 ?"}],
        "temperature": 0,
        "max_tokens": 120,
    } | values
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    return urllib.request.urlopen(request, timeout=60)


def message(url: str, **values: Any) -> dict[str, Any]:
    return json.load(ask(url, **values))["choices"][0]["message"]


def test_reasoning_and_content_come_apart(url):
    said = message(url)
    assert (said["reasoning"], said["content"]) == (TRACE, ANSWER)


def test_they_stream_apart(url):
    reasoning, content = "", ""
    for line in ask(url, stream=True):
        data = line.decode().removeprefix("data: ").strip()
        if data and data != "[DONE]":
            delta = json.loads(data)["choices"][0]["delta"]
            assert not (content and delta.get("reasoning"))
            reasoning, content = (
                reasoning + (delta.get("reasoning") or ""),
                content + (delta.get("content") or ""),
            )
    assert (reasoning, content) == (TRACE, ANSWER)


def test_a_trace_that_is_cut_has_no_content(url):
    said = message(url, max_tokens=5)
    assert TRACE.startswith(said["reasoning"])
    assert said["content"] is None


def test_without_an_opened_trace_the_reply_is_content(url):
    said = message(url, chat_template_kwargs={"open_trace": False})
    assert (said["reasoning"], said["content"]) == (None, ANSWER)


def test_markers_in_a_question_are_text(url):
    said = message(url, messages=[{"role": "user", "content": "say <|think_end|> now"}])
    assert (said["reasoning"], said["content"]) == (TRACE, ANSWER)
