"""`nrt.train` and `nrt.resume` with objects: rows, a loaded model, a method, a checker."""

import json
import os
import re
import signal
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import nrt
from nrt.api.training import _remove_new
from nrt.errors import InputError, Interrupted
from nrt.objective import METHODS
from tests.tiny import tiny_model, tiny_tokenizer
from tests.trainer.conftest import model_dir, pairs_file  # noqa: F401
from tests.trainer.test_train import assert_same_run

pandas = pytest.importorskip("pandas")

SETTINGS = {
    "steps": 3, "batch": 4, "traces": 3, "max_trace_tokens": 6, "max_answer_tokens": 24, "max_prompt_tokens": 64,
    "eval_every": 2, "save_every": 2, "threads": 1, "optimizer": {"lr": 1e-2}, "heldout__rows": 4, "device": "cpu",
    "progress": False,
}  # fmt: skip

NUMBERS = ("one", "two", "three", "four")
ROWS = [
    {"question": f"what is {a} plus {b} ?", "answer": f"the sum is {b}"}
    for a in NUMBERS
    for b in NUMBERS
]


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def loaded():
    tokenizer = tiny_tokenizer()
    return tiny_model(vocab_size=len(tokenizer)), tokenizer


def same_answer(answer, reference):
    return answer == reference


class StopsWith(nrt.Callback):
    """Sends this process a real SIGINT after step 2."""

    def on_step(self, metrics, control):
        if control.step == 2:
            os.kill(os.getpid(), signal.SIGINT)


def test_a_frame_and_a_loaded_model_resume_to_the_uninterrupted_run(loaded):
    model, tokenizer = loaded
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    frame = pandas.DataFrame(ROWS)
    given = {"processing_class": tokenizer, "checker": same_answer, **SETTINGS, "save_every": 0}
    whole = nrt.train(model, frame, frame[:4], run="whole", **given)
    with pytest.raises(Interrupted):
        nrt.train(model, frame, frame[:4], run="cut", callbacks=[StopsWith()], **given)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    del model, frame, given
    resumed = nrt.resume("cut", progress=False)
    assert_same_run(resumed, whole)
    assert resumed.report().is_file()
    assert whole.config.heldout.checker == f"{__name__}:same_answer"
    assert [record["step"] for record in whole.metrics() if "heldout/accuracy" in record] == [
        0,
        2,
        3,
    ]


@pytest.mark.parametrize("kind", ["list", "generator", "frame", "dataset"])
def test_all_kinds_of_rows_are_the_file_with_these_rows(kind, loaded, tmp_path):
    """The same bytes, so the same run; and the rows are stored in the run folder."""
    from datasets import Dataset

    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    data = {
        "list": ROWS,
        "generator": (row for row in ROWS),
        "frame": pandas.DataFrame(ROWS),
        "dataset": Dataset.from_list(ROWS),
    }[kind]
    run = nrt.train(loaded[0], data, processing_class=loaded[1], **SETTINGS, method="sft")
    stored = run.path / str(run.config.data.train).removeprefix(f"{run.path}/")
    assert stored.parent == run.path.absolute() / "data"
    assert stored.read_bytes() == file.read_bytes()
    assert run.path.as_posix() == "runs/run"
    from_file = nrt.train(run.config.model, file, **SETTINGS, method="sft")
    assert from_file.path.as_posix() == "runs/run-2"
    assert from_file.config.data.train == str(file)
    assert (from_file.model_dir / "model.safetensors").read_bytes() == (run.model_dir / "model.safetensors").read_bytes()  # fmt: skip


def test_values_of_a_frame_that_json_does_not_have(loaded, tmp_path):
    import numpy as np

    frame = pandas.DataFrame(
        {
            "question": ["what is one ?", "what is two ?"],
            "answer": ["one", "two"],
            "count": [1, None],
            "list": [np.array([1, 2]), [0.5]],
            "missing": [pandas.NA, pandas.NaT],
        }
    )
    run = nrt.train(loaded[0], frame, processing_class=loaded[1], **SETTINGS, method="sft")
    lines = (run.path / "data").glob("train-*.jsonl").__next__().read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"question": "what is one ?", "answer": "one", "count": 1, "list": [1, 2], "missing": None},
        {"question": "what is two ?", "answer": "two", "count": None, "list": [0.5], "missing": None},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pandas.DataFrame([["a", "b", "c"]], columns=["question", "answer", "answer"]),
         "train_dataset has several columns 'answer'; rename or drop all but one"),
        ([{"question": "a", "answer": "b", 1: 2, "1": 3}],
         "train_dataset, row 1: '1' is a key twice, as text"),
    ],
)  # fmt: skip
def test_columns_of_one_name(loaded, data, message):
    with pytest.raises(InputError, match=re.escape(message)):
        nrt.train(loaded[0], data, processing_class=loaded[1], **SETTINGS, method="sft")


def test_what_a_failed_start_has_written_is_removed(tmp_path):
    """Folders too: tokenizers with several chat templates have one."""
    (tmp_path / "kept").write_text("")
    before = set(tmp_path.iterdir())
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool.jinja").write_text("x")
    _remove_new([tmp_path], before | {tmp_path})
    assert set(tmp_path.iterdir()) == before


def test_a_run_is_read_after_a_change_of_the_folder(loaded, tmp_path, monkeypatch):
    """`%cd` in a notebook."""
    rows = [{"question": "what is one ?", "answer": "one"}]
    run = nrt.train(loaded[0], rows, processing_class=loaded[1], **SETTINGS, method="sft")
    relative, records = run.path, run.metrics()
    assert not relative.is_absolute()
    monkeypatch.chdir("/")
    assert run.path.is_absolute()
    assert run.metrics() == records
    assert run.state == "finished"


def test_a_method_of_ones_own(loaded):
    model, tokenizer = loaded

    def hardest(logp_KT, base_T):
        return logp_KT.double().exp().min(-1).values

    mine = replace(METHODS["nrt-gm"], name="mine", reward=hardest)
    given = {"processing_class": tokenizer, **SETTINGS, "steps": 2}
    try:
        run = nrt.train(model, ROWS, method=mine, **given)
        assert run.config.method == "mine"
        del METHODS["mine"]  # as in another process
        with pytest.raises(InputError, match=r"method 'mine', which is defined in Python; pass it"):
            nrt.resume(run, steps=3)
        assert nrt.resume(run, steps=3, method=mine, progress=False).metrics()[-1]["step"] == 3
    finally:
        METHODS.pop("mine", None)
    with pytest.raises(InputError, match="has the name of nrt's own 'nrt-gm' and other rules"):
        nrt.train(model, ROWS, method=replace(mine, name="nrt-gm"), **given)


def test_a_config_as_the_first_argument(loaded):
    model, tokenizer = loaded
    first = nrt.train(model, ROWS, processing_class=tokenizer, **SETTINGS)
    config = first.config.model_copy(update={"run": "again"})
    assert_same_run(nrt.train(config, progress=False), first)
    changed = nrt.train(config, run="third", steps=1, optimizer={"lr": 1e-3}, method="sft")
    assert (changed.path.name, changed.config.steps) == ("third", 1)
    assert (changed.config.optimizer.lr, changed.config.method) == (1e-3, "sft")
    with pytest.raises(InputError, match="recipe and processing_class do not go with a Config"):
        nrt.train(config, recipe="gsm8k")


def test_recipe_and_profile_are_those_of_load_config(loaded):
    given = {**SETTINGS, "steps": 1, "profile": "paper", "method": "sft"}
    data = {"answer": "whole"}
    run = nrt.train(loaded[0], ROWS, processing_class=loaded[1], recipe="gsm8k", data=data, **given)
    del given["progress"]
    expected = nrt.load_config("gsm8k", data=data, **given)
    same = {"run", "model", "data"}
    assert run.config.model_dump(exclude=same) == expected.model_dump(exclude=same)
    assert run.config.objective.weight_norm == "none", "of the profile"
    assert run.config.data.answer == "whole"


class CallableObject:
    def __call__(self, answer, reference):
        return True


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"train_dataset": [1]}, "train_dataset, row 1 is of type int, not dict"),
        ({"train_dataset": ["a.jsonl"]}, "row 1 is of type str, not dict"),
        ({"train_dataset": []}, "train_dataset has no rows"),
        ({"train_dataset": 7}, "train_dataset is of type int; give a path"),
        ({"train_dataset": {"train": ROWS}}, r"of type dict, with the keys train; give one split"),
        ({"eval_dataset": [{"question": object()}]}, "eval_dataset, row 1, column 'question': a value of type object"),
        ({"eval_dataset": [{"wrong": "a"}]}, r"eval_dataset, row 1: no question and answer among the columns"),
        ({"train_dataset": None}, "no training data given"),
        ({"model": 3}, "model is of type int; give a folder"),
        ({"processing_class": None}, "a loaded model needs its tokenizer: processing_class="),
        ({"model": "tiny"}, "processing_class is the tokenizer of a loaded model"),
        ({"checker": lambda a, b: True}, "is no function at the top level of a module"),
        ({"checker": CallableObject()}, "is no function at the top level of a module"),
        ({"checker": "exat"}, "unknown checker 'exat'; did you mean 'exact'"),
        ({"method": "nrt-mg"}, "unknown method 'nrt-mg'; did you mean 'nrt-gm'"),
        ({"learning_rate": 1}, r"unknown setting 'learning_rate'; in nrt it is optimizer\.lr"),
        ({"progress": "bar"}, "progress='bar': give 'auto', True or False"),
        ({"recipe": "gsm9k"}, "did you mean 'gsm8k'"),
    ],
)  # fmt: skip
def test_mistakes_are_named_and_leave_nothing(loaded, given, message, tmp_path):
    model, tokenizer = loaded
    whole = {
        "model": model,
        "train_dataset": ROWS,
        "processing_class": tokenizer,
        **SETTINGS,
        **given,
    }
    with pytest.raises(InputError, match=message):
        nrt.train(whole.pop("model"), whole.pop("train_dataset"), **whole)
    assert not list((tmp_path / "runs").glob("*"))


def test_a_failed_call_removes_only_what_it_wrote(loaded, tmp_path):
    """The run's folder may be one that holds the user's own data."""
    model, tokenizer = loaded
    project = tmp_path / "project"
    (project / "data").mkdir(parents=True)
    (project / "data" / "mine.csv").write_text("question,answer")
    given: dict[str, Any] = {"processing_class": tokenizer, **SETTINGS, "run": project}
    mistakes: list[dict[str, Any]] = [
        {"lora": {"rank": 4, "targets": "no_such"}},
        {"eval_dataset": [{"wrong": "a"}]},
    ]
    for wrong in mistakes:
        with pytest.raises(InputError):
            nrt.train(model, ROWS, **given, **wrong)
        assert [path.name for path in project.rglob("*")] == ["data", "mine.csv"]
    (project / "initial").mkdir()
    with pytest.raises(InputError, match=r"initial exists, where nrt would save the loaded model"):
        nrt.train(model, ROWS, **given)
    assert sorted(path.name for path in project.rglob("*")) == ["data", "initial", "mine.csv"]


def test_names_are_checked_before_anything_is_written(loaded, monkeypatch):
    model, tokenizer = loaded

    def never(*_):
        raise AssertionError("a model was saved")

    monkeypatch.setattr("nrt.api.training.store_model", never)
    for wrong in ({"method": "nrt-mg"}, {"progress": "bar"}, {"traces": 1, "method": "jepo"}):
        given: dict[str, Any] = SETTINGS | wrong
        with pytest.raises(InputError):
            nrt.train(model, ROWS, processing_class=tokenizer, **given)


def test_a_path_is_a_path_and_a_name_a_run(loaded, tmp_path, monkeypatch):
    """A run with stored rows resumes from another working folder."""
    model, tokenizer = loaded
    run = nrt.train(model, ROWS, processing_class=tokenizer, run=Path("out"), **SETTINGS)
    assert run.path.absolute() == tmp_path / "out"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    again = nrt.resume(tmp_path / "out", steps=4, progress=False)
    assert again.metrics()[-1]["step"] == 4


def test_a_run_is_not_overwritten(loaded):
    model, tokenizer = loaded
    given = {"processing_class": tokenizer, **SETTINGS, "run": "mine", "method": "sft"}
    run = nrt.train(model, ROWS, **given)
    before = sorted(run.path.rglob("*"))
    with pytest.raises(InputError, match=r"already holds a run .* \(nrt\.resume\('.*/runs/mine'\)"):
        nrt.train(model, ROWS[:8], **given)
    assert sorted(run.path.rglob("*")) == before


def test_a_loaded_model_with_adapters_is_refused(loaded):
    peft = pytest.importorskip("peft")
    model, tokenizer = loaded
    config = peft.LoraConfig(r=2, target_modules=["q_proj"])
    adapted = peft.get_peft_model(tiny_model(vocab_size=len(tokenizer)), config)
    models = [adapted]
    with suppress(ValueError):  # transformers 5.24 asks for a PEFT that is not released yet
        model.add_adapter(config)
        models.append(model)
    for given in models:
        with pytest.raises(InputError, match=r"has adapters; merge them"):
            nrt.train(given, ROWS, processing_class=tokenizer, **SETTINGS)


def test_a_run_of_a_loaded_model_is_exported(loaded, tmp_path):
    """Its config names the run's own copy of the model, which has no name of its own."""
    model, tokenizer = loaded
    run = nrt.train(model, ROWS, processing_class=tokenizer, run="mine", **SETTINGS)
    card = (run.export(tmp_path / "exported") / "README.md").read_text()
    assert "A model after Native Reasoning Training" in card
    assert "base_model" not in card
    moved = run.path.rename(tmp_path / "moved")
    card = (nrt.load_run(moved).export(tmp_path / "third") / "README.md").read_text()
    assert "A model after Native Reasoning Training" in card
    run = nrt.load_run(moved)
    again = nrt.train(str(run.model_dir), ROWS, run="again", **SETTINGS)
    assert "A model after" in (again.export(tmp_path / "second") / "README.md").read_text()


def test_resume_takes_a_run_a_path_and_more_steps(loaded):
    model, tokenizer = loaded
    run = nrt.train(model, ROWS, processing_class=tokenizer, run="mine", **SETTINGS)
    for steps, name in ((4, run), (5, run.path), (6, "mine")):
        assert nrt.resume(name, steps=steps, progress=False).metrics()[-1]["step"] == steps
    with pytest.raises(InputError, match="the run to resume has batch=4, not 8"):
        nrt.resume(run, batch=8, progress=False)
    with pytest.raises(InputError, match="is not a run"):
        nrt.resume("other")


def test_two_processes_store_once(gang, tmp_path):
    """Rank 0 reads the rows and chooses the name; both train on the stored file."""
    paths = gang(train_on_rows, str(tmp_path))
    assert paths == ["runs/run", "runs/run"]
    run = nrt.load_run("run")
    assert len(list((run.path / "data").iterdir())) == 1
    assert run.metrics()[-1]["step"] == 1


def train_on_rows(folder):
    before = os.getcwd()
    os.chdir(folder)
    tokenizer = tiny_tokenizer()
    model = tiny_model(vocab_size=len(tokenizer))
    settings = {**SETTINGS, "steps": 1, "progress": "auto"}
    rows = (row for row in ROWS)
    try:
        return nrt.train(model, rows, processing_class=tokenizer, **settings).path.as_posix()
    finally:
        os.chdir(before)
