"""What a user calls on a run: tables, a summary, the model, the report, an export."""

import sys

import pytest
import torch

import nrt
from nrt.errors import InputError
from nrt.run import Run
from tests.runs import HOSTILE, write_run
from tests.trainer.conftest import make_config, model_dir, pairs_file  # noqa: F401

pandas = pytest.importorskip("pandas")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Run(write_run(tmp_path_factory.mktemp("runs") / "one", groups=4, traces=3))


def test_metrics_have_a_row_a_step(run):
    frame = run.frame()
    assert list(frame["step"]) == [0, 1, 2, 3, 4]
    assert frame["heldout/accuracy"].iloc[0] == 0.25
    assert frame["reward/gain"].iloc[1] == 0.1


def test_traces_have_a_row_a_trace(run):
    frame = run.frame("traces")
    assert list(frame["step"]) == [step for step in (1, 2, 3, 4) for _ in range(3)]
    assert list(frame["trace"]) == [0, 1, 2] * 4
    group = run.traces()[2]
    part = frame[frame["step"] == 3]
    assert list(part["reward"]) == [trace["reward"] for trace in group["traces"]]
    assert set(part["prompt"]) == {group["prompt"]}


def test_groups_without_traces_are_rows(tmp_path):
    frame = Run(write_run(tmp_path / "sft", method="sft", groups=2)).frame("traces")
    assert list(frame["step"]) == [1, 2]


def test_heldout_has_all_evaluations(run):
    frame = run.frame("heldout")
    assert frame.groupby("step").size().to_dict() == {0: 12, 4: 12}
    assert frame[frame["step"] == 4]["correct"].mean() == 1.0


def test_other_frames(run, monkeypatch):
    with pytest.raises(
        InputError, match="unknown kind of records 'metric'; did you mean 'metrics'"
    ):
        run.frame("metric")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match=r"needs pandas: pip install pandas"):
        run.frame()


def test_summaries(run, tmp_path):
    assert repr(run) == f"Run({str(run.path)!r})"
    page = run._repr_html_()
    for part in ("finished", "nrt-gm", "reward/gain</th><td>0.4", "heldout/accuracy"):
        assert part in page
    hostile = Run(write_run(tmp_path / "<script>", extra=HOSTILE))
    assert "<script>" not in hostile._repr_html_()
    assert "&lt;script&gt;" in hostile._repr_html_()


def test_a_run_without_steps_has_summaries_and_frames(tmp_path):
    with nrt.run.RunWriter.create(tmp_path / "new", nrt.Config()):
        run = Run(tmp_path / "new")
        assert "in progress" in run._repr_html_()
        assert len(run.frame()) == len(run.frame("traces")) == len(run.frame("heldout")) == 0
        assert run.state == "in progress"
    assert run.state == "stopped"
    (run.path / "lock").write_text('{"pid": 1, "host": "elsewhere", "birth": "1"}')
    assert run.state == "killed, or in progress on another machine"


def test_report(run, tmp_path):
    pytest.importorskip("plotly")
    assert run.report() == run.path / "report.html"
    page = run.report(tmp_path / "page.html")
    assert "let us think" in page.read_text(encoding="utf-8")


def test_load_and_export(make_config, tmp_path):  # noqa: F811
    trained = nrt.train(make_config(steps=2, save_every=1))
    model, tokenizer = trained.load(device="cpu")
    assert (
        tokenizer.convert_tokens_to_ids("<|think_start|>")
        < model.get_input_embeddings().num_embeddings
    )
    earlier, _ = trained.load(1, device="cpu")
    assert not torch.equal(earlier.lm_head.weight, model.lm_head.weight)
    folder = trained.export(tmp_path / "exported")
    assert (folder / "README.md").is_file()
    assert (folder / "model.safetensors").read_bytes() == (
        trained.model_dir / "model.safetensors"
    ).read_bytes()
    with pytest.raises(InputError, match="does not exist; checkpoints that do"):
        trained.load(7)
    with pytest.raises(InputError, match="exists already"):
        trained.export(folder)
