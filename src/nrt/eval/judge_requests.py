"""Requests to a judge, several at a time, and the cache of its verdicts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.progress import Progress

from nrt.errors import Interrupted
from nrt.eval.judge_model import TEMPERATURE, JudgeModel
from nrt.eval.verdict import JudgeOutcome, request_verdict
from nrt.run.lines import to_line
from nrt.system.disk_errors import explain_disk_errors
from nrt.system.environment import cache_folder
from nrt.system.files import remove_leftovers, write_file

REPEAT = "repeat the command; the cache keeps all verdicts"

_OUTCOME = TypeAdapter(JudgeOutcome)


def request_all(
    console: Console, judge: JudgeModel, prompts: Sequence[str], *, retries: int, jobs: int
) -> list[JudgeOutcome]:
    """Return one outcome per prompt, in order, with `jobs` requests at a time.

    Equal prompts share one request; a prompt with a cached verdict needs none. After an error or
    Ctrl-C no further request starts. Those under way are paid for, so they finish and are cached.
    """
    folder = cache_folder() / "judge"
    with explain_disk_errors(folder, "repeat the command, or set NRT_CACHE to another folder"):
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
    files = {prompt: folder / _cache_name(judge, prompt) for prompt in prompts}
    cached = {prompt: _read_cached(file) for prompt, file in files.items()}
    outcomes = {prompt: outcome for prompt, outcome in cached.items() if outcome}
    missing = [prompt for prompt in files if prompt not in outcomes]

    def request(prompt: str) -> JudgeOutcome:
        outcome = request_verdict(judge, prompt, retries=retries)
        if outcome.score is not None:  # the next command retries failures
            _write_cached(files[prompt], outcome)
        return outcome

    progress = Progress(console=console, transient=True, disable=not console.is_terminal)
    try:
        with progress, ThreadPoolExecutor(jobs) as pool:
            try:
                futures = {pool.submit(request, prompt): prompt for prompt in missing}
                finished, label = as_completed(futures), f"asking {judge.name}"
                for future in progress.track(finished, len(futures), description=label):
                    outcomes[futures[future]] = future.result()
            finally:
                pool.shutdown(cancel_futures=True)
    except KeyboardInterrupt:
        raise Interrupted(REPEAT) from None
    ordered = []
    for prompt in prompts:
        ordered.append(outcomes[prompt])
        outcomes[prompt] = replace(outcomes[prompt], cached=True)  # equal prompts are paid for once
    return ordered


def _cache_name(judge: JudgeModel, prompt: str) -> str:
    """Return a file name for a verdict: the hash of all that decides it."""
    messages = [{"role": "user", "content": prompt}]
    key = json.dumps([judge.identity, TEMPERATURE, judge.max_tokens, messages])
    return f"{hashlib.sha256(key.encode()).hexdigest()}.json"


def _read_cached(file: Path) -> JudgeOutcome | None:
    try:
        outcome = _OUTCOME.validate_json(file.read_bytes())
    except (OSError, ValidationError):  # missing, damaged, or of another version
        return None
    return None if outcome.score is None else replace(outcome, cached=True)


def _write_cached(file: Path, outcome: JudgeOutcome) -> None:
    with explain_disk_errors(file.parent, REPEAT):
        file.parent.mkdir(parents=True, exist_ok=True)  # the cache may be deleted at any time
        write_file(file, [to_line(asdict(outcome))])
