"""Who judges: a model behind a chat-completions server (the official `openai` client), or one on this machine.

A judge is asked with the turns so far and gives one reply, as likely as it can be (temperature 0). It knows nothing of verdicts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from nrt.errors import InputError, RunError

if TYPE_CHECKING:
    from nrt.eval.reasoner import Reasoner

Turn = Mapping[str, str]
"""`role` ("user" or "assistant") and `content`."""

TEMPERATURE = 0.0
TIMEOUT_S = 600.0  # of one request: a judge may think for minutes, and a local server lets requests wait for each other
NO_KEY = "none"
FATAL = {
    401: "refuses the key in ${key}; set ${key} to a valid one, or name another variable with --key-env",
    402: "wants to be paid first",
    403: "does not allow the key in ${key} to do this; set ${key} to another, or name another variable with --key-env",
    404: "knows no model {model}, or nothing lies at this address: --url ends before /chat/completions, mostly in /v1",
    405: "takes no question at this address: --url ends before /chat/completions, mostly in /v1",
}
"""HTTP status → what is wrong with all requests, not with this one."""


@dataclass(frozen=True)
class Reply:
    """What a judge said, and what it cost."""

    text: str
    prompt_tokens: int
    completion_tokens: int  # tokens of its own thinking included
    cut: bool = False  # `max_tokens` came before its end


class Unanswered(RunError):
    """This request has no reply; the next one may have."""


class Judge(Protocol):
    """`name`, `server` and `max_tokens` are written down with what it said; `identity` tells it from any other judge in the cache."""

    @property
    def name(self) -> str: ...
    @property
    def server(self) -> str: ...
    @property
    def identity(self) -> str: ...
    @property
    def max_tokens(self) -> int: ...
    def say(self, turns: Sequence[Turn]) -> Reply:
        """Raises Unanswered where this request failed, InputError or RunError where all others would."""
        ...


@contextmanager
def open_judge(model: str, *, url: str = "", key_env: str = "OPENAI_API_KEY", retries: int = 3, max_tokens: int = 1024) -> Iterator[Judge]:
    """The model of this name behind `url`, asked with the key in the variable `key_env`; without a URL, the folder of a model.

    HTTP errors that may pass (408, 409, 429, 5xx, lost connections) are tried again `retries` times by the client itself, which
    waits as long as the server asks for. Raises InputError for what cannot be opened.
    """
    if not url:
        yield _local(model, max_tokens)
        return
    openai, parts = _openai(), _split(url)
    # A server on one's own machine mostly wants no key, but the client wants one.
    key = os.environ.get(key_env, "").strip() or (NO_KEY if key_env == "OPENAI_API_KEY" else "")
    if not key:
        raise InputError(f"${key_env} is not set; put the judge's key there, or name another variable with --key-env")
    timeout = openai.Timeout(TIMEOUT_S, connect=10.0)
    with openai.OpenAI(api_key=key, base_url=url, max_retries=retries, timeout=timeout) as client:
        yield ServerJudge(
            name=model,
            server=f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname),
            # One name may be two models on two servers ("default" of a local one), so the address belongs to the identity.
            identity=f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')} {model}",
            max_tokens=max_tokens,
            client=client,
            explain=_explainer(key, key_env, model),
        )


@dataclass(frozen=True)
class ServerJudge:
    """Speaks chat completions.

    `max_tokens` and `temperature` are all that it sends beside model and messages: `response_format` is left out, since many
    servers refuse it or know another form of it.
    """

    name: str
    server: str  # host and port: neither path nor key
    identity: str
    max_tokens: int
    client: Any  # openai.OpenAI
    explain: Callable[[int, str], str]  # HTTP status and the server's own words → what to say

    def say(self, turns: Sequence[Turn]) -> Reply:
        openai = _openai()
        try:
            given = self.client.chat.completions.create(
                model=self.name, messages=[_sendable(turn) for turn in turns], temperature=TEMPERATURE, max_tokens=self.max_tokens
            )
        except openai.APIStatusError as error:
            said = f"the judge at {self.server} {self.explain(error.status_code, error.message)}"
            raise (InputError if error.status_code in FATAL else Unanswered)(said) from None
        except openai.APITimeoutError:
            raise Unanswered(f"the judge at {self.server} said nothing for {TIMEOUT_S:.0f} s") from None
        except openai.APIConnectionError as error:
            raise RunError(
                f"the judge at {self.server} cannot be reached ({error.__cause__ or error}); see whether --url is right and the server runs"
            ) from None
        except (openai.OpenAIError, ValueError):
            raise Unanswered(f"the judge at {self.server} replied with what is no chat completion") from None
        if not isinstance(given, openai.types.chat.ChatCompletion):
            raise InputError(f"{self.server} is no chat-completions server at this address; --url mostly ends in /v1")
        return _reply(given)


def _reply(given: Any) -> Reply:
    """Lenient: servers leave out what they have nothing to say about."""
    choice = given.choices[0] if given.choices else None
    message, usage = choice and choice.message, given.usage
    prompt = (usage and usage.prompt_tokens) or 0
    completion = (usage and usage.completion_tokens) or 0
    total = (usage and usage.total_tokens) or 0
    # Some servers count a model's own thinking in the total alone; it is paid for as completion.
    return Reply(
        text=(message and message.content) or "",
        prompt_tokens=prompt,
        completion_tokens=max(completion, total - prompt),
        cut=choice is not None and choice.finish_reason == "length",
    )


def _sendable(turn: Turn) -> dict[str, str]:
    """A lone surrogate has no UTF-8."""
    return {name: text.encode("utf-8", "replace").decode("utf-8") for name, text in turn.items()}


def _explainer(key: str, key_env: str, model: str) -> Callable[[int, str], str]:
    def say(status: int, said: str) -> str:
        if status in FATAL:  # not in the server's words: they may spell the key
            return f"{FATAL[status].format(key=key_env, model=model)} (HTTP {status})"
        hidden = said if key == NO_KEY else said.replace(key, "…")
        return f"answered with HTTP {status}: {' '.join(hidden.split())[:500]}"

    return say


def _split(url: str) -> Any:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"--url {url!r} is no address; give one such as http://127.0.0.1:8000/v1, or none and --model FOLDER")
    if parts.username or parts.password or parts.query:
        raise InputError("--url holds a name, a password or a query; put the key into the environment and name it with --key-env")
    return parts


def _openai() -> Any:
    try:
        import openai
    except ModuleNotFoundError:
        raise InputError("a judge behind a URL needs the openai client: pip install 'native-reasoning[judge]'") from None
    return openai


# --- on this machine ---


@dataclass(frozen=True)
class LocalJudge:
    """Any model that `open_reasoner` opens; greedy, one question at a time. Where it thinks, trace and reply have `max_tokens` each."""

    name: str
    identity: str
    max_tokens: int
    reasoner: Reasoner
    server: str = "local"

    def say(self, turns: Sequence[Turn]) -> Reply:
        from nrt.types import Example, Message, Pair

        reasoner, writer = self.reasoner, self.reasoner.writer
        messages = tuple(Message(turn["role"], turn["content"]) for turn in turns)
        pair = Pair(Example("", messages, ""), reasoner.chat.encode_prompt(messages), ())
        needed = len(pair.prompt_ids) + self.max_tokens * (2 if reasoner.thinks else 1) + 2  # START and END
        if needed > reasoner.context:
            raise Unanswered(
                f"{self.name} has a context of {reasoner.context} tokens, and this needs {needed}; lower --max-tokens or take another judge"
            )
        trace = writer.traces([pair], 1, seed=0, greedy=True)[0][0] if reasoner.thinks else None
        (ids,) = writer.answers([reasoner.row(pair, trace)], seed=0, greedy=True)
        body = writer.body(ids)
        thought = len(trace.ids) + trace.finished if trace else 0
        return Reply(reasoner.chat.decode(body), len(pair.prompt_ids), thought + len(ids), cut=len(body) == len(ids))


def _local(model: str, max_tokens: int) -> LocalJudge:
    from nrt.eval.reasoner import open_reasoner

    reasoner = open_reasoner(model, max_trace_tokens=max_tokens, max_answer_tokens=max_tokens)
    folder = Path(reasoner.model.name_or_path).absolute()
    state = [f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in sorted(folder.glob("*.safetensors"))]
    return LocalJudge(name=model, identity=" ".join([str(folder), *state]), max_tokens=max_tokens, reasoner=reasoner)
