"""Model card of an exported run: its training, how to use it, and held-out measurements."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from nrt.analysis.stats import DIFFERENCE, SHARE, mean_interval
from nrt.config import Config, parse_plain_yaml
from nrt.config.data_sections import DATASET, SourceConfig
from nrt.errors import InputError
from nrt.run import Record, Run, question_id
from nrt.run.layout import MODEL_FOLDER
from nrt.serving.layout import LAYOUT
from nrt.system.files import model_fingerprint, read_bounded

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
"""Form of a model's name on the hub; a path with more parts is a folder."""

CITATION = """@article{wang2026native,
  title   = {Native Reasoning Models: Training Language Models to Reason on Unverifiable Data},
  author  = {Wang, Yuanfu and Liu, Zhixuan and Li, Xiangtian and Lu, Chaochao and Yang, Chao},
  journal = {arXiv preprint arXiv:2602.11549},
  year    = {2026},
  url     = {https://arxiv.org/abs/2602.11549}
}"""


def model_card(run: Run, name: str, step: int | None = None) -> str:
    """Return the README.md of an exported model, with the metadata that the hub reads.

    It contains no path of the machine on which it was made.

    Args:
        run: the run that trained the model.
        name: title of the card, or USER/NAME of the model on the hub.
        step: step of the exported checkpoint; None: the final model.
    """
    base, license = _origin(run)
    metadata: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["native-reasoning-training", "nrt", "reasoning", "arxiv:2602.11549"],
    }
    if base and "/" in base:
        metadata["base_model"] = base
    datasets = dict.fromkeys(filter(None, map(_hub_dataset, run.config.data.sources("train"))))
    if datasets:
        metadata["datasets"] = list(datasets)
    if license:
        metadata["license"] = license
    parts = [
        "---\n" + yaml.safe_dump(metadata, sort_keys=False) + "---",
        f"# {name.rpartition('/')[2]}",
        _training(run, base, step),
    ]
    if not license:
        parts.append(
            "Licence: that of the base model, and of the data where it sets conditions; "
            "set `license` above before you publish."
        )
    parts += [
        _usage(run.config, name if "/" in name else None),
        _measurements(run, step),
        *_benchmarks(run, step),
        f"## Citation\n\n```bibtex\n{CITATION}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _origin(run: Run) -> tuple[str | None, str | None]:
    """Return (name of the base model, its licence).

    The name is a hub name or the bare name of a folder, None for a model that was passed to
    `nrt.train` as an object. The licence is None unless the card of the base model names one. If
    the model is that of another run, the base model of that run counts.
    """
    model = run.config.model
    if model is None:
        return None, None
    folder = Path(model).expanduser()
    if folder.name == MODEL_FOLDER and (run.path / MODEL_FOLDER).is_dir():
        return None, None
    if not folder.is_dir():  # a hub name, or a folder that was moved
        is_hub_name = HUB_NAME.fullmatch(model) is not None
        return model if is_hub_name else folder.name, None
    if earlier := _earlier_run(run):
        return _origin(earlier)
    metadata = _read_metadata(folder / "README.md")
    # Of a folder that `nrt export` wrote, the card names the base model. A card of the hub names
    # what its model was made from.
    exported = (folder / LAYOUT).is_file()
    base = metadata.get("base_model") if exported else None
    return base if isinstance(base, str) else folder.absolute().name, metadata.get("license")


def _earlier_run(run: Run) -> Run | None:
    """Return the run whose model this run began with, or None."""
    if run.config.model is None:
        return None
    parent = Path(run.config.model).expanduser().absolute().parent
    return Run(parent) if (parent / "config.yaml").is_file() else None


def _hub_dataset(source: SourceConfig) -> str | None:
    """Return the hub's name of a data set that is written with its split, as org/name:split.

    `org/name` alone may as well be a folder of another machine.
    """
    match = DATASET.fullmatch(source.path)
    if not match or ":" not in source.path or Path(match[1]).is_dir():
        return None
    return match[1]


def _read_metadata(card: Path) -> Mapping[str, Any]:
    """Return the YAML metadata of a model card; empty if it has none or cannot be parsed."""
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    if not text.startswith("---\n"):
        return {}
    try:
        metadata = parse_plain_yaml(text.split("---\n")[1], str(card))
    except InputError:
        return {}
    return metadata if isinstance(metadata, Mapping) else {}


def _training(run: Run, base: str | None, step: int | None) -> str:
    """Return the introduction and the table of training settings."""
    config = run.config
    sft = config.method == "sft"
    passes = {line["step"]: line.get("data/epoch") for line in run.metrics()}
    steps = max(passes, default=0) if step is None else step
    training = "supervised fine-tuning" if sft else "Native Reasoning Training (arXiv 2602.11549)"
    batch = f"{config.batch} prompts"
    if not sft:
        batch += f" with {config.traces} traces each"
    optimizer = config.optimizer
    caps = f"{config.max_prompt_tokens}, {config.max_trace_tokens}, {config.max_answer_tokens}"
    names = [
        source.path if _hub_dataset(source) else Path(source.path).name
        for source in config.data.sources("train")
    ]
    data = ", ".join(f"`{name}`" for name in names)
    if over := passes.get(steps):
        data += f"; {_two_digits(over)} passes over its rows"
    earlier = _earlier_run(run)
    before = ""
    if earlier:
        before = f" It continues the run `{earlier.path.name}`, whose training is not shown here."
    lines = [
        f"{base or 'A model'} after {training}, "
        f"by nrt on question–answer pairs without reasoning traces.{before}",
        "",
        "| | |",
        "|---|---|",
        f"| method, profile | `{config.method}`, `{config.profile}` |",
    ]
    recipe = _recipe(run)
    if recipe:
        lines.append(f"| recipe | `{recipe}` |")
    lines += [
        f"| steps | {steps}, of {batch} |",
        f"| updates per step, learning rate | {config.updates_per_rollout}, "
        f"{optimizer.lr:g} ({optimizer.schedule}) |",
        f"| caps: prompt, trace, answer | {caps} tokens |",
        f"| training data | {data} |",
    ]
    if config.data.system:
        lines.append(f"| system message | {_cell(config.data.system)} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Return a text in one line of a table."""
    return "`" + " ".join(text.split()).replace("|", "\\|").replace("`", "'") + "`"


def _two_digits(value: float) -> str:
    """Return a number rounded to two digits, and to a whole number from 10 on."""
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}"


def _recipe(run: Run) -> str | None:
    """Return the recipe in the first command line of the run, `… train RECIPE key=value`."""
    if not run.environment:
        return None
    words = shlex.split(str(run.environment[0].get("command", "")))
    if "train" not in words:
        return None
    arguments = words[words.index("train") + 1 :]
    if not arguments or "=" in arguments[0] or arguments[0].startswith("-"):
        return None
    return Path(arguments[0]).stem


def _usage(config: Config, repo: str | None) -> str:
    """Return the section with code that runs the model, of the hub if there is a repository."""
    if config.method == "sft":
        return (
            "## Use\n\nAn ordinary chat model: "
            "`tokenizer.apply_chat_template(…, add_generation_prompt=True)`, then `generate`."
        )
    start, end = config.markers.start, config.markers.end
    tokens = config.max_trace_tokens + config.max_answer_tokens
    opening = "The trace follows the prompt directly"
    if start:
        opening = f"The chat template ends the prompt with `{start}`"
    model = repo or "MODEL"
    place, download, plugin = "folder", "", f"{model}/vllm_reasoning.py"
    if repo:  # vLLM reads the plugin from a local file only
        place, plugin = "repository", "vllm_reasoning.py"
        download = f"hf download {repo} {plugin} --local-dir .\n"
    serving = "vLLM's parsers need a token that begins the trace, which this model does not have."
    if start:
        serving = (
            "With vLLM, which returns the reasoning in a separate field (`vllm_reasoning.py` is in "
            f"this {place}):\n\n```bash\n{download}vllm serve {model} "
            f"--reasoning-parser-plugin {plugin} --reasoning-parser nrt\n```"
        )
    return f"""## Use

{opening}; the model writes its reasoning, `{end}`, and the answer.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{model}")
model = AutoModelForCausalLM.from_pretrained("{model}", dtype="auto")
chat = [{{"role": "user", "content": "What is 3 plus 4?"}}]
prompt = tokenizer.apply_chat_template(
    chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
).to(model.device)
ids = model.generate(**prompt, max_new_tokens={tokens})[0, prompt["input_ids"].shape[1]:].tolist()
end = tokenizer.convert_tokens_to_ids("{end}")
cut = ids.index(end) if end in ids else len(ids)
print("reasoning:", tokenizer.decode(ids[:cut], skip_special_tokens=True))
print("answer:", tokenizer.decode(ids[cut + 1:], skip_special_tokens=True))
```

{serving}"""


def _unfinished(row: Record) -> bool | None:
    finished = row.get("finished")
    return None if finished is None else not finished


MEASURES = (
    ("accuracy, after its own trace", "share", lambda row: row.get("correct")),
    ("accuracy, after an empty trace", "share", lambda row: row.get("correct_null")),
    (
        "log-probability of the reference answer, after its own trace",
        "nats per token",
        lambda row: row.get("logp"),
    ),
    (
        "log-probability of the reference answer, after an empty trace",
        "nats per token",
        lambda row: row.get("logp_null"),
    ),
    ("length of a trace", "tokens", lambda row: row.get("length")),
    ("traces that the model did not end itself", "share", _unfinished),
)
"""(name, unit, function of a held-out row) of each line in the table of measurements."""


def _measurements(run: Run, step: int | None) -> str:
    """Return the table of the evaluations before training and at `step`, and their difference.

    Without an evaluation at `step` the last one before it is shown; with None, the last one.
    """
    steps = [at for at in run.heldout_steps() if step is None or at <= step]
    if not steps:
        return "## Measured\n\nNothing: the run had no held-out data."
    shown = sorted({steps[0], steps[-1]})
    rows = {at: run.heldout(at) for at in shown}
    headings = [f"step {at} ({len(rows[at]):,} rows)" for at in shown]
    if len(shown) == 2:
        headings.append("difference")
    lines = [
        "## Measured",
        "",
        "On held-out rows of the run, in the evaluation of the training (greedy unless the run's "
        "config says otherwise), with 95 % intervals over questions; they say nothing about other "
        "seeds of the training:",
        "",
        "| | unit | " + " | ".join(headings) + " |",
        "|---" * (2 + len(headings)) + "|",
    ]
    for name, unit, value_of in MEASURES:
        values = [_by_question(rows[at], value_of) for at in shown]
        if not any(values):
            continue
        bounds = SHARE if unit == "share" else None
        cells = [
            str(mean_interval([[list(each.values())]], bounds=bounds)) if each else "–"
            for each in values
        ]
        if len(shown) == 2:
            before, after = values
            changes = [after[key] - before[key] for key in after if key in before]
            bounds = DIFFERENCE if unit == "share" else None
            cells.append(str(mean_interval([[changes]], bounds=bounds)) if changes else "–")
        lines.append(f"| {name} | {unit} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _by_question(
    rows: Sequence[Record], value_of: Callable[[Record], Any]
) -> dict[tuple[str, str], float]:
    """Return the value of each question or document: the mean over its rows that have one."""
    values: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        value = value_of(row)
        if value is not None:
            values.setdefault(question_id(row), []).append(float(value))
    return {question: fmean(each) for question, each in values.items()}


def _benchmarks(run: Run, step: int | None) -> list[str]:
    """Return the table of `nrt eval`; empty unless it evaluated the final model as it is now."""
    file = run.path / "eval" / "eval.json"
    if step is not None or not file.is_file():
        return []
    document = json.loads(read_bounded(file))
    settings = document["settings"]
    fingerprint = model_fingerprint(
        str(run.model_dir), thinks=settings["thinks"], backend=settings["backend"]
    )
    if document.get("fingerprint") != fingerprint:  # of a model before the run was resumed
        return []
    lines = [
        f"Benchmarks by `nrt eval` (rows: {settings['rows']}), with 95 % intervals (1.96 standard "
        "errors):",
        "",
        "| benchmark | score | rows |",
        "|---|---|---|",
    ]
    for result in document["scores"]:
        score = f"{result['score']:.3f}"
        if result["stderr"] is not None:
            score += f" ± {1.96 * result['stderr']:.3f}"
        lines.append(f"| {result['benchmark']} | {score} | {result['rows']:,} |")
    return ["\n".join(lines)]
