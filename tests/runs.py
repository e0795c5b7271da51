"""Run folders for tests of everything that reads them: written by RunWriter, the same at every call."""

import json
import random
from pathlib import Path
from typing import Any

from nrt.config import Config
from nrt.run import RunWriter

HOSTILE = (
    "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'> & \u2028 \u2029 &lt;b&gt; "
    "שלום عليكم \u202eoverride\u202c 🧪👩‍🔬 NUL:\x00 bell:\x07 lone:\ud800 {{ 7 * 7 }} ${7 * 7}"
)
"""What a model or a data file can hold, and a page must show as text."""

TOKENS = ("the", " answer", " is", "\n", "4", "2", "<eos>")


def write_run(
    path: Path,
    *,
    method: str = "nrt-gm",
    seed: int = 0,
    groups: int = 6,
    traces: int = 5,
    extra: str = "",
    norm: str | None = None,
) -> Path:
    """A finished run of `groups` steps with one group each, and held-out evaluations at step 0 and the last; `extra` goes into all text."""
    rng = random.Random(f"{method} {seed}")
    config = Config.model_validate(
        {
            "method": method,
            "seed": seed,
            "steps": groups,
            "batch": 1,
            "traces": traces,
            "data": {"valid": "folder/valid.jsonl"},
        }
        | {"objective": {"weight_norm": norm}}
    )
    with RunWriter.create(path, config) as writer:
        writer.warn("dropped-prompts", f"2 rows are too long {extra}", 0, count=2)
        for step in range(groups + 1):
            writer.metrics(_metrics(rng, step))
            if step:
                writer.trace(
                    _group(rng, step, traces, extra)
                    if method != "sft"
                    else _bare_group(step, extra)
                )
        for step in (0, groups):
            writer.heldout(
                step, [_reply(rng, i, step > 0, method != "sft", extra) for i in range(12)]
            )
    (path / "model").mkdir()
    return path


def write_large_run(path: Path, *, steps: int = 2000, traces: int = 64) -> Path:
    """A run of the size that a page must bear: one group a step, answers of 27 tokens, traces of 30. All lines hold the same group."""
    write_run(path)
    rng = random.Random(0)
    group = _bare_group(1, "") | {
        "answer_tokens": ["token"] * 27,
        "base_logp": _logp(rng, 27),
        "base_reward": 0.1,
        "traces": [
            {
                "text": "a trace of thirty tokens " * 6, "finished": True, "reward": rng.random(), "advantage": rng.gauss(0, 1),
                "answer_logp": _logp(rng, 27), "trace_logp": _logp(rng, 30), "trace_entropy": [rng.random() for _ in range(30)],
            }
            for _ in range(traces)
        ],
    }  # fmt: skip
    line = json.dumps(group).partition(", ")[2]
    with (path / "traces.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(f'{{"step": {step}, {line}\n' for step in range(1, steps + 1))
    with (path / "metrics.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(_metrics(rng, step)) + "\n" for step in range(steps + 1))
    return path


def _metrics(rng, step):
    if step == 0:
        return {"step": 0, "heldout/accuracy": 0.25}
    values = {
        "trace/entropy": 1 / step,
        "trace/length": 20 + rng.random(),
        "reward/gain": step / 10,
        "loss/total": rng.random(),
    }
    return {"step": step, "time/step": 0.5, "judge/quality": 0.5, "oddity": step**2, **values}


def _logp(rng, n):
    return [round(-(rng.expovariate(1) ** 2), 5) for _ in range(n)]


def _bare_group(step, extra):
    return {
        "step": step, "id": f"train.jsonl:{step}", "source": f"family{step % 2}", "prompt": f"question {step} {extra}",
        "answer": f"the answer is\n42 {extra}", "answer_tokens": [*TOKENS[:-1], extra or TOKENS[-1]],
    }  # fmt: skip


def _group(rng, step, traces, extra):
    return _bare_group(step, extra) | {
        "base_logp": _logp(rng, len(TOKENS)),
        "base_reward": 0.2,
        "traces": [
            {
                "text": f"let us think {k} {extra}".strip(), "ids": [1, 2, 3, 4], "finished": k % 2 == 0,
                "reward": rng.random(), "advantage": rng.gauss(0, 1), "final_reward": 0.1,
                "answer_logp": _logp(rng, len(TOKENS)), "trace_logp": _logp(rng, 4), "trace_entropy": [0.1, 2.5, 0.0, 1.0],
            }
            for k in range(traces)
        ],
    }  # fmt: skip


def _reply(rng, i, trained, samples, extra):
    logp = _logp(rng, len(TOKENS))
    record = {
        "id": f"valid.jsonl:{i}", "source": f"family{i % 2}", "question": f"held-out question {i} {extra}",
        "reference": f"the answer is {i}", "logp": sum(logp) / len(logp), "token_logp": logp,
        "token_entropy": [round(abs(x), 5) for x in _logp(rng, len(TOKENS))],
        "answer_tokens": [*TOKENS[:-1], extra or TOKENS[-1]],
        "answer": f"it is {i} {extra}", "correct": trained or i < 3,
    }  # fmt: skip
    nulls = {
        "trace": f"let us see step {i} {extra}",
        "length": 5,
        "finished": i % 3 == 0,
        "logp_null": -1.5,
        "token_logp_null": [-1.5] * len(TOKENS),
        "answer_null": "no",
        "correct_null": False,
    }
    return record | (nulls if samples else dict.fromkeys(nulls))


def write_evaluation(run: Path, *, right: int = 2) -> Path:
    """RUN/eval as `nrt eval` leaves it: GSM8K with three rows, of which the first `right` are right and the last has no end of its trace;
    HumanEval with one row, answered four times; TruthfulQA with one, as likelihoods."""

    def said(answer: str, **changes: Any) -> dict[str, Any]:
        whole = {
            "trace": "let me think",
            "trace_tokens": 12,
            "finished": True,
            "answer": answer,
            "answer_tokens": 5,
            "cut": False,
        }
        return whole | {"logps": []} | changes

    def record(
        benchmark: str, row: int, score: float, replies: list[dict[str, Any]], **changes: Any
    ) -> dict[str, Any]:
        task = f"nrt_{benchmark}"
        whole = {
            "benchmark": benchmark,
            "task": task,
            "id": str(row),
            "stratum": task,
            "seed": 0,
            "score": score,
            "also": {},
        }
        whole |= {
            "question": f"{HOSTILE} {benchmark} {row}",
            "target": "7",
            "extracted": "7" if score else "",
            "said": replies,
        }
        return (
            whole
            | {"unfinished": sum(not one["finished"] for one in replies), "seconds": 0.5}
            | changes
        )

    unfinished = said("", finished=False, answer_tokens=0)
    gsm8k = [
        record(
            "gsm8k", i, float(i < right), [unfinished if i == 2 else said(f"The answer is {i}.")]
        )
        for i in range(3)
    ]
    humaneval = [
        record(
            "humaneval",
            0,
            0.75,
            [said("return 1")] * 4,
            extracted=["return 1"] * 4,
            also={"pass@1": 0.5},
        )
    ]
    truthfulqa = [record("truthfulqa", 0, 0.6, [said("", logps=[-1.25, -2.5])], extracted=None)]
    rows = run / "eval" / "rows"
    rows.mkdir(parents=True)
    for name, records in (("gsm8k", gsm8k), ("humaneval", humaneval), ("truthfulqa", truthfulqa)):
        (rows / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    (run / "eval" / "eval.json").write_text(
        json.dumps({"mean_of_nine": {"score": 0.5, "stderr": 0.1}})
    )
    return run
