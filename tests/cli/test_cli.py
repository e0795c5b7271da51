"""Command line: a wrong setting gives one clear line and exit status 2, and writes nothing."""

import json
import subprocess
import sys
from typing import get_args, get_type_hints

import pytest
from transformers import BertConfig, BertModel

import nrt
from nrt.cli import app as cli
from nrt.trainer.setup import prepare
from tests.runs import write_run
from tests.trainer.conftest import make_config, model_dir, pairs_file, write_pairs  # noqa: F401


@pytest.fixture
def nrt_command(monkeypatch, capsys, tmp_path):
    """Return a function that runs `nrt` in an empty folder.

    It maps arguments to (exit status, stdout, stderr).
    """
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["nrt", *arguments])
        capsys.readouterr()
        try:
            cli.main()
            status = 0
        except SystemExit as exit_request:
            status = exit_request.code or 0
        out, err = capsys.readouterr()
        return status, out, err

    return call


@pytest.fixture
def small(model_dir, pairs_file):  # noqa: F811
    """Return the settings of a run that takes seconds."""
    return [
        "gsm8k",
        f"model={model_dir}",
        f"data.train={pairs_file}",
        "data.answer=whole",
        "steps=2",
        "batch=4",
        "traces=2",
        "max_trace_tokens=5",
        "max_answer_tokens=8",
        "run=mine",
        "threads=1",
    ]


def test_version(nrt_command):
    assert nrt_command("--version") == (0, f"nrt {nrt.__version__}\n", "")


def test_train_resume_export_chat(nrt_command, small, tmp_path):
    status, out, _ = nrt_command("train", *small)
    assert status == 0
    assert "runs/mine" in out
    status, out, _ = nrt_command("train", "resume=mine", "steps=3", "--json")
    assert status == 0
    assert [json.loads(line).get("step") for line in out.splitlines()] == [2, 3]
    status, out, _ = nrt_command("export", "mine", "exported")
    assert status == 0
    assert (tmp_path / "exported" / "model.safetensors").is_file()
    status, out, _ = nrt_command(
        "chat",
        "exported",
        "--prompt",
        "what is one plus two ?",
        "--max-trace-tokens",
        "4",
        "--max-answer-tokens",
        "4",
    )
    assert status == 0
    assert nrt_command("export", "mine", "exported")[0] == 2


def refused(nrt_command, tmp_path, *arguments):
    """Check that `nrt train` refuses the arguments before a run begins; return its error line."""
    status, out, err = nrt_command("train", *arguments)
    assert status == 2, (out, err)
    assert not (tmp_path / "runs").exists()
    assert len(err.strip().splitlines()) == 1
    return err


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.train=absent.jsonl", "absent.jsonl"),
        ("method=nrt-mg", "did you mean 'nrt-gm'"),
        ("trace=8", "did you mean 'traces'"),
        ("data.answr=whole", "did you mean 'data.answer'"),
        ("optimizer.lr=fast", "optimizer.lr"),
        ("traces=0", "K ≥ 1"),
        ("model=absent", "absent"),
        ("profile=papr", "did you mean 'paper'"),
        ("heldout.checker=exat", "did you mean 'exact'"),
        ("sampler=vlm", "sampler"),
        ("observer=nowhere.at:all", "nowhere"),
        ("data.columns.question=prompt", "data.columns"),
        ("resume=never", "never"),
    ],
)
def test_bad_settings(nrt_command, small, tmp_path, setting, message):
    assert message in refused(nrt_command, tmp_path, *small, setting)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["max_trace_tokens=500"], "has positions for 64"),
        (["lora.rank=2", "lora.targets=[lm_head]"], "lm_head"),
        (["lora.rank=2", "lora.targets=[input_layernorm]"], "lora.targets"),
        (["model=cut.gguf"], "is the file complete"),
        (["markers.end=</s>"], "the token that ends a turn"),
        (["markers.end="], "markers.end"),
    ],
)
def test_settings_that_the_model_does_not_support(nrt_command, small, tmp_path, settings, message):
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\x03\0\0\0" + (3).to_bytes(8, "little") * 2)
    assert message in refused(nrt_command, tmp_path, *small, *settings)


def test_leave_one_out_with_one_trace(nrt_command, small, tmp_path):
    assert "K ≥ 2" in refused(
        nrt_command, tmp_path, *small, "objective.centre=leave-one-out", "traces=1"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"question": "what ?", "answer": "one"}\n{"question": "wh', "bad.jsonl:2"),
        (
            '{"question": "what ?", "answer": "one"}\n{"question": "what ?", "answer": " "}\n',
            "bad.jsonl:2",
        ),
        ('{"question": "what ?"}\n', "answer"),
        ("", "bad.jsonl"),
    ],
)
def test_bad_rows(nrt_command, small, tmp_path, text, message):
    (tmp_path / "bad.jsonl").write_text(text)
    assert message in refused(nrt_command, tmp_path, *small, "data.train=bad.jsonl")


def test_not_a_causal_model(nrt_command, small, tmp_path):
    config = BertConfig(
        vocab_size=10,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
    )
    BertModel(config).save_pretrained(tmp_path / "bert")
    assert "causal" in refused(nrt_command, tmp_path, *small, f"model={tmp_path / 'bert'}")


def test_unknown_recipe(nrt_command, tmp_path):
    assert "did you mean 'gsm8k'" in refused(nrt_command, tmp_path, "gsmk8", "model=x")


def test_help_does_not_import_torch():
    code = """
import sys
sys.argv = ["nrt", "--help"]
from nrt.cli import app as cli
try:
    cli.main()
except SystemExit:
    pass
assert "torch" not in sys.modules
"""
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    assert "train" in process.stdout


def test_report_writes_a_page_or_prints(nrt_command, tmp_path):
    write_run(tmp_path / "runs" / "one")
    write_run(tmp_path / "runs" / "two", seed=1)
    status, out, _ = nrt_command("report", "one")
    assert status == 0
    assert "written: runs/one/report.html" in out
    assert (tmp_path / "runs" / "one" / "report.html").stat().st_size > 1e6
    assert "written: report.html" in nrt_command("report", "one", "two")[1]
    assert nrt_command("report", "one", "-o", "page.html")[0] == 0
    assert (tmp_path / "page.html").is_file()
    status, out, _ = nrt_command("report", "one", "two", "--text")
    assert status == 0
    assert "held-out accuracy" in out


def test_report_of_no_run(nrt_command):
    status, _, err = nrt_command("report", "nowhere")
    assert status == 2
    assert "runs/nowhere is not a run" in err


def test_figures_as_png_svg_and_csv(nrt_command, tmp_path):
    write_run(tmp_path / "runs" / "one")
    status, out, _ = nrt_command("figures", "one", "--style", "paper", "-o", "drawn")
    assert status == 0
    names = {
        f"{figure}.{kind}"
        for figure in ("dynamics", "accuracy", "confidence")
        for kind in ("png", "svg", "csv")
    }
    assert {file.name for file in (tmp_path / "drawn").iterdir()} == names
    assert out.count("written: drawn/") == 9
    lines = (tmp_path / "drawn" / "accuracy.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "variant,family,seeds,correct,low,high"
    assert lines[1].startswith("nrt-gm,family0,1,1.0,0.6")  # Wilson's width: all are right
    drawing = (tmp_path / "drawn" / "dynamics.svg").read_text(encoding="utf-8")
    assert "<text" in drawing
    assert "judge: quality" in drawing
    assert (
        "nrt-gm,0,1,judge/quality,0.5"
        in (tmp_path / "drawn" / "dynamics.csv").read_text(encoding="utf-8").splitlines()
    )
    status, _, err = nrt_command("figures", "one", "--style", "papr")
    assert status == 2
    assert "did you mean 'paper'" in err


def test_figures_of_runs_with_different_questions(nrt_command, tmp_path):
    """They have dynamics; what pairs questions is left out, with the reason."""
    write_run(tmp_path / "runs" / "one", method="sft")
    other = write_run(tmp_path / "runs" / "two")
    last = max((other / "heldout").iterdir())
    last.write_text(last.read_text(encoding="utf-8").replace('"id": "', '"id": "x'))
    status, out, err = nrt_command("figures", "one", "two", "-o", "drawn")
    assert status == 0, err
    assert "no figure of accuracy: nrt-gm, seed 0, has different questions" in out
    assert "baseline's run (sft)" in out
    assert "written: drawn/dynamics.png" in out
    assert not (tmp_path / "drawn" / "accuracy.png").exists()


def test_train_report_writes_the_page(
    nrt_command,
    small,
    pairs_file,  # noqa: F811
    tmp_path,
    monkeypatch,
    caplog,
):
    from nrt.cli import live_report

    written = []
    original = live_report.write_page

    def record_and_write(report, file):
        written.append(report.runs[0].status)
        original(report, file)

    monkeypatch.setattr(live_report, "write_page", record_and_write)
    held_out = [f"data.valid={pairs_file}", "heldout.rows=2", "eval_every=1"]
    assert nrt_command("train", *small, *held_out, "--report")[0] == 0
    in_progress = [f"in progress, {step} of 2 steps" for step in (0, 1, 2)]
    assert written == [*in_progress, "finished, 2 of 2 steps"]
    assert (tmp_path / "runs" / "mine" / "report.html").is_file()

    def refuse(report, file):
        raise ValueError("no room")

    monkeypatch.setattr(live_report, "write_page", refuse)
    # An error of the page does not end the training.
    assert nrt_command("train", *small, *held_out, "--report", "run=other")[0] == 0
    assert "no room" in caplog.text


def test_data_check_and_stats(nrt_command, tmp_path):
    """Tables, JSON, exit status and histogram."""
    file = tmp_path / "a.csv"
    file.write_text("question,answer\nWhat is 2+2?,4\nWhat is 1+2?,3\n")
    status, out, err = nrt_command("data", "check", "a.csv")
    assert (status, err) == (0, "")
    assert "2 usable, 0 not" in out
    assert nrt_command("data", "stats", "a.csv", "-o", "lengths.png")[0] == 0
    assert (tmp_path / "lengths.png").is_file()
    assert nrt_command("data", "stats", "a.csv", "--json", "-o", "again.png")[0] == 0
    assert (tmp_path / "again.png").is_file()
    (tmp_path / "b.csv").write_text(file.read_text())
    file.write_text('question,answer\nWhat is 2+2?,4\n"broken\n')
    status, out, _ = nrt_command("data", "check", "a.csv", "--json")
    assert status == 1, "training would refuse these data"
    assert json.loads(out)["train"]["bad"][0]["first"] == ["a.csv:3"]
    assert nrt_command("data", "check", "a.csv", "data.on_bad_row=skip")[0] == 0
    assert "1 rows cannot be used" in nrt_command("data", "stats", "a.csv")[1]
    status, out, err = nrt_command("data", "split", "b.csv", "--valid", "1", "-o", "parts")
    assert (status, err) == (0, "")
    assert "data check parts/train.jsonl data.valid=parts/valid.jsonl" in out
    status, _, err = nrt_command("data", "check", "gsm8k", "a.csv")
    assert status == 2
    assert "gsm8k is a recipe and no file; give FILE --recipe gsm8k" in err
    status, _, err = nrt_command("data", "check", "absent.csv")
    assert (status, err.count("\n")) == (2, 1)


def test_plan(nrt_command):
    """A recipe and a model known by its name need no files."""
    arguments = (
        "plan",
        "gsm8k",
        "model=llama-3.2-1b",
        "batch=16",
        "--trace",
        "200",
        "--rows",
        "7473",
        "--gpu",
        "h200",
    )
    status, out, _ = nrt_command(*arguments)
    assert status == 0
    for text in ("fits on h200", "optimizer state", "null traces", "hours of the run", "Assumed"):
        assert text in out
    status, out, _ = nrt_command(*arguments, "--json", "--price", "2")
    plan = json.loads(out)
    assert (status, plan["fits"], plan["steps"], plan["parameters"]) == (
        0,
        True,
        467,
        1_235_818_496,
    )
    assert plan["memory"]["peak"] <= plan["capacity"]
    assert plan["cost"] == pytest.approx(2 * plan["hours"])
    status, _, err = nrt_command("plan", "gsm8k", "--gpu", "h100")
    assert status == 2
    assert "model=FOLDER" in err


def integer_options(app):
    """(command, option, least value) of every option that takes a whole number."""
    for group in app.registered_groups:
        yield from integer_options(group.typer_instance)
    for command in app.registered_commands:
        name = command.name or command.callback.__name__.strip("_").replace("_", "-")
        hints = get_type_hints(command.callback, include_extras=True)
        for option, hint in hints.items():
            if get_args(hint) and get_args(hint)[0] in (int, int | None):
                yield name, option, get_args(hint)[1].min


def test_every_count_has_a_least_value():
    """`nrt eval --seeds 0` asked nothing, and said nothing. Seeds may be any number."""
    options = list(integer_options(cli.app))
    assert len(options) > 20
    checked_later = {("compare", "seeds")}  # by Study, which also bounds it from above
    unbounded = {(command, name) for command, name, least in options if least is None}
    assert {pair for pair in unbounded - checked_later if pair[1] != "seed"} == set()


def test_data_check_shows_what_new_markers_start_from(nrt_command, model_dir, pairs_file):  # noqa: F811
    """The rows that training makes, as text and as JSON."""
    caps = ["max_prompt_tokens=20", "max_trace_tokens=8", "max_answer_tokens=16"]
    settings = [f"model={model_dir}", "data.answer=whole", *caps]
    arguments = ["data", "check", str(pairs_file), *settings, "--recipe", "gsm8k", "--markers"]
    status, out, err = nrt_command(*arguments)
    assert status == 0, err
    lines = [line for line in out.splitlines() if " starts from " in line]
    assert [line.partition(" ")[0] for line in lines] == ["<|think_start|>", "<|think_end|>"]
    values = json.loads(nrt_command(*arguments, "--json")[1])["markers"]
    assert [row["marker"] for row in values] == ["<|think_start|>", "<|think_end|>"]
    assert all(row["divergence"] >= 0 for row in values)
    config = nrt.load_config("gsm8k", [f"data.train={pairs_file}", *settings])
    assert set(lines) <= set(prepare(config).notes)
    status, _, err = nrt_command("data", "check", str(pairs_file), "--markers")
    assert status == 2
    assert "--markers needs a model" in err


def test_a_recipe_that_makes_its_model_checks_the_settings_first(
    nrt_command, tmp_path, monkeypatch
):
    """Making the base model takes minutes; a dry run does not make it."""
    monkeypatch.setenv("NRT_CACHE", str(tmp_path / "cache"))
    status, _, err = nrt_command("train", "miniature", "method=nrt-gmm")
    assert (status, "did you mean 'nrt-gm'" in err) == (2, True)
    status, out, err = nrt_command("train", "miniature", "--dry-run")
    assert (status, "model: null" in out) == (0, True), err
    assert not (tmp_path / "cache").exists()
