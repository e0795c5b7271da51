"""`python -m benchmarks.gpu [--rehearse] [--only PART,…]`: check correctness, speed and memory on a GPU in ten minutes.

It needs no network, no pytest and no vLLM, only what nrt needs to train. Each part runs in a process of its own with a budget of
seconds, the most valuable first. Each case is in benchmarks/results/gpu-NAME.json as soon as its part ends, also if the part took too
long or failed, and a table comes last. `--rehearse` runs the same code with small shapes, on anything, and writes nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from benchmarks.common import RESULTS, Shape, make_learner, seconds, write
from benchmarks.memory import update
from benchmarks.scoring import rows_of
from nrt.config import Config, build_config
from nrt.engine.counting import count_update
from nrt.engine.weights import layers_of
from nrt.errors import InputError
from nrt.plan import PlanRequest, RowLengths, accelerator, make_plan
from nrt.plan.hardware import GPUS
from nrt.plan.meta_model import BUILT_IN, meta_model
from nrt.scoring import choose_scorer, token_logprobs
from nrt.scoring.flex import make_block_mask
from nrt.scoring.logprob_head import LMHead
from nrt.scoring.packing import lay_out
from nrt.scoring.prefix_attention import PrefixAttention, _attention_by_tail
from nrt.trainer import train
from nrt.types import Row

GIB = 2**30
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHAPE = Shape(prompts=4, traces=8, prompt=512, trace=320, answer=126)
"""Of an update: about 16,000 packed tokens, 31,000 padded ones."""
SMALL = Shape(prompts=2, traces=2, prompt=40, trace=12, answer=6)

PARITY: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama, 8 heads a key": {
        "model_type": "llama",
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
    },
    "mistral": {"model_type": "mistral", "sliding_window": 100},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 64},
    "gemma2": {
        "model_type": "gemma2",
        "head_dim": 64,
        "query_pre_attn_scalar": 64,
        "sliding_window": 100,
        "attn_logit_softcapping": 2.0,
    },
    "gemma3": {"model_type": "gemma3_text", "head_dim": 64, "sliding_window": 100},
}

Cases = Iterator[tuple[str, dict[str, Any]]]
"""(name, figures) of each case."""


def parity(small: bool) -> Cases:
    """Record whether the packed scorer is chosen: its numbers and gradients are the padded scorer's."""
    for name, values in PARITY.items():
        for dtype in ("float32", "bfloat16"):
            for shape in (SMALL,) if small else (SMALL, SHAPE):
                began = time.perf_counter()
                choice = choose_scorer(_tiny(values, dtype), 0, rows=rows_of(shape))
                figures = {"packed": choice.packed, "why": choice.why}
                figures["seconds"] = time.perf_counter() - began
                yield f"{name}, {dtype}, {shape}", figures


def head(small: bool) -> Cases:
    """Time the head's forward and backward with tiles of few and of many tokens, by vocabulary."""
    N, d = (64, 32) if small else (8192, 3072)
    for V in (1000, 1002) if small else (128_256, 128_258, 32_770):
        for tokens in (256, 1024, 4096):
            token_logprobs.TILE_TOKENS[DEVICE.type] = tokens
            work = _head_pass(N, d, V)
            figures = {"seconds": _median(work), **_peak(work)}
            yield f"{V:,} columns, tiles of {tokens:,} tokens", figures


def _head_pass(N: int, d: int, V: int) -> Callable[[], None]:
    hidden_Nd, weight_Vd = (
        torch.randn(n, d, device=DEVICE, dtype=torch.bfloat16, requires_grad=True) for n in (N, V)
    )
    gradient_Vd = torch.zeros(V, d, device=DEVICE)
    target_N = torch.randint(V, (N,), device=DEVICE)
    lm_head = LMHead(weight_Vd, None, 1.0, None)

    def work() -> None:
        logp_N, _ = lm_head(hidden_Nd, target_N, lambda _: gradient_Vd)
        logp_N.sum().backward()

    return work


def attention(small: bool) -> Cases:
    """Time forward and backward of one layer's attention over a packed layout, by kernel."""
    shape = SMALL if small else SHAPE
    layout = lay_out(rows_of(shape), DEVICE)
    H, H_kv, D = (4, 2, 16) if small else (24, 8, 128)
    dtype = torch.float32 if small else torch.bfloat16
    query, key, value = (
        torch.randn(1, h, len(layout.ids_F), D, device=DEVICE, dtype=dtype, requires_grad=True)
        for h in (H, H_kv, H_kv)
    )
    packed = PrefixAttention(layout)
    length = shape.prompt + shape.trace + shape.answer + 2
    q, k, v = (
        torch.randn(
            shape.prompts * shape.traces,
            h,
            length,
            D,
            device=DEVICE,
            dtype=dtype,
            requires_grad=True,
        )
        for h in (H, H_kv, H_kv)
    )

    def nrt() -> None:
        out = packed(None, query, key, value, scale=D**-0.5, window=None, softcap=None)
        out.sum().backward()

    def by_tail() -> None:
        out = _attention_by_tail(query, key, value, layout.groups, D**-0.5, None, None)
        out.sum().backward()

    def padded() -> None:
        scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).sum().backward()

    works = {"packed": nrt, "packed, tail by tail": by_tail, "padded": padded}
    for name, work in works.items():
        yield name, {"seconds": _median(work), **_peak(work)}
    yield "block mask", {"seconds": _median(lambda: make_block_mask(layout, None, DEVICE))}


def update_3b(small: bool) -> Cases:
    """Time an update of the 3B shape: utilisation, and memory beside `nrt plan`'s count."""
    shape = SMALL if small else SHAPE
    rows = rows_of(shape)
    for recompute in (True, False):
        try:
            figures = _measure_update(shape, rows, recompute=recompute, small=small)
        except (InputError, torch.OutOfMemoryError) as error:
            figures = {"error": str(error).partition("\n")[0]}
        gc.collect()  # hooks of the weights make cycles
        if DEVICE.type == "cuda":
            torch.cuda.empty_cache()
        yield f"recomputed {recompute}", figures


def _measure_update(
    shape: Shape, rows: list[Row], *, recompute: bool, small: bool
) -> dict[str, Any]:
    model = _random_model("llama-3.2-3b", small)
    learner = make_learner(model, shape, tokens_per_batch=16_384, initial_reference=False)
    engine: Any = learner.policy.engine
    if recompute:
        engine.recomputed = layers_of(model)
    took = _median(lambda: update(learner, rows))
    gradients = sum(4 * p.numel() for p in engine.weights.masters.values())
    peak = _peak(lambda: update(learner, rows), beyond=gradients)
    flops = _model_flops(model.config, model.num_parameters(), shape)
    counted = count_update(
        _on_meta(model.config), tuple(rows), recompute=recompute, device_type=DEVICE.type
    )
    return {
        "seconds": took,
        "utilisation": flops / took / _gpu_of_plan().peak_flops("bfloat16"),
        **peak,
        "planned_gib": counted.peak / GIB,
        "scorer": engine.scorer_why,
    }


def run(small: bool) -> Cases:
    """Run a 1B model of random weights from end to end, with evaluation, and a step beside the plan.

    Then save and resume, with few layers, since a checkpoint of all has 16 GiB.
    """
    with tempfile.TemporaryDirectory() as folder:
        data = _write_pairs(Path(folder))
        model = _write_model(Path(folder) / "whole", small, layers=None)
        lora = {"lora": {"rank": 16}}
        for name, settings in {"all weights": {}, "LoRA": lora}.items():
            config = _config_of_run(model, data, Path(folder) / name, small, **settings)
            result = train(config)
            steps = [row for row in result.metrics() if "time/step" in row]
            lengths = RowLengths(16, config.max_trace_tokens, 4)
            plan = make_plan(PlanRequest(config, _gpu_of_plan(), lengths=lengths, rows=64))
            yield (
                name,
                {
                    "seconds_a_step": statistics.median(row["time/step"] for row in steps[1:]),
                    "planned_seconds_a_step": plan.seconds.total,
                    "warnings": [row["message"] for row in result.warnings()],
                },
            )
            shutil.rmtree(result.path)
        few = _write_model(Path(folder) / "few", small, layers=2)
        for name, settings in {"all weights": {}, "LoRA": lora}.items():
            path = Path(folder) / f"{name}, resumed"
            settings = {**settings, "save_every": 2, "eval_every": 0}
            train(_config_of_run(few, data, path, small, **settings))
            resumed = _config_of_run(few, data, path, small, **settings, resume=str(path))
            result = train(resumed.model_copy(update={"steps": 5}))
            yield f"{name}, resumed", {"steps": result.metrics()[-1]["step"]}
            shutil.rmtree(result.path)


def _config_of_run(model: Path, data: Path, path: Path, small: bool, **settings: Any) -> Config:
    values = {
        "model": str(model),
        "run": str(path),
        "dtype": "float32" if small else "bfloat16",
        "steps": 4,
        "batch": 2 if small else 16,
        "traces": 4 if small else 8,
        "max_prompt_tokens": 64,
        "max_trace_tokens": 16 if small else 256,
        "max_answer_tokens": 16,
        "save_every": 0,
        "eval_every": 2,
        "keep": 1,
        "initial_reference": False,
        "heldout": {"rows": 4, "checker": "exact"},
        "data": {"train": str(data), "valid": str(data)},
    }
    return build_config(values | settings)


@dataclass(frozen=True)
class Part:
    """A part of the benchmark."""

    work: Callable[[bool], Cases]
    budget: int  # seconds


PARTS = {
    "parity": Part(parity, 120),
    "head": Part(head, 60),
    "attention": Part(attention, 60),
    "update": Part(update_3b, 180),
    "run": Part(run, 150),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rehearse", action="store_true", help="small shapes; nothing is written")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--part", help="(used by the benchmark itself)")
    arguments = parser.parse_args()
    if arguments.part:
        for case, figures in PARTS[arguments.part].work(arguments.rehearse):
            print(json.dumps({case: figures}), flush=True)
        return
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu"
    found: dict[str, Any] = {}
    for part in arguments.only.split(","):
        began = time.perf_counter()
        found[part] = _in_process(part, arguments.rehearse)
        found[part]["seconds in all"] = time.perf_counter() - began
        print(f"{part}: {json.dumps(found[part], indent=1, ensure_ascii=False)}", flush=True)
        if not arguments.rehearse:
            write(f"gpu-{name.lower().replace(' ', '-')}", found)
    print(_table(found))
    failed = [part for part, results in found.items() if "error" in results]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")
    if not arguments.rehearse:
        print(f"written to {RESULTS}")


def _in_process(part: str, small: bool) -> dict[str, Any]:
    """Run a part in a process of its own, and return its cases, and "error" if it did not end well."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", part]
    if small:
        command.append("--rehearse")
    budget, error = PARTS[part].budget, ""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        try:
            done = subprocess.run(
                command, stdout=output, stderr=errors, timeout=budget, check=False
            )
            if done.returncode:
                errors.seek(0)
                error = errors.read()[-2000:] or f"status {done.returncode}"
        except subprocess.TimeoutExpired:
            error = f"not done within {budget} s"
        output.seek(0)
        cases: dict[str, Any] = {}
        for line in output:
            if line.startswith("{") and line.endswith("\n"):
                cases |= json.loads(line)
    return cases | {"error": error} if error else cases


def _table(found: dict[str, Any]) -> str:
    """Return all numbers as a table in Markdown."""
    lines = ["| part | case | figures |", "|---|---|---|"]
    for part, cases in found.items():
        for case, figures in cases.items():
            if isinstance(figures, dict):
                texts = [
                    f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                    for key, value in figures.items()
                ]
                lines.append(f"| {part} | {case} | {', '.join(texts)} |")
            else:
                lines.append(f"| {part} | {case} | {figures} |")
    return "\n".join(lines)


def _median(work: Callable[[], Any], repeats: int = 5) -> float:
    """Return the median seconds of `work`, after one run that is not measured."""
    seconds(work)
    return statistics.median(seconds(work) for _ in range(repeats))


def _peak(work: Callable[[], Any], *, beyond: int = 0) -> dict[str, float]:
    """Return {"peak_gib": what `work` allocates at the highest, beyond what is there and `beyond` bytes}; nothing on a CPU."""
    if DEVICE.type != "cuda":
        work()
        return {}
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return {"peak_gib": (torch.cuda.max_memory_allocated() - before - beyond) / GIB}


def _tiny(values: dict[str, Any], dtype: str) -> Any:
    shape = {
        "vocab_size": 600,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "initializer_range": 0.1,
        "pad_token_id": 0,
    } | values
    torch.manual_seed(0)
    config = AutoConfig.for_model(shape.pop("model_type"), **shape)
    with DEVICE:
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()
    if getattr(config, "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")  # as `nrt.models.load_model` does
    return model


def _config(name: str, small: bool) -> LlamaConfig:
    values = dict(BUILT_IN[name])
    values.pop("model_type")
    if small:
        values |= {
            "vocab_size": 600,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
        }
    return LlamaConfig(**values)


def _random_model(name: str, small: bool) -> Any:
    torch.manual_seed(0)
    with DEVICE:
        dtype = torch.float32 if small else torch.bfloat16
        return AutoModelForCausalLM.from_config(_config(name, small), dtype=dtype).eval()


def _on_meta(config: LlamaConfig) -> Any:
    """Return the model of a config as `nrt plan` builds it."""
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        dtype = str(config.dtype).removeprefix("torch.")
        return meta_model(build_config({"model": folder, "dtype": dtype}))


def _model_flops(config: LlamaConfig, parameters: int, shape: Shape) -> float:
    """Return the floating-point operations of forward and backward, without recomputation."""
    tail = shape.trace + 1 + shape.answer
    tokens = shape.prompts * (shape.prompt + shape.traces * tail)
    seen = shape.prompts * (
        shape.prompt**2 / 2 + shape.traces * (tail * shape.prompt + tail**2 / 2)
    )
    width = config.num_attention_heads * config.head_dim
    return 6 * parameters * tokens + 12 * config.num_hidden_layers * width * seen


def _gpu_of_plan() -> Any:
    """Return the accelerator of `nrt plan` that this machine has."""
    name = torch.cuda.get_device_name().lower() if DEVICE.type == "cuda" else ""
    return accelerator(next((gpu for gpu in GPUS if gpu in name.replace(" ", "")), "cpu"))


def _write_model(path: Path, small: bool, *, layers: int | None) -> Path:
    """Write a model of random weights, with its own number of layers or `layers`, and a tokenizer of words."""
    config = _config("llama-3.2-1b", small)
    config.num_hidden_layers = layers or config.num_hidden_layers
    words = ["<pad>", "<s>", "</s>", "<unk>", "\n", *(f"w{i}" for i in range(500))]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %} {{ m['content'] }} "
        "{{ '\\n' if m['role'] != 'assistant' else eos_token }}{% endfor %} "
    )
    config.update({"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def _write_pairs(folder: Path) -> Path:
    path = folder / "pairs.jsonl"
    rows = [
        {"question": " ".join(f"w{(7 * i + j) % 500}" for j in range(14)), "answer": f"w{i} w{i}"}
        for i in range(64)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


if __name__ == "__main__":
    main()
