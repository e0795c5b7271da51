"""The demo continues a run that was interrupted, and starts another one for other settings."""

import io
import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

import nrt
from nrt.errors import Interrupted
from nrt.lab import demo
from nrt.lab.settings import ArithmeticData
from tests.trainer.conftest import make_config, model_dir, pairs_file, write_pairs  # noqa: F401
from tests.trainer.test_train import InterruptAt


@pytest.fixture
def config(make_config, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    return make_config(steps=3, run="unused")


def test_an_interrupted_demo_is_continued(config):
    with pytest.raises(Interrupted):
        demo._train(config, None, "demo", InterruptAt(2))
    assert demo._run_name("demo", config) == "demo"
    other = config.model_copy(update={"seed": 1})
    assert demo._run_name("demo", other) == "demo-2", "another seed is another run"
    run = demo._train(config, None, "demo", None)
    assert [record["step"] for record in run.metrics()] == [0, 1, 2, 3]
    assert demo._run_name("demo", config) == "demo-2", "a finished run stays as it is"
    plain = nrt.train(config.model_copy(update={"run": "plain"}))
    last, same = run.metrics()[-1], plain.metrics()[-1]
    assert {k: v for k, v in last.items() if not k.startswith(("time/", "speed/"))} == {
        k: v for k, v in same.items() if not k.startswith(("time/", "speed/"))
    }


def test_a_demo_killed_before_its_first_checkpoint_begins_again(config):
    with pytest.raises(Interrupted):
        demo._train(config, None, "demo", InterruptAt(2))
    shutil.rmtree("runs/demo/checkpoints")
    assert demo._run_name("demo", config) == "demo"
    run = demo._train(config, None, "demo", None)
    assert [record["step"] for record in run.metrics()] == [0, 1, 2, 3]


def test_a_folder_that_is_no_run_of_this_version_is_left_alone(config):
    folder = Path("runs/demo")
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("schema_version: 999\n")
    assert demo._run_name("demo", config) == "demo-2"


def test_the_table_by_hand(config):
    """3 of 4 right: 75 %, Wilson's interval 30–95 %."""
    rows = [{"source": "sums", "correct": i > 0, "correct_null": False} for i in range(4)]
    assert demo._share(rows, "sums", "correct") == "75% (30%–95%)"
    assert demo._share(rows, "sums", "correct_null") == "0% (0%–49%)"
    assert demo._share(rows, "other", "correct") == "–"


def test_the_whole_demo_of_a_pretrained_model(config, tmp_path, monkeypatch):
    """With a tiny model in its place."""
    rows = []
    for line in Path(str(config.data.train)).read_text().splitlines():
        pair = json.loads(line)
        turns = [("user", pair["question"]), ("assistant", pair["answer"])]
        messages = [{"role": role, "content": text} for role, text in turns]
        rows.append({"messages": messages, "source": pair["kind"]})
    data = write_pairs(tmp_path / "messages.jsonl", rows)
    settings = [
        *(f"model={config.model}", f"data.train={data}", f"data.valid={data}", "heldout.rows=4"),
        *("max_prompt_tokens=20", "max_trace_tokens=6", "threads=1", "steps=2", "batch=4"),
    ]
    monkeypatch.setattr(demo, "prepare", lambda model, seed: settings)
    kinds = ArithmeticData(("kind-0", "kind-1"))
    monkeypatch.setitem(demo.ARITHMETIC, "smollm2", kinds)
    out = io.StringIO()
    run = demo.run_demo(Console(file=out, width=200), None, model="smollm2", quick=True)
    assert run.path.as_posix() == "runs/demo-smollm2"
    text = out.getvalue()
    for part in (
        "A pretrained model",
        "the untrained model, as plain text",
        "this shows that everything runs",
        "kind-0",
    ):
        assert part in text


def test_unknown_model():
    with pytest.raises(nrt.InputError, match="smollm"):
        demo.run_demo(Console(), None, model="smollm3")
