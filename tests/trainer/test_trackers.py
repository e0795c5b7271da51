from importlib.util import find_spec

import pytest

from nrt.config import Config
from nrt.errors import InputError
from nrt.trainer.trackers import TRACKERS, TrackerGroup, check_trackers, flatten, open_trackers

pytest.importorskip("accelerate", reason="trackers go through accelerate.tracking")


def scalars(folder, name):
    """(step, value) pairs of the event files."""
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = module.EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_tensorboard_gets_every_number(tmp_path):
    pytest.importorskip("tensorboard")
    tracker = open_trackers(["tensorboard"], "mine", tmp_path, Config().model_dump(mode="json"))
    tracker.log({"step": 1, "reward/gain": 0.25, "trace/length": 12, "heldout/logp": None}, step=1)
    tracker.log({"step": 2, "reward/gain": 0.5}, step=2)
    tracker.close()
    assert scalars(tmp_path / "tensorboard", "reward/gain") == [(1, 0.25), (2, 0.5)]
    assert scalars(tmp_path / "tensorboard", "trace/length") == [(1, 12.0)]


def test_tensorboard_hides_what_a_resumed_run_does_again(tmp_path):
    pytest.importorskip("tensorboard")
    for first, values in ((0, {1: 10.0, 2: 20.0, 3: 99.0}), (2, {3: 30.0, 4: 40.0})):
        tracker = open_trackers(["tensorboard"], "mine", tmp_path, {}, step=first)
        for step, value in values.items():
            tracker.log({"reward/gain": value}, step=step)
        tracker.close()
    assert scalars(tmp_path / "tensorboard", "reward/gain") == [
        (1, 10.0),
        (2, 20.0),
        (3, 30.0),
        (4, 40.0),
    ]


def test_no_trackers_do_nothing(tmp_path):
    tracker = open_trackers([], "mine", tmp_path, {})
    tracker.log({"reward/gain": 1.0}, step=1)
    tracker.close()
    assert not list(tmp_path.iterdir())


def test_an_unknown_tracker_names_the_nearest(tmp_path):
    with pytest.raises(
        InputError, match="unknown tracker 'tensorbord'; did you mean 'tensorboard'"
    ):
        open_trackers(["tensorbord"], "mine", tmp_path, {})


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_package_says_what_to_install(name, tmp_path):
    if find_spec(name) is not None:
        check_trackers([name])
        return
    with pytest.raises(InputError, match=f"pip install {name}"):
        open_trackers([name], "mine", tmp_path, {})


def test_a_tracker_that_cannot_start_says_why_and_what_to_do(tmp_path):
    pytest.importorskip("tensorboard")
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    with pytest.raises(InputError, match=r"tracker tensorboard cannot start: .* leave it out"):
        open_trackers(["tensorboard"], "mine", tmp_path, {})


def test_closing_twice_is_harmless():
    tracker = TrackerGroup()
    tracker.close()
    tracker.close()


def test_flatten_leaves_nothing_nested():
    flat = flatten(Config().model_dump(mode="json"))
    assert flat["optimizer.lr"] == 1e-5
    assert flat["data.columns.question"] == "None"
    assert all(isinstance(value, (bool, int, float, str)) for value in flat.values())
