"""`python -m benchmarks.gpu [--rehearse] [--only PART,…] [--out FOLDER]`: check a GPU in 9 minutes.

It checks correctness, speed and memory. It needs no network, no pytest and no vLLM, only what nrt
needs to train. Each part runs in a process of its own with a budget of seconds, the most valuable
first. Each case is printed and written to FOLDER/gpu-NAME.json as soon as it is finished. So a part
that took too long or failed keeps its cases, and other parts in that file stay. A table comes last.
The exit status is 1 if there was an error. `--rehearse` runs the same code with small shapes, on
anything; it writes FOLDER/rehearsal-NAME.json, and nothing without `--out`.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from benchmarks.common import RESULTS, Shape, make_learner, seconds, write
from benchmarks.memory import create_gradients, forward_and_backward, update
from benchmarks.scoring import rows_of
from nrt.config import Config, build_config
from nrt.engine.compiled import CompileSetting
from nrt.engine.counting import count_update
from nrt.engine.meter import Meter
from nrt.engine.weights import layers_of
from nrt.errors import InputError, first_line
from nrt.plan import PlanRequest, RowLengths, accelerator, make_plan
from nrt.plan.hardware import GPUS
from nrt.plan.meta_model import BUILT_IN, meta_model
from nrt.scoring import choose_scorer, token_logprobs
from nrt.scoring.flex import make_block_mask
from nrt.scoring.logprob_head import LMHead
from nrt.scoring.packing import lay_out
from nrt.scoring.prefix_attention import PrefixAttention, _attention_by_tail
from nrt.scoring.token_logprobs import _Tiles
from nrt.trainer import train

GIB = 2**30
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHAPE = Shape(prompts=4, traces=8, prompt=512, trace=320, answer=126)
"""Shape of an update: about 16,000 packed tokens, 31,000 padded ones."""
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

UPDATES: dict[str, tuple[bool, CompileSetting]] = {
    "recomputed": (True, False),
    "not recomputed": (False, False),
    "not recomputed, compile_layers=auto": (False, "auto"),
}
"""Case → (whether layers are recomputed, compile_layers).

The last one is what a run on CUDA does by default if memory is left.
"""

LORA = {"lora": {"rank": 16}}

Cases = Iterator[tuple[str, dict[str, Any]]]
"""(name, figures) of each case. The figure "error" means that the case failed."""


def parity(small: bool) -> Cases:
    """Check that the packed scorer has the padded scorer's numbers and gradients.

    It must be chosen in float32. In bfloat16 a tiny model's rounding may be too large to tell.
    """
    for name, values in PARITY.items():
        for dtype in ("float32", "bfloat16"):
            for shape in (SMALL,) if small else (SMALL, SHAPE):
                work = partial(_choice, values, dtype, shape)
                yield f"{name}, {dtype}, {shape}", _figures_of(work)


def _choice(values: dict[str, Any], dtype: str, shape: Shape) -> dict[str, Any]:
    """Return which scorer is chosen, and why."""
    began = time.perf_counter()
    choice = choose_scorer(_tiny(values, dtype), 0, rows=rows_of(shape))
    figures: dict[str, Any] = {"packed": choice.packed, "why": choice.why}
    figures["seconds"] = time.perf_counter() - began
    if dtype == "float32" and not choice.packed:
        figures["error"] = "the packed scorer was not chosen in float32"
    return figures


def _figures_of(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of a case, or why it failed; other cases follow."""
    try:
        return work()
    except (InputError, RuntimeError) as error:
        return {"error": first_line(error)}


def _time_and_peak(work: Callable[[], None]) -> dict[str, Any]:
    return {"seconds": _median(work), **_peak(work)}


def head(small: bool) -> Cases:
    """Time the head's forward and backward with low and high tiles, by vocabulary.

    TILE_TOKENS is the minimum height of a tile. With 1, a tile has all columns and as many tokens
    as fit.
    """
    N, d = (1024, 32) if small else (8192, 3072)
    for V in (1000, 1002) if small else (128_256, 128_258, 32_770):
        for minimum in (1, 512, 1024) if small else (1, 2048, 4096):
            token_logprobs.TILE_TOKENS[DEVICE.type] = minimum
            weight_Vd = _random(V, d, dtype=torch.bfloat16)
            work = _head_pass(weight_Vd, N)
            figures = _figures_of(partial(_time_and_peak, work))
            yield f"{V:,} columns, tiles of {_tile(weight_Vd, N)}", figures


def _head_pass(weight_Vd: torch.Tensor, N: int) -> Callable[[], None]:
    """Return the forward and backward of N tokens' log-probabilities."""
    V, d = weight_Vd.shape
    hidden_Nd = _random(N, d, dtype=torch.bfloat16)
    gradient_Vd = torch.zeros(V, d, device=DEVICE)
    target_N = torch.randint(V, (N,), device=DEVICE)
    lm_head = LMHead(weight_Vd, None, 1.0, None)
    return lambda: lm_head(hidden_Nd, target_N, lambda _: gradient_Vd)[0].sum().backward()


def _tile(weight_Vd: torch.Tensor, N: int) -> str:
    """Return the size of the head's first tile in words."""
    tiles = _Tiles(weight_Vd, None, 1.0, None)
    rows = next(tiles.token_slices(N))
    columns = next(tiles.vocabulary_slices(len(weight_Vd)))
    return f"{rows.stop:,} tokens × {columns.stop:,} columns"


def attention(small: bool) -> Cases:
    """Time forward and backward of one layer's attention over a packed layout, by kernel."""
    shape = SMALL if small else SHAPE
    layout = lay_out(rows_of(shape), DEVICE)
    H, H_kv, D = (4, 2, 16) if small else (24, 8, 128)
    dtype = torch.float32 if small else torch.bfloat16
    tokens = len(layout.ids_F)
    query, key, value = (_random(1, heads, tokens, D, dtype=dtype) for heads in (H, H_kv, H_kv))
    packed = PrefixAttention(layout)
    rows = shape.prompts * shape.traces
    length = shape.prompt + shape.trace + shape.answer + 2
    q, k, v = (_random(rows, heads, length, D, dtype=dtype) for heads in (H, H_kv, H_kv))
    forwards = {
        "packed": lambda: packed(None, query, key, value, scale=D**-0.5, window=None, softcap=None),
        "packed, tail by tail": lambda: _attention_by_tail(
            query, key, value, layout.groups, D**-0.5, None, None
        ),
        "padded": lambda: scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True),
    }
    for name, forward in forwards.items():
        work = partial(_backward_of_sum, forward)
        yield name, _figures_of(partial(_time_and_peak, work))
    yield "block mask", {"seconds": _median(lambda: make_block_mask(layout, None, DEVICE))}


def _backward_of_sum(forward: Callable[[], torch.Tensor]) -> None:
    """Run a forward, and the backward of the sum of its output."""
    forward().sum().backward()


def update_3b(small: bool) -> Cases:
    """Time an update of the 3B shape: utilisation, and memory beside `nrt plan`'s count."""
    for name, (recompute, compile_layers) in UPDATES.items():
        work = partial(_measure_update, small, recompute=recompute, compile_layers=compile_layers)
        figures = _figures_of(work)
        gc.collect()  # hooks of the weights make cycles
        if DEVICE.type == "cuda":
            torch.cuda.empty_cache()
        yield name, figures


def _measure_update(
    small: bool, *, recompute: bool, compile_layers: CompileSetting
) -> dict[str, Any]:
    """Return the figures of an update whose rows are one micro-batch.

    The peak is that of its forward and backward with all gradients in place, as in the plan.
    """
    shape = SMALL if small else SHAPE
    rows = rows_of(shape)
    model = _random_model("llama-3.2-3b", small)
    learner = make_learner(
        model,
        shape,
        tokens_per_batch=16_384,
        initial_reference=False,
        compile_layers=compile_layers,
    )
    engine: Any = learner.policy.engine
    engine.recomputed = layers_of(model) if recompute else ()
    took = _median(lambda: update(learner, rows))
    create_gradients(engine)
    peak = _peak(lambda: forward_and_backward(engine, rows))
    flops = _model_flops(model.config, model.num_parameters(), shape)
    counted = count_update(
        _on_meta(model), tuple(rows), recompute=recompute, device_type=DEVICE.type
    )
    return {
        "seconds": took,
        "utilisation": flops / took / _gpu_of_plan().peak_flops("bfloat16"),
        **peak,
        "planned_gib": counted.peak / GIB,
        "scorer": engine.scorer_why,
        "compiled": engine.compiled.is_on,
        "compile_fault": engine.compiled.fault,
    }


def run(small: bool) -> Cases:
    """Save and resume a small model, then run a 1B model of random weights beside the plan.

    A cut should lose the least important case, so LoRA comes last. The run of all weights evaluates
    before and after training, the others not at all. It writes a checkpoint of 16 GiB, for which
    TMPDIR may name a fast disk.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pairs = _write_pairs(folder)
        few = _write_model(folder / "few", small, cut=True)
        work = partial(_resume, few, pairs, folder / "resumed", small)
        yield "all weights, resumed", _figures_of(work)
        model = _write_model(folder / "whole", small, cut=False)
        evaluation = {
            "data": {"train": str(pairs), "valid": str(pairs)},
            "heldout": {"rows": 4, "checker": "exact"},
        }
        config = _config_of_run(model, pairs, folder / "all", small, **evaluation)
        yield "all weights", _figures_of(partial(_seconds_a_step, config))
        work = partial(_resume, few, pairs, folder / "LoRA-resumed", small, **LORA)
        yield "LoRA, resumed", _figures_of(work)
        config = _config_of_run(model, pairs, folder / "LoRA", small, **LORA)
        yield "LoRA", _figures_of(partial(_seconds_a_step, config))


def _resume(model: Path, pairs: Path, path: Path, small: bool, **settings: Any) -> dict[str, Any]:
    """Run, resume for one more step, and return the number of steps."""
    first = train(_config_of_run(model, pairs, path, small, **settings))
    steps = first.metrics()[-1]["step"] + 1
    resumed = _config_of_run(model, pairs, path, small, **settings, resume=str(path))
    result = train(resumed.model_copy(update={"steps": steps}))
    figures = {"steps": result.metrics()[-1]["step"]}
    shutil.rmtree(result.path)
    return figures


def _seconds_a_step(config: Config) -> dict[str, Any]:
    """Run, and return the seconds of a step beside the plan's, and the run's warnings."""
    result = train(config)
    steps = [row["time/step"] for row in result.metrics() if "time/step" in row]
    lengths = RowLengths(16, config.max_trace_tokens, 4)
    plan = make_plan(PlanRequest(config, _gpu_of_plan(), lengths=lengths, rows=64))
    warnings = [row["message"] for row in result.warnings()]
    shutil.rmtree(result.path)
    return {
        "seconds_a_step": statistics.median(steps[1:]),  # the first one compiles
        "planned_seconds_a_step": plan.seconds.total,
        "warnings": warnings,
    }


def _config_of_run(model: Path, pairs: Path, path: Path, small: bool, **settings: Any) -> Config:
    """Return the config of a short run, which saves at its end only."""
    values = {
        "model": str(model),
        "run": str(path),
        "dtype": "float32" if small else "bfloat16",
        "steps": 3,
        "batch": 2 if small else 16,
        "traces": 4 if small else 8,
        "max_prompt_tokens": 64,
        "max_trace_tokens": 16 if small else 64,
        "max_answer_tokens": 16,
        "save_every": 0,
        "eval_every": 0,
        "keep": 1,
        "initial_reference": False,
        "data": {"train": str(pairs)},
    }
    return build_config(values | settings)


@dataclass(frozen=True)
class Part:
    """A part of the benchmark."""

    work: Callable[[bool], Cases]
    budget: int  # seconds


PARTS = {
    "parity": Part(parity, 110),
    "head": Part(head, 40),
    "attention": Part(attention, 50),
    "update": Part(update_3b, 170),
    "run": Part(run, 150),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the parts of the command line, or one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rehearse", action="store_true", help="small shapes")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--out", type=Path, help=f"folder of the results ({RESULTS})")
    parser.add_argument("--part", help="(used by the benchmark itself)")
    arguments = parser.parse_args(argv)
    if arguments.part:
        threading.Thread(target=_end_with_parent, daemon=True).start()
        for case, figures in PARTS[arguments.part].work(arguments.rehearse):
            print(json.dumps({case: figures}), flush=True)
        return
    parts = arguments.only.split(",")
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        parser.error(f"--only: no part {', '.join(unknown)}; the parts are {', '.join(PARTS)}")
    file = _file_of_results(arguments.out, arguments.rehearse)
    results = _read(file)
    for part in parts:
        began = time.perf_counter()
        date = datetime.now(UTC).date().isoformat()
        results[part] = {"measured": f"{date}, torch {torch.__version__}"}
        for case, figures in _in_process(part, arguments.rehearse):
            results[part][case] = figures
            _write(file, results)
            print(f"{part}: {json.dumps({case: figures}, ensure_ascii=False)}", flush=True)
        results[part]["seconds in all"] = time.perf_counter() - began
        _write(file, results)
    ran = {part: results[part] for part in parts}
    print(_table(ran))
    if file:
        print(f"written to {file}")
    failures = _failures(ran)
    if failures:
        sys.exit(f"failed: {'; '.join(failures)}")


def _in_process(part: str, small: bool) -> Iterator[tuple[str, Any]]:
    """Run a part in a process of its own, and yield its cases as they come.

    The process is killed after the part's budget; a rehearsal has ten times as much. If it does not
    end well, ("error", why) is last.
    """
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", part]
    if small:
        command.append("--rehearse")
    budget = PARTS[part].budget
    if small:
        budget *= 10  # a busy CPU may need a minute only to import torch
    began = time.perf_counter()
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        timer = threading.Timer(budget, process.kill)
        timer.daemon = True
        timer.start()
        try:
            for line in process.stdout or ():
                if line.startswith("{") and line.endswith("\n"):  # the last line may be cut
                    yield from json.loads(line).items()
            status = process.wait()
        finally:
            timer.cancel()
            process.kill()
        errors.seek(0)
        message = errors.read()[-2000:] or f"status {status}"
    if status and time.perf_counter() - began >= budget:
        yield "error", f"not done within {budget} s"
    elif status:
        yield "error", message


def _end_with_parent() -> None:
    """Wait until the parent ends, however that happens, and end this process too.

    The parent holds the other end of stdin and writes nothing to it. So the read returns only when
    the parent is gone.
    """
    os.read(0, 1)  # not through sys.stdin, whose lock no thread may hold when Python ends
    os._exit(1)


def _file_of_results(folder: Path | None, small: bool) -> Path | None:
    """Return the file of this GPU's results; None: write nothing."""
    if small and folder is None:
        return None
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu"
    kind = "rehearsal" if small else "gpu"
    return (folder or RESULTS) / f"{kind}-{device.lower().replace(' ', '-')}.json"


def _read(file: Path | None) -> dict[str, Any]:
    """Return the results of earlier runs, by part."""
    if file is None or not file.exists():
        return {}
    return json.loads(file.read_text(encoding="utf-8"))["results"]


def _write(file: Path | None, results: dict[str, Any]) -> None:
    """Replace the file, so that a kill leaves either the old or the new one."""
    if file is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.resolve().with_suffix(".new")
    write(str(new), results)  # adds .json; an absolute name replaces its own folder
    Path(f"{new}.json").replace(file)


def _failures(results: dict[str, Any]) -> list[str]:
    """Return the names of the parts and cases with an error."""
    failures = []
    for part, cases in results.items():
        for case, figures in cases.items():
            if case == "error":
                failures.append(part)
            elif isinstance(figures, dict) and "error" in figures:
                failures.append(f"{part}, {case}")
    return failures


def _table(results: dict[str, Any]) -> str:
    """Return all numbers as a table in Markdown."""
    lines = ["| part | case | figures |", "|---|---|---|"]
    for part, cases in results.items():
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


def _peak(work: Callable[[], Any]) -> dict[str, float]:
    """Return {"peak_gib": the most that `work` allocates at once, beyond what was there before}.

    On a CPU the meter of `nrt plan` counts tensors.
    """
    if DEVICE.type != "cuda":
        with Meter() as meter:
            work()
        return {"peak_gib": meter.peak / GIB}
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return {"peak_gib": (torch.cuda.max_memory_allocated() - before) / GIB}


def _random(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """Return a random tensor that needs a gradient."""
    return torch.randn(*shape, device=DEVICE, dtype=dtype, requires_grad=True)


def _tiny(values: dict[str, Any], dtype: str) -> Any:
    """Return a model of random weights with four layers."""
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
    """Return the shape of a Llama that `nrt plan` knows, or a small one."""
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
    """Return a Llama of random weights."""
    torch.manual_seed(0)
    with DEVICE:
        dtype = torch.float32 if small else torch.bfloat16
        return AutoModelForCausalLM.from_config(_config(name, small), dtype=dtype).eval()


def _on_meta(model: Any) -> Any:
    """Return a model without memory for its weights, as `nrt plan` builds it."""
    with tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        dtype = str(model.dtype).removeprefix("torch.")
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


def _write_model(path: Path, small: bool, *, cut: bool) -> Path:
    """Write a model of random weights and a tokenizer of words.

    A cut model has few layers and tokens, since its checkpoints are written only to resume.
    """
    config = _config("llama-3.2-1b", small)
    if cut:
        config.num_hidden_layers = 2
        config.vocab_size = min(config.vocab_size, 8192)
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
    """Write questions and answers."""
    path = folder / "pairs.jsonl"
    rows = [
        {"question": " ".join(f"w{(7 * i + j) % 500}" for j in range(14)), "answer": f"w{i} w{i}"}
        for i in range(64)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


if __name__ == "__main__":
    main()
