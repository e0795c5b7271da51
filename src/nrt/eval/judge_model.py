"""Models that can judge traces.

A judge is a model behind a chat-completions server, called with the official `openai` client, or a
model on this machine. Both decode greedily.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

from nrt.errors import InputError, RunError, install_hint
from nrt.system.network import parse_http_url
from nrt.types import Example, Message, Pair

Messages = tuple[Message, ...]

TEMPERATURE = 0.0
NO_KEY = "no-key"  # most local servers need no key, but the client requires one
FATAL = (401, 402, 403, 404, 405)  # HTTP statuses that every other request would get, too


class NoReplyError(RunError):
    """One request failed; other requests may succeed."""


@dataclass(frozen=True)
class JudgeReply:
    """Text of one reply, and the tokens that it took."""

    text: str
    prompt_tokens: int
    completion_tokens: int  # includes the judge's own thinking
    cut: bool  # the reply reached `max_tokens`


@dataclass(frozen=True)
class JudgeModel:
    """Model that scores traces.

    `reply` continues a conversation. It raises NoReplyError if this request failed, InputError or
    RunError if all others would fail, too.
    """

    name: str
    server: str  # host and port, or "local"; neither path nor key
    identity: str  # separates its verdicts from those of other judges in the cache
    max_tokens: int  # cap on a reply
    reply: Callable[[Messages], JudgeReply]


@contextmanager
def open_judge(
    model: str, *, url: str = "", key_env: str = "OPENAI_API_KEY",
    retries: int = 3, max_tokens: int = 1024,
) -> Iterator[JudgeModel]:  # fmt: skip
    """Open the model of this name behind `url`, or without a URL the model in this folder.

    The variable `key_env` holds the key. The client repeats a request up to `retries` times after
    HTTP 408, 409, 429, 5xx or a lost connection, and waits as long as the server demands.
    Raises InputError for a model that cannot be opened.
    """
    if not url:
        yield _open_local(model, max_tokens)
        return
    address = parse_http_url(url)
    if address is None or address.username or address.password or address.query:
        raise InputError(
            "--url: give an address such as http://127.0.0.1:8000/v1, without a user name, "
            "password or query; put the key into the environment variable of --key-env"
        )
    key = os.environ.get(key_env, "").strip()
    if not key and key_env != "OPENAI_API_KEY":
        raise InputError(f"${key_env} is not set; put the judge's key there, or change --key-env")
    try:
        from openai import OpenAI
    except ModuleNotFoundError:
        raise InputError(
            f"a judge behind a URL needs the openai client; {install_hint('judge')}"
        ) from None
    # Servers can have different models under one name ("default"), so the address is part of it.
    identity = f"{address.scheme}://{address.netloc}{address.path.rstrip('/')} {model}"
    with OpenAI(api_key=key or NO_KEY, base_url=url, max_retries=retries) as client:
        reply = partial(_server_reply, client, address.netloc, key_env, model, max_tokens)
        yield JudgeModel(model, address.netloc, identity, max_tokens, reply)


def _server_reply(
    client: Any, server: str, key_env: str, model: str, max_tokens: int, messages: Messages
) -> JudgeReply:
    """Request one chat completion from `client`, an openai.OpenAI.

    The request leaves out `response_format`: many servers reject it or expect another form of it.
    """
    import openai
    from openai.types.chat import ChatCompletion

    turns = [
        # A lone surrogate has no UTF-8.
        {"role": turn.role, "content": turn.content.encode("utf-8", "replace").decode()}
        for turn in messages
    ]
    judge = f"the judge at {server}"
    try:
        completion = client.chat.completions.create(
            model=model, messages=turns, temperature=TEMPERATURE, max_tokens=max_tokens
        )
    except openai.APIStatusError as error:
        status = error.status_code
        if status in FATAL:  # without the server's message, which may contain the key
            raise InputError(
                f"{judge} rejects all requests (HTTP {status} {HTTPStatus(status).phrase}); check "
                f"the key in ${key_env} (--key-env), --model {model}, and --url, which usually "
                "ends in /v1"
            ) from None
        message = " ".join(error.message.replace(client.api_key, "…").split())
        raise NoReplyError(f"{judge} replied with HTTP {status}: {message:.500}") from None
    except openai.APITimeoutError:
        raise NoReplyError(f"{judge} did not reply in time") from None
    except openai.APIConnectionError as error:
        raise RunError(
            f"{judge} cannot be reached ({error.__cause__ or error}); "
            "check --url and that the server runs"
        ) from None
    except (openai.OpenAIError, ValueError):
        raise NoReplyError(f"{judge} sent no chat completion") from None
    if not isinstance(completion, ChatCompletion):
        raise InputError(f"{judge} sends no chat completions; --url usually ends in /v1")
    return _read_completion(completion)


def _read_completion(completion: Any) -> JudgeReply:
    """Read a ChatCompletion. Servers may leave out every field that is used here."""
    choice = completion.choices[0] if completion.choices else None
    usage = completion.usage
    prompt_tokens = (usage and usage.prompt_tokens) or 0
    completion_tokens = (usage and usage.completion_tokens) or 0
    # Some servers count a model's thinking only in the total; it costs as much as completion.
    thinking_and_completion = ((usage and usage.total_tokens) or 0) - prompt_tokens
    return JudgeReply(
        text=(choice and choice.message and choice.message.content) or "",
        prompt_tokens=prompt_tokens,
        completion_tokens=max(completion_tokens, thinking_and_completion),
        cut=choice is not None and choice.finish_reason == "length",
    )


def _open_local(model: str, max_tokens: int) -> JudgeModel:
    """Open any model that `open_reasoner` opens. If it thinks, `max_tokens` also caps its trace."""
    from nrt.eval.reasoner import open_reasoner

    reasoner = open_reasoner(model, max_trace_tokens=max_tokens, max_answer_tokens=max_tokens)
    chat = reasoner.chat
    folder = Path(reasoner.model.name_or_path).absolute()
    identity = str(folder)
    patterns = ("*.safetensors", "*.bin", "*.gguf")
    files = [file for pattern in patterns for file in folder.glob(pattern)]
    for file in sorted(files):  # changed weights are another judge
        identity += f" {file.name} {file.stat().st_size} {file.stat().st_mtime_ns}"

    def reply(messages: Messages) -> JudgeReply:
        pair = Pair(Example("", messages, ""), chat.encode_prompt(messages), ())
        prompt_tokens = len(pair.prompt_ids)
        needed = prompt_tokens + max_tokens * (2 if reasoner.thinks else 1) + 2  # START and END
        if needed > reasoner.context:
            raise NoReplyError(
                f"{model} has a context of {reasoner.context} tokens, but needs {needed}; "
                "lower --max-tokens or use another judge"
            )
        ((trace, ids),) = reasoner.respond(pair)
        body = reasoner.generator.strip_end_token(ids)
        tokens = len(ids) + (trace.n_sampled if trace else 0)
        cut = len(body) == len(ids)  # no token ended the reply
        return JudgeReply(chat.decode(body), prompt_tokens, tokens, cut)

    return JudgeModel(model, "local", identity, max_tokens, reply)
