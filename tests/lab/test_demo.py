"""The demo runs from end to end; test_effect.py tests the effect itself."""

import io

import pytest
from rich.console import Console

from nrt.api.live import LiveLine
from nrt.lab.demo import run_demo


@pytest.mark.slow
def test_quick_demo(tmp_path, monkeypatch):
    monkeypatch.setenv("NRT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    out = io.StringIO()
    console = Console(file=out, width=200)
    run = run_demo(console, LiveLine(console), seed=0, quick=True)
    text = out.getvalue()
    assert run.path.as_posix() == "runs/demo"
    for part in (
        "worked traces",
        "before",
        "after",
        "sum",
        "bot",
        "recall",
        "step 3/3",
        "done: runs/demo",
    ):
        assert part in text
    assert [record["step"] for record in run.metrics()] == [0, 1, 2, 3]
    assert "worked/sum" in run.metrics()[-1]
    assert {row["source"] for row in run.heldout()} == {"sum", "bot", "recall"}
