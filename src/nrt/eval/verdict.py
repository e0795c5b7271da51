"""The judge's prompt (Table 8 of the paper), and verdicts read from its replies."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nrt.eval.judge_model import JudgeModel, NoReplyError
from nrt.eval.questions import Count
from nrt.types import Message

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

Give higher scores when the reasoning is consistent and well-grounded, and lower scores when it is \
self-contradictory, irrelevant, or clearly flawed."""
"""Table 8 of the paper, without the outer code fence, which belongs to the typesetting."""

PROMPT_SHA256 = hashlib.sha256(PROMPT.encode()).hexdigest()


def fill_prompt(problem: str, reasoning: str, ground_truth: str) -> str:
    """Return the prompt, filled in one pass: a placeholder's name inside a trace stays as it is."""
    values = {"problem": problem, "reasoning": reasoning, "ground_truth": ground_truth}
    return re.sub(r"\{(problem|reasoning|ground_truth)\}", lambda match: values[match[1]], PROMPT)


class Verdict(BaseModel):
    """JSON object of Table 8. Further fields are ignored; a number in quotes is an error."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    score: float = Field(ge=0, le=1, allow_inf_nan=False)
    justification: str
    flags: tuple[str, ...] = ()


def read_verdict(reply: str) -> Verdict:
    """Return the verdict in a reply. Raise ValueError with the reason if it is not one JSON object.

    One code fence around the object is removed, prose is not.
    """
    text = reply.strip()
    opening = re.match(r"```(?:json)?[ \t]*\n", text, re.IGNORECASE)
    if opening and text.endswith("```"):
        text = text[opening.end() : -3]
    try:
        return Verdict.model_validate_json(text)
    except ValidationError as error:
        problems = []
        for problem in error.errors():
            field = ".".join(str(part) for part in problem["loc"])
            problems.append(f"{field}: {problem['msg']}".removeprefix(": "))
        raise ValueError("; ".join(problems)) from None


@dataclass(frozen=True)
class JudgeOutcome:
    """Result of one prompt: a verdict, or the last error and the last reply, unchanged."""

    __pydantic_config__: ClassVar = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    score: Annotated[float, Field(ge=0, le=1)] | None
    justification: str | None
    flags: tuple[str, ...]
    attempts: Count
    prompt_tokens: Count  # of all attempts
    completion_tokens: Count  # of all attempts
    error: str | None = None
    reply: str | None = None
    cached: bool = False  # this command sent no request for it


def request_verdict(judge: JudgeModel, prompt: str, *, retries: int) -> JudgeOutcome:
    """Return the judge's verdict on one filled prompt.

    An invalid reply goes back to the judge with a complaint, at most `retries` times. Raises the
    errors of `JudgeModel.reply` that all other requests would get, too.
    """
    messages = (Message("user", prompt),)
    attempts = prompt_tokens = completion_tokens = 0
    text, error = None, ""
    while attempts <= retries:
        attempts += 1
        try:
            reply = judge.reply(messages)
        except NoReplyError as failure:  # the client has already repeated the request
            error = str(failure)
            break
        text = reply.text
        prompt_tokens += reply.prompt_tokens
        completion_tokens += reply.completion_tokens
        usage = (attempts, prompt_tokens, completion_tokens)
        try:
            verdict = read_verdict(text)
            return JudgeOutcome(verdict.score, verdict.justification, verdict.flags, *usage)
        except ValueError as problem:
            error = str(problem)
        if reply.cut:
            error = f"the reply was cut after {judge.max_tokens} tokens (--max-tokens)"
        complaint = (
            f"Your reply cannot be used: {error}. {'Be brief. ' if reply.cut else ''}"
            "Reply with the JSON object alone, and nothing before or after it."
        )
        messages += (Message("assistant", text or "(nothing)"), Message("user", complaint))
    return JudgeOutcome(None, None, (), attempts, prompt_tokens, completion_tokens, error, text)
