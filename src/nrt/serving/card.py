"""The model card of an exported run: what was trained how, how to use it, what was measured on held-out rows."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from nrt.config import Config, plain_values
from nrt.errors import InputError
from nrt.run import Run

CITATION = """@article{wang2026native,
  title   = {Native Reasoning Models: Training Language Models to Reason on Unverifiable Data},
  author  = {Wang, Yuanfu and Liu, Zhixuan and Li, Xiangtian and Lu, Chaochao and Yang, Chao},
  journal = {arXiv preprint arXiv:2602.11549},
  year    = {2026},
  url     = {https://arxiv.org/abs/2602.11549}
}"""


def model_card(run: Run, name: str, step: int | None = None) -> str:
    """README.md for the hub or any other reader. No path of the machine it was made on gets into it."""
    base, license = _origin(run.config.model)
    header = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["native-reasoning-training", "nrt", "reasoning", "arxiv:2602.11549"],
        **({"base_model": base} if base and "/" in base else {}),
        **({"license": license} if license else {}),
    }
    parts = [
        "---\n" + yaml.safe_dump(header, sort_keys=False) + "---",
        f"# {name}",
        _what(run, base, step),
        _use(run.config),
        _measured(run, step),
        f"## Citation\n\n```bibtex\n{CITATION}\n```",
    ]
    if not license:
        parts.insert(3, "Licence: that of the base model, and of the data where it says so; set `license` above before you publish.")
    return "\n\n".join(part for part in parts if part) + "\n"


def _origin(model: str | None) -> tuple[str | None, str | None]:
    """(hub name or bare name of the base model, its licence where its own card says so); a run's model leads to that run's base."""
    if model is None:
        return None, None
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return model, None
    if (folder.parent / "config.yaml").is_file():
        return _origin(Run(folder.parent.absolute()).config.model)
    header = _header(folder / "README.md")
    base = header.get("base_model")
    return base if isinstance(base, str) else folder.absolute().name, header.get("license")


def _header(card: Path) -> Mapping[str, Any]:
    """The YAML at the head of a card."""
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    if not text.startswith("---\n"):
        return {}
    try:
        header = plain_values(text.split("---\n")[1], str(card))
    except InputError:
        return {}
    return header if isinstance(header, Mapping) else {}


def _what(run: Run, base: str | None, step: int | None) -> str:
    config, records = run.config, run.metrics()
    done = step if step is not None else max((record["step"] for record in records), default=0)
    how = "supervised fine-tuning" if config.method == "sft" else "Native Reasoning Training (arXiv 2602.11549)"
    lines = [
        f"{base or 'A model'} after {how}, by nrt on question–answer pairs without reasoning traces.",
        "",
        "| | |",
        "|---|---|",
        f"| method, profile | `{config.method}`, `{config.profile}` |",
    ]
    if recipe := _recipe(run):
        lines.append(f"| recipe | `{recipe}` |")
    lines += [
        f"| steps | {done}, of {config.batch} prompts" + ("" if config.method == "sft" else f" with {config.traces} traces each") + " |",
        f"| updates a step, learning rate | {config.updates_per_rollout}, {config.optimizer.lr:g} ({config.optimizer.schedule}) |",
        f"| caps: prompt, trace, answer | {config.max_prompt_tokens}, {config.max_trace_tokens}, {config.max_answer_tokens} tokens |",
        f"| training data | {', '.join(f'`{Path(source.path).name}`' for source in config.data.sources('train'))} |",
    ]
    return "\n".join(lines)


def _recipe(run: Run) -> str | None:
    """From the first command line: `… train RECIPE key=value`."""
    words = shlex.split(str(run.environment[0].get("command", ""))) if run.environment else []
    after = words[words.index("train") + 1 :][:1] if "train" in words else []
    return Path(after[0]).stem if after and "=" not in after[0] and not after[0].startswith("-") else None


def _use(config: Config) -> str:
    if config.method == "sft":
        return "## Use\n\nAn ordinary chat model: `tokenizer.apply_chat_template(…, add_generation_prompt=True)`, then `generate`."
    start, end = config.markers.start, config.markers.end
    opened = f"The chat template ends the prompt with `{start}`" if start else "A trace follows the prompt at once"
    return f"""## Use

{opened}; the model writes its reasoning, `{end}`, and the answer.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("MODEL")
model = AutoModelForCausalLM.from_pretrained("MODEL", dtype="auto")
chat = [{{"role": "user", "content": "What is 3 plus 4?"}}]
prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True).to(model.device)
ids = model.generate(**prompt, max_new_tokens=4096)[0, prompt["input_ids"].shape[1]:].tolist()
end = tokenizer.convert_tokens_to_ids("{end}")
cut = ids.index(end) if end in ids else len(ids)
print("reasoning:", tokenizer.decode(ids[:cut], skip_special_tokens=True))
print("answer:", tokenizer.decode(ids[cut + 1:], skip_special_tokens=True))
```

With vLLM, the reasoning in a field of its own (`vllm_reasoning.py` lies in this folder):

```bash
vllm serve MODEL --reasoning-parser-plugin MODEL/vllm_reasoning.py --reasoning-parser nrt
```"""


MEASURES = (
    ("right, after its own trace", "share", lambda row: row.get("correct")),
    ("right, after an empty trace", "share", lambda row: row.get("correct_null")),
    ("log-probability of the reference answer, after its own trace", "nats a token", lambda row: row.get("logp")),
    ("the same, after an empty trace", "nats a token", lambda row: row.get("logp_null")),
    ("length of a trace", "tokens", lambda row: row.get("length")),
    ("traces that did not end by themselves", "share", lambda row: None if row.get("finished") is None else not row["finished"]),
)


def _measured(run: Run, step: int | None) -> str:
    """Of the last evaluation (at `step`, the last up to it), beside the one before training."""
    steps = [at for at in run.heldout_steps() if step is None or at <= step]
    if not steps:
        return "## Measured\n\nNothing: the run had no held-out data."
    shown = sorted({steps[0], steps[-1]})
    rows = {at: run.heldout(at) for at in shown}
    heads = [f"step {at} ({len(rows[at]):,} rows)" for at in shown]
    lines = ["## Measured", "", "On held-out rows of the run, in training's own evaluation (greedy unless its config says otherwise):", ""]
    lines += ["| | unit | " + " | ".join(heads) + " |", "|---" * (2 + len(shown)) + "|"]
    for name, unit, value in MEASURES:
        means = [_mean([value(row) for row in rows[at]]) for at in shown]
        if any(mean is not None for mean in means):
            lines.append(f"| {name} | {unit} | " + " | ".join("–" if mean is None else f"{mean:.3f}" for mean in means) + " |")
    return "\n".join(lines)


def _mean(values: Sequence[Any]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return fmean(known) if known else None
