"""One verdict: what the judge is told (Table 8), what it may reply, and what was said before, so that nothing is paid for twice."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from nrt.durable import sweep, write_file
from nrt.environment import cache_folder
from nrt.errors import InputError, RunError
from nrt.eval.judge_client import TEMPERATURE, Judge, Turn, Unanswered
from nrt.eval.questions import Count

PROMPT = """\
You are verifying the *reasoning process* quality, not the final answer formatting.

Score the quality of the thought process for the given reasoning trace. Focus on:

1. Logical coherence and absence of contradictions.
2. Faithfulness to the provided problem statement.
3. Correct mathematical or algorithmic steps (even if arithmetic slips occur later).
4. Absence of hallucinated facts or unjustified leaps.

Return JSON with fields:

{
  "score": float in [0, 1],
  "justification": "one paragraph that cites concrete issues or strengths",
  "flags": ["optional short tags such as `hallucination`, `missing-step`, ..."]
}

Problem:

```
{problem}
```

Model reasoning trace:

```
{reasoning}
```

Ground-truth answer:

```
{ground_truth}
```

Give higher scores when the reasoning is consistent and well-grounded, and lower scores when it is self-contradictory, irrelevant, or \
clearly flawed."""
"""Table 8 of the paper. Its listings carry a code fence of the typesetting; the fences here are those that remain without it."""

PROMPT_SHA256 = hashlib.sha256(PROMPT.encode()).hexdigest()


def fill(problem: str, reasoning: str, ground_truth: str) -> str:
    """The prompt, filled in one pass: what a trace spells of a placeholder stays as it is.

    >>> "is {ground_truth}" in fill("2 + 2?", "it is {ground_truth}", "4")
    True
    """
    given = {"problem": problem, "reasoning": reasoning, "ground_truth": ground_truth}
    return re.sub(r"\{(problem|reasoning|ground_truth)\}", lambda match: given[match[1]], PROMPT)


class Verdict(BaseModel):
    """What Table 8 asks for. A number is a number, never text; fields beyond these are passed over, for they change nothing."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    score: float = Field(ge=0, le=1, allow_inf_nan=False)
    justification: str
    flags: tuple[str, ...] = ()


def read_verdict(reply: str) -> Verdict:
    """The JSON object that the reply is; one code fence around it is taken off, prose is not. Raises ValueError saying what is wrong.

    >>> read_verdict('```json\\n{"score": 1, "justification": "sound"}\\n```').score
    1.0
    """
    text = reply.strip()
    opening = re.match(r"```(?:json)?[ \t]*\n", text, re.IGNORECASE)
    if opening and text.endswith("```"):
        text = text[opening.end() : -3]
    try:
        return Verdict.model_validate_json(text)
    except ValidationError as error:
        faults = [f"{'.'.join(str(part) for part in one['loc'])}: {one['msg']}".removeprefix(": ") for one in error.errors()]
        raise ValueError("; ".join(faults)) from None


@dataclass(frozen=True)
class Outcome:
    """What came of one prompt: a verdict, or what was wrong with the last reply, and that reply as it was. Tokens of all attempts."""

    __pydantic_config__: ClassVar = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    score: Annotated[float, Field(ge=0, le=1)] | None
    justification: str | None
    flags: tuple[str, ...]
    attempts: Count
    prompt_tokens: Count
    completion_tokens: Count
    error: str | None = None
    reply: str | None = None
    cached: bool = False  # it was known before: nothing was paid for it now


def ask(judge: Judge, prompt: str, *, retries: int) -> Outcome:
    """One verdict. A reply that is none goes back with the complaint, at most `retries` times. Raises what `Judge.say` raises for all."""
    turns: list[Turn] = [{"role": "user", "content": prompt}]
    reply, error, prompt_tokens, completion_tokens = None, "", 0, 0
    for attempt in range(1, retries + 2):
        try:
            said = judge.say(turns)
        except Unanswered as refusal:  # the client tried more than once already
            return Outcome(None, None, (), attempt, prompt_tokens, completion_tokens, error=str(refusal), reply=reply)
        reply = said.text
        prompt_tokens += said.prompt_tokens
        completion_tokens += said.completion_tokens
        try:
            verdict = read_verdict(reply)
        except ValueError as fault:
            error = f"the reply was cut after {judge.max_tokens} tokens (--max-tokens)" if said.cut else str(fault)
        else:
            return Outcome(verdict.score, verdict.justification, verdict.flags, attempt, prompt_tokens, completion_tokens)
        shorter = "Be brief. " if said.cut else ""
        complaint = f"Your reply cannot be used: {error}. {shorter}Reply with the JSON object alone, and nothing before or after it."
        turns += [{"role": "assistant", "content": reply or "(nothing)"}, {"role": "user", "content": complaint}]
    return Outcome(None, None, (), retries + 1, prompt_tokens, completion_tokens, error=error, reply=reply)


def ask_all(
    judge: Judge, prompts: Sequence[str], *, retries: int, jobs: int, track: Callable[[Iterable[None], int], Iterable[None]]
) -> list[Outcome]:
    """One outcome a prompt, in order; the same prompt is asked once, and one that has a verdict in the cache not at all.

    `jobs` requests at a time; `track` is given an iterable that moves on with each, and how many there are. On any error, and on
    Ctrl-C, requests that have not begun are dropped; those under way are awaited and kept, since they are paid for.
    """
    cache = Cache(judge)
    known = {prompt: cache.get(prompt) for prompt in dict.fromkeys(prompts)}
    missing = [prompt for prompt, outcome in known.items() if outcome is None]

    def work(prompt: str) -> Outcome:
        outcome = ask(judge, prompt, retries=retries)
        cache.put(prompt, outcome)
        return outcome

    def finish() -> Iterable[None]:
        for done in as_completed(futures):
            known[futures[done]] = done.result()
            yield

    with ThreadPoolExecutor(max_workers=jobs) as pool:
        futures = {pool.submit(work, prompt): prompt for prompt in missing}
        try:
            for _ in track(finish(), len(missing)):
                pass
        except BaseException:
            for future in futures:
                future.cancel()
            raise
    outcomes, paid = [], set()
    for prompt in prompts:
        outcome = known[prompt]
        assert outcome is not None
        outcomes.append(replace(outcome, cached=True) if prompt in paid else outcome)
        paid.add(prompt)
    return outcomes


_KEPT = TypeAdapter(Outcome)


class Cache:
    """Verdicts of one judge by everything that decides them, a JSON file each, in `cache_folder()/judge`. Failures are not kept."""

    def __init__(self, judge: Judge) -> None:
        self.judge, self.folder = judge, cache_folder() / "judge"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            sweep(self.folder)
        except OSError as error:
            raise InputError(f"{self.folder} cannot be made ({error.strerror}); set NRT_CACHE to a folder for verdicts") from None

    def get(self, prompt: str) -> Outcome | None:
        try:
            outcome = _KEPT.validate_json(self._file(prompt).read_bytes())
        except (OSError, ValidationError):  # not there, damaged, or of another version
            return None
        return None if outcome.score is None else replace(outcome, cached=True)

    def put(self, prompt: str, outcome: Outcome) -> None:
        if outcome.score is None:
            return
        record = asdict(outcome)
        for name in ("error", "reply", "cached"):
            del record[name]
        write(self._file(prompt), json.dumps(record, ensure_ascii=False) + "\n")

    def _file(self, prompt: str) -> Path:
        asked = [self.judge.identity, TEMPERATURE, self.judge.max_tokens, [{"role": "user", "content": prompt}]]
        return self.folder / f"{hashlib.sha256(json.dumps(asked).encode()).hexdigest()}.json"


def write(file: Path, text: str) -> None:
    """All or nothing, whoever else writes the same file. Raises RunError where it cannot be written."""
    try:
        write_file(file, [text])
    except OSError as error:
        raise RunError(f"{file} cannot be written ({error.strerror}); make room or mend its folder, then give the same command") from None
