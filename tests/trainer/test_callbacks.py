"""Callbacks: when each is called and with what, what control does, and that a stopped run resumes to the uninterrupted one."""

import pytest
import torch

import nrt
from nrt.errors import InputError, RunError
from nrt.trainer import Callback, EarlyStopping
from nrt.trainer.callbacks import Control
from tests.trainer.conftest import tiny_config
from tests.trainer.test_train import assert_same_run


class Diary(Callback):
    """Writes down what it receives."""

    def __init__(self):
        self.calls, self.values = [], []

    def _note(self, hook, control, value):
        self.calls.append((hook, control.step))
        self.values.append(value)

    def on_start(self, run, control):
        self._note("start", control, (run.path, control.steps))

    def on_traces(self, groups, control):
        self._note("traces", control, groups)

    def on_step(self, metrics, control):
        self._note("step", control, dict(metrics))

    def on_evaluate(self, metrics, rows, control):
        self._note("evaluate", control, (metrics, rows))

    def on_end(self, run, control):
        self._note("end", control, run.is_finished)


def test_when_each_is_called_and_with_what(make_config):
    diary = Diary()
    run = nrt.train(make_config(log_traces=2), callbacks=[diary])
    step = [("traces", 1), ("step", 1)]
    assert diary.calls == [
        ("start", 0), ("evaluate", 0), *step,
        ("traces", 2), ("step", 2), ("evaluate", 2), ("traces", 3), ("step", 3), ("evaluate", 3), ("end", 3),
    ]  # fmt: skip
    received = dict(zip(diary.calls, diary.values, strict=True))
    assert received["start", 0] == (run.path, 3)
    assert received["end", 3] is True
    assert received["traces", 1] + received["traces", 2] + received["traces", 3] == run.traces()
    assert len(received["traces", 1]) == 2
    for record in run.metrics()[1:]:
        measured = received["step", record["step"]]
        assert not any(name.startswith("heldout/") for name in measured)
        heldout = received.get(("evaluate", record["step"]), ({}, []))[0]
        assert {**measured, **heldout} == record
    metrics, rows = received["evaluate", 2]
    assert metrics["step"] == 2
    assert [row["id"] for row in rows] == [row["id"] for row in run.heldout(2)]


class Asks(Callback):
    """Makes requests at (hook, step)."""

    def __init__(self, **requests):
        self.requests = requests

    def _ask(self, hook, control):
        for request in self.requests.get(f"{hook}_{control.step}", "").split():
            getattr(control, request)()

    def on_start(self, run, control):
        self._ask("start", control)

    def on_traces(self, groups, control):
        self._ask("traces", control)

    def on_step(self, metrics, control):
        self._ask("step", control)

    def on_evaluate(self, metrics, rows, control):
        self._ask("evaluate", control)


def test_control_saves_and_evaluates(make_config):
    config = make_config(steps=5, eval_every=0, save_every=0, keep=9)
    asks = Asks(step_1="save", traces_2="evaluate", evaluate_2="save evaluate")
    run = nrt.train(config, callbacks=[asks])
    assert run.heldout_steps() == [0, 2, 3, 5], "a request in on_evaluate is for the next step"
    assert [path.name for path in run.checkpoints()] == [
        "step-000001",
        "step-000002",
        "step-000005",
    ]
    assert "heldout/accuracy" in run.metrics()[2]


@pytest.mark.parametrize(
    ("when", "step"), [("start_0", 0), ("evaluate_0", 0), ("traces_1", 1), ("step_3", 3), ("evaluate_2", 2)]
)  # fmt: skip
def test_a_stopped_run_is_finished_and_resumes_to_the_uninterrupted_one(
    make_config, tmp_path, capsys, when, step
):
    settings = {"steps": 4, "save_every": 0, "keep": 9, "updates_per_rollout": 2}
    whole = nrt.train(make_config(run=tmp_path / "whole", **settings))
    name = str(tmp_path / "stopped")
    run = nrt.train(make_config(run=name, **settings), callbacks=[Asks(**{when: "stop"})])
    assert run.is_finished
    if step < 4:
        assert (
            f"callback Asks stopped the run at step {step} of 4; continue with nrt resume"
            in capsys.readouterr().out
        )
        assert "stopped by a callback, of 4 steps" in run._repr_html_()
    assert [path.name for path in run.checkpoints()] == [f"step-{step:06d}"]
    assert run.metrics()[-1]["step"] == step
    finished = []

    class Looks(Callback):
        def on_step(self, metrics, control):
            finished.append(nrt.load_run(name).is_finished)

    config = make_config(run=name, resume=name, **settings)
    run = nrt.train(config, callbacks=[Looks()])
    assert not any(finished), "the model of the stop is not that of the run"
    assert_same_run(run, whole)


def test_a_run_that_samples_ahead_is_stopped_and_resumed(make_config, tmp_path):
    """The traces that were sampled for the next step are in the checkpoint."""
    settings = {"steps": 4, "save_every": 0, "keep": 9, "overlap": True}
    whole = nrt.train(make_config(run=tmp_path / "whole", **settings))
    name = str(tmp_path / "stopped")
    run = nrt.train(make_config(run=name, **settings), callbacks=[Asks(step_2="stop")])
    assert run.metrics()[-1]["step"] == 2
    assert_same_run(nrt.train(make_config(run=name, resume=name, **settings)), whole)


def test_an_error_names_the_callback_and_leaves_the_checkpoint(make_config):
    class Breaks(Callback):
        def on_step(self, metrics, control):
            if control.step == 3:
                raise KeyError("gain")

    with pytest.raises(
        RunError, match=r"^callback Breaks\.on_step failed at step 3: KeyError: 'gain'"
    ):
        nrt.train(config := make_config(), callbacks=[Breaks()])
    resumed = nrt.train(config.model_copy(update={"resume": config.run}))
    assert resumed.metrics()[-1]["step"] == 3


def test_early_stopping_counts_evaluations_without_improvement():
    def steps_until_stop(values, **settings):
        early, control = EarlyStopping("heldout/accuracy", **settings), Control(0, 99)
        for step, value in enumerate(values):
            early.on_evaluate({"step": step, "heldout/accuracy": value}, [], control)
            if control.requests:
                return step
        return None

    assert steps_until_stop([0.1, 0.2, 0.2, 0.1, 0.3], patience=2) == 3
    assert steps_until_stop([0.1, 0.2, 0.2, 0.3, 0.1], patience=2) is None
    assert steps_until_stop([0.1, 0.15, 0.19], patience=2, min_delta=0.1) == 2
    assert steps_until_stop([0.1, float("nan"), 0.2], patience=1) == 1


def test_early_stopping_stops_and_a_resumed_run_continues_its_count(make_config, tmp_path):
    """-heldout/length: random traces do not become shorter by three tokens within two evaluations."""

    def early():
        return EarlyStopping("-heldout/length", patience=2, min_delta=3.0)

    settings = {"steps": 6, "eval_every": 1}
    run = nrt.train(make_config(**settings), callbacks=[early()])
    assert run.heldout_steps() == [0, 1, 2]
    name = str(tmp_path / "again")
    run = nrt.train(make_config(run=name, **settings), callbacks=[Asks(step_1="stop")])
    assert run.heldout_steps() == [0, 1]
    run = nrt.train(make_config(run=name, resume=name, **settings), callbacks=[early()])
    assert run.heldout_steps() == [0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("heldout/acuracy",), "did you mean 'heldout/accuracy'"),
        (("reward/gain",), "reward/gain is not a held-out metric"),
        (("heldout/gain", 0), "patience=0"),
        (("heldout/gain", 1, -1.0), "min_delta=-1.0"),
    ],
)
def test_early_stopping_that_cannot_work(arguments, message):
    with pytest.raises(InputError, match=message):
        EarlyStopping(*arguments)


class Misspelt(Callback):
    def on_stepp(self, metrics, control): ...


class OfTransformers(Callback):
    def on_step(self, args, state, control, **kwargs): ...


@pytest.mark.parametrize(
    ("callbacks", "settings", "message"),
    [
        ([EarlyStopping()], {"data.valid": None}, "give an eval_dataset"),
        ([EarlyStopping()], {"heldout.checker": None}, "needs a checker of answers"),
        (EarlyStopping(), {}, r"give a list, such as \[EarlyStopping\(\)\]"),
        ([EarlyStopping], {}, "give objects of classes that derive from nrt.Callback"),
        ([print], {}, "give objects of classes"),
        ([Misspelt()], {}, "unknown method of a callback 'on_stepp'; did you mean 'on_step'?"),
        (
            [OfTransformers()],
            {},
            r"on_step takes other arguments; write on_step\(self, metrics, control\)",
        ),
    ],
)
def test_callbacks_that_cannot_work_leave_no_run(
    make_config, tmp_path, callbacks, settings, message
):
    run = tmp_path / "b"
    with pytest.raises(InputError, match=message):
        nrt.train(make_config(run=run, **settings), callbacks=callbacks)
    assert not run.exists()


def test_early_stopping_without_its_metric(make_config, tmp_path):
    """A source that the evaluation does not have."""
    config = make_config(run=tmp_path / "b")
    with pytest.raises(RunError, match=r"no heldout/accuracy/other, it has heldout/"):
        nrt.train(config, callbacks=[EarlyStopping("heldout/accuracy/other")])


def test_two_processes_follow_rank_0(gang, model_dir, pairs_file, tmp_path):
    """Both stop at the same step and evaluate and save together, though only rank 0 has the callback."""
    config = tiny_config(
        model_dir, pairs_file, str(tmp_path / "two"), steps=5, eval_every=0, save_every=0
    )
    assert gang(train_and_stop, config) == [["evaluated 2", "stopped 3"], []]
    run = nrt.load_run(tmp_path / "two")
    assert run.is_finished
    assert run.heldout_steps() == [0, 2]
    assert [path.name for path in run.checkpoints()] == ["step-000001", "step-000003"]
    resumed = nrt.train(config.model_copy(update={"resume": config.run}))
    assert resumed.metrics()[-1]["step"] == 5


class Stops(Callback):
    def __init__(self):
        self.calls = []

    def on_step(self, metrics, control):
        if control.step == 1:
            control.save()
        if control.step == 2:
            control.evaluate()
        if control.step == 3:
            control.stop()
            self.calls.append("stopped 3")

    def on_evaluate(self, metrics, rows, control):
        if control.step:
            self.calls.append(f"evaluated {control.step}")


def train_and_stop(config):
    torch.set_num_threads(1)
    callback = Stops()
    nrt.train(config, callbacks=[callback])
    return callback.calls
