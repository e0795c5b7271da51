"""`python -m benchmarks.gpu`, which has nine minutes on a GPU: it runs on a CPU with small shapes."""

import json
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu, memory
from benchmarks.common import Shape, llama
from benchmarks.scoring import rows_of
from nrt.engine import compiled
from nrt.engine.counting import count_update
from nrt.engine.meter import Meter
from nrt.engine.recompute import model_on_meta
from nrt.models.attention import install_attention
from nrt.scoring import token_logprobs
from nrt.scoring.packing import packed_tokens

PLAN_MARGIN = 0.15
"""Share by which `tests/plan/test_counts.py` allows the peak of an update to differ."""


@pytest.fixture(autouse=True)
def tile_tokens(monkeypatch):
    """Restore the heights of tiles, which `head` sets."""
    monkeypatch.setattr(token_logprobs, "TILE_TOKENS", dict(token_logprobs.TILE_TOKENS))


@pytest.fixture
def fake_part(monkeypatch, tmp_path):
    """Return a function that lets a shell script take the place of the process of each part."""

    def install(script: str) -> None:
        """Install a script, in which $4 is the name of the part."""
        program = tmp_path / "program"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setattr(gpu.sys, "executable", str(program))

    return install


def print_case(name: str, figures: str = '{"seconds": 1}') -> str:
    """Return the shell command that prints a case as a part does."""
    return f"echo '{{\"{name}\": {figures}}}'"


def results_in(folder: Path) -> dict:
    """Return the results in the only file of a folder."""
    (file,) = folder.iterdir()
    return json.loads(file.read_text(encoding="utf-8"))["results"]


@pytest.mark.parametrize("part", gpu.PARTS)
def test_each_part_runs_in_small(part, monkeypatch):
    monkeypatch.setattr(gpu, "PARITY", {name: gpu.PARITY[name] for name in ("llama", "gemma2")})
    results = dict(gpu.PARTS[part].work(True))
    assert json.loads(json.dumps(results)) == results
    assert all("error" not in figures for figures in results.values())
    if part == "parity":
        assert all(figures["packed"] for name, figures in results.items() if "float32" in name)
    if part == "update":
        for figures in results.values():
            planned = figures["planned_gib"]
            assert figures["peak_gib"] == pytest.approx(planned, rel=PLAN_MARGIN)
    if part == "run":
        names = ["all weights, resumed", "all weights", "LoRA, resumed", "LoRA"]
        assert list(results) == names  # a cut loses the last ones
        assert results["LoRA, resumed"] == results["all weights, resumed"] == {"steps": 4}


def test_the_memory_benchmark_measures_what_the_plan_counts(monkeypatch):
    """With the meter in place of resident memory, whose smallest unit is a page."""

    class MeteredPeak:
        """Stand-in for `common.Peak`."""

        @contextmanager
        def watched(self):
            """Yield an object that has the peak as `bytes` afterwards."""
            reading = SimpleNamespace()
            with Meter() as meter:
                yield reading
            reading.bytes = meter.peak

    monkeypatch.setattr(memory, "Peak", MeteredPeak)
    shape = Shape(prompts=1, traces=4, prompt=100, trace=50, answer=50)
    model = model_on_meta(llama("3m"))
    install_attention(model)
    planned = count_update(model, tuple(rows_of(shape)), recompute=False, device_type="cpu")
    measured = memory.peak("3m", "packed", 512, shape)
    assert measured == pytest.approx(planned.peak, rel=PLAN_MARGIN)


def test_the_rows_of_a_measured_update_are_one_micro_batch():
    """The plan's count is that of one micro-batch."""
    assert packed_tokens(rows_of(gpu.SHAPE)) <= 16_384


def test_an_update_as_by_default_says_why_its_layers_are_not_compiled(monkeypatch):
    monkeypatch.setattr(compiled, "AUTO_DEVICES", ("cpu",))
    monkeypatch.setattr(compiled, "compile_fault", lambda *_, **__: "no compiler")
    results = dict(gpu.update_3b(True))
    assert len(results) == 3
    *others, default = results.values()
    assert default["compile_fault"] == "no compiler"
    assert not default["compiled"]
    assert all(figures["compile_fault"] == "" for figures in others)


def test_the_cases_of_the_head_are_named_after_their_real_tiles(monkeypatch):
    logits = token_logprobs._Tiles.logits
    tiles = set()

    def record(self, hidden, columns):
        """Compute logits, and keep the size of their tile."""
        tiles.add((len(hidden), columns.stop - columns.start))
        return logits(self, hidden, columns)

    monkeypatch.setattr(token_logprobs._Tiles, "logits", record)
    monkeypatch.setattr(gpu, "_median", lambda work: work() or 0.0)
    sizes = []
    for name, _ in gpu.head(True):
        rows, columns = max(tiles)  # other tiles have what is left of tokens or columns
        assert name.endswith(f"columns, tiles of {rows:,} tokens × {columns:,} columns")
        sizes.append((name.split()[0], rows, columns))
        tiles.clear()
    assert len(set(sizes)) == len(sizes) == 6


@pytest.mark.parametrize("V", [128_256, 128_258, 32_770])
def test_the_tiles_of_a_gpu_differ_as_their_names_do(monkeypatch, V):
    """On the meta device, with a GPU's sizes."""
    monkeypatch.setitem(token_logprobs.TILE, "meta", token_logprobs.TILE["cuda"])
    weight_Vd = torch.empty(V, 8, device="meta")
    names = []
    for minimum in (1, 2048, 4096):
        monkeypatch.setitem(token_logprobs.TILE_TOKENS, "meta", minimum)
        names.append(gpu._tile(weight_Vd, 8192))
    lowest = f"{2**25 // V:,} tokens × {V:,} columns"
    assert names == [lowest, "2,048 tokens × 16,384 columns", "4,096 tokens × 8,192 columns"]


def test_runs_are_short():
    """A token of a trace takes 18 ms on a GPU, 35 ms with LoRA."""
    config = gpu._config_of_run(Path("model"), Path("pairs"), Path("run"), False)
    assert (config.steps, config.max_trace_tokens) == (3, 64)
    assert (config.eval_every, config.data.valid) == (0, None)


def test_the_parts_have_nine_minutes():
    assert sum(part.budget for part in gpu.PARTS.values()) <= 520


def test_a_part_that_is_cut_or_fails_keeps_its_cases(monkeypatch, fake_part):
    monkeypatch.setitem(gpu.PARTS, "head", gpu.Part(gpu.head, budget=1))
    ends = {"exec sleep 60": "not done within 1 s", "echo broken >&2; exit 3": "broken"}
    for end, error in ends.items():
        fake_part(f"{print_case('case')}\n{end}")
        results = dict(gpu._in_process("head", False))
        assert results["case"] == {"seconds": 1}
        assert error in results["error"]


def test_each_case_is_written_while_its_part_runs(fake_part, tmp_path):
    """The script fails unless its first case is in the file while it runs."""
    out = tmp_path / "out"
    is_written = f"grep -q first {out}/*.json"
    wait = f"for i in $(seq 100); do {is_written} && exit 0; sleep .1; done; exit 1"
    fake_part(f"{print_case('first')}\n[ -p /dev/stdin ] || exit 2\n{wait}")
    gpu.main(["--rehearse", "--only", "head", "--out", str(out)])
    assert results_in(out)["head"]["first"] == {"seconds": 1}


def test_only_some_parts_keep_the_results_of_the_others(fake_part, tmp_path, capsys):
    out = tmp_path / "out"
    fake_part(print_case("old"))
    gpu.main(["--rehearse", "--only", "head,attention", "--out", str(out)])
    fake_part(print_case("new"))
    capsys.readouterr()
    gpu.main(["--rehearse", "--only", "attention", "--out", str(out)])
    results = results_in(out)
    assert "old" in results["head"]
    assert "new" in results["attention"]
    assert "old" not in results["attention"]
    assert "| head |" not in capsys.readouterr().out  # the table has the parts that ran


def test_an_unknown_part_is_an_error_before_any_part_runs(fake_part, tmp_path, capsys):
    fake_part(f"touch {tmp_path}/ran")
    with pytest.raises(SystemExit) as raised:
        gpu.main(["--rehearse", "--only", "head,tail"])
    assert raised.value.code == 2
    message = capsys.readouterr().err
    assert "no part tail; the parts are parity, head, attention, update, run" in message
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("script", "failed"),
    [
        (print_case("case", '{"error": "out of memory"}'), "head, case"),
        ("echo broken >&2; exit 3", "head"),
    ],
)
def test_an_error_of_a_case_or_part_is_an_error_of_the_benchmark(fake_part, script, failed):
    fake_part(script)
    with pytest.raises(SystemExit, match=rf"^failed: {failed}$"):
        gpu.main(["--rehearse", "--only", "head"])


def test_padded_rows_are_an_error_in_float32(monkeypatch):
    monkeypatch.setattr(gpu, "PARITY", {"llama": gpu.PARITY["llama"]})
    choice = SimpleNamespace(packed=False, why="rows are padded")
    monkeypatch.setattr(gpu, "choose_scorer", lambda *_, **__: choice)
    in_float32, in_bfloat16 = dict(gpu.parity(True)).values()
    assert "error" in in_float32
    assert "error" not in in_bfloat16


def test_the_process_of_a_part_ends_with_its_input():
    """The system closes it when the parent ends, even if the parent was killed."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--rehearse", "--part", "parity"]
    root = Path(__file__).parents[1]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=root, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline().startswith('{"llama, float32')
        process.stdin.close()
        assert process.wait(timeout=60) == 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_terminated_benchmark_leaves_its_cases_and_no_process(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--rehearse", "--only", "parity"]
    root = Path(__file__).parents[1]
    with subprocess.Popen(
        [*command, "--out", str(tmp_path)], cwd=root, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline().startswith('parity: {"llama, float32')
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        parent.terminate()
    assert len(results_in(tmp_path)["parity"]) >= 2  # "measured" and the case
    (child,) = children
    deadline = time.monotonic() + 60
    while is_alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def is_alive(pid: str) -> bool:
    """True if a process exists and has not ended."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"
