"""Updates that are not finite are skipped, kept and replayed; traces that collapse are told of."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import nrt
from nrt.cli.app import app
from nrt.config import WatchConfig
from nrt.errors import Interrupted, RunError
from nrt.objective import METHODS
from nrt.trainer import replay
from nrt.trainer.resolve import resolve_names
from nrt.trainer.setup import in_one_process, prepare
from nrt.trainer.step import update
from nrt.trainer.watch import Watch
from tests.steps import collect, local_engine
from tests.trainer.conftest import write_pairs
from tests.trainer.test_several import in_both
from tests.trainer.test_train import InterruptAt, assert_same_run, weights


@pytest.fixture
def bad(make_config, tmp_path, monkeypatch):
    """bad(*rows with a long answer, **settings) → a config whose batches of 2 come in order."""

    from tests.trainer.breaks import BREAKS

    METHODS.pop(BREAKS.name, None)  # its import brought it, and it must be gone afterwards
    monkeypatch.setitem(METHODS, BREAKS.name, BREAKS)

    def make(*long, rows=8, **settings):
        answers = ["the sum is so two" if i in long else "two" for i in range(rows)]
        data = [
            {"question": f"what is {['one', 'two'][i % 2]} ?", "answer": answer}
            for i, answer in enumerate(answers)
        ]
        values = {
            "batch": 2,
            "steps": rows // 2,
            "method": "breaks",
            "plugins": "tests.trainer.breaks",
            "eval_every": 0,
        }
        values |= {
            "data.train": str(write_pairs(tmp_path / "rows.jsonl", data)),
            "data.columns.source": None,
            "data.shuffle": False,
        }
        return make_config(**values | settings)

    return make


def guarded(run):
    return [record.get("guard/skipped") for record in run.metrics() if record["step"]]


@pytest.mark.parametrize("updates", [1, 2])
def test_an_update_that_is_not_finite_is_skipped(bad, updates):
    """The third row is in the second step, and with two updates a rollout in that step's first one."""
    run = nrt.train(bad(2, updates_per_rollout=updates, save_every=1, keep=9))
    assert guarded(run) == [0, 1, 0, 0]
    done = [updates, 2 * updates - 1, 3 * updates - 1, 4 * updates - 1]
    assert [record["optim/updates"] for record in run.metrics()[-4:]] == done
    (warning,) = run.warnings()
    name = "step-000002" if updates == 1 else "step-000002+0"
    assert (warning["kind"], warning["step"], warning["file"]) == (
        "skipped-update",
        2,
        f"skipped/{name}.json",
    )
    batch = json.loads((run.path / warning["file"]).read_text())
    assert batch["loss"]["total"] == "nan"
    assert [group["id"] for group in batch["groups"]] == ["rows.jsonl:3", "rows.jsonl:4"][
        : 2 // updates
    ]
    assert all(
        group["prompt_ids"] and group["answer_ids"] and len(group["traces"]) == 3
        for group in batch["groups"]
    )
    before, after = (
        load_file(folder / "model" / "model.safetensors") for folder in run.checkpoints()[:2]
    )
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items()) == (
        updates == 1
    )
    assert all(tensor.isfinite().all() for tensor in weights(run).values())


def test_too_many_in_a_row_end_the_run(bad):
    with pytest.raises(RunError, match=r"max_skipped=3 updates in a row .* in step 3;") as ended:
        nrt.train(bad(0, 2, 5))
    assert ended.value.exit_status == 1


def test_one_that_is_finite_between_them_breaks_the_row(bad):
    run = nrt.train(bad(0, 2, 6, 8, rows=10))
    assert guarded(run) == [1, 1, 0, 1, 1]


def test_all_processes_skip_alike(gang, bad, tmp_path):
    """The bad prompt is in one of them."""
    several = in_both(gang, bad(2, run=str(tmp_path / "several")))
    one = nrt.train(bad(2, run=str(tmp_path / "one")))
    assert not isinstance(several, str)
    assert guarded(several) == guarded(one) == [0, 1, 0, 0]
    assert [w["file"] for w in several.warnings()] == [w["file"] for w in one.warnings()]
    for name, tensor in weights(one).items():
        torch.testing.assert_close(weights(several)[name], tensor, atol=1e-4, rtol=1e-3)


def test_interrupted_about_a_skipped_update(bad, tmp_path):
    settings = {"updates_per_rollout": 2, "save_every": 0}
    whole = nrt.train(bad(2, run=str(tmp_path / "whole"), **settings))
    for n in range(3, 8):
        run = str(tmp_path / f"cut-{n}")
        with pytest.raises(Interrupted):
            nrt.train(bad(2, run=run, **settings), listener=InterruptAt(n))
        again = nrt.train(bad(2, run=run, resume=run, **settings))
        assert_same_run(whole, again)
        assert [w["file"] for w in again.warnings()] == [w["file"] for w in whole.warnings()]
        assert (again.path / "skipped" / "step-000002+0.json").is_file()


def test_a_gradient_alone_is_enough(make_config):
    """The loss is finite, one parameter's gradient is not: weights, moments and schedule stay."""
    parts = prepare(make_config())
    learner, engine = parts.learner, local_engine(parts)
    master = next(iter(engine.weights.masters.values()))
    handle = master.register_hook(lambda gradient: gradient * float("inf"))
    before = {n: m.detach().clone() for n, m in engine.weights.masters.items()}
    groups = collect(learner, parts.draw, 2, seed=1).groups
    stats = update(learner, groups)
    assert stats.skipped
    assert torch.tensor(stats.total).isfinite()
    assert all(torch.equal(before[n], m) for n, m in engine.weights.masters.items())
    assert not engine.optimizer.state
    handle.remove()
    assert not update(learner, groups).skipped


def test_a_replay_says_where(bad, tmp_path, capsys):
    """The reward as it was given, what followed from it; and under weights that are broken themselves, these first."""
    run = nrt.train(bad(2, save_every=1, keep=9))
    file = run.path / "skipped" / "step-000002.json"
    said = []
    found = replay(file, say=said.append)
    assert str(run.checkpoints()[0]) in said[0]
    assert found[0] == "reward of trace 1 of rows.jsonl:3, as it was saved: nan"
    assert {"loss, trace: nan", "loss, total: nan"} <= set(found)
    assert not any(
        "rows.jsonl:4" in finding or finding.startswith(("weight", "log-prob")) for finding in found
    )
    assert any(finding.startswith("gradient of ") for finding in found)
    app(["replay", str(file)], standalone_mode=False)
    assert "reward of trace 1 of rows.jsonl:3, as it was saved: nan\n" in capsys.readouterr().out

    checkpoint = run.checkpoints()[1]
    tensors = load_file(checkpoint / "model" / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name][0, 0] = float("inf")
    save_file(tensors, checkpoint / "model" / "model.safetensors", metadata={"format": "pt"})
    found = replay(file, checkpoint, say=said.append)
    assert found[0].startswith(f"weight {name}: 1 of ")
    assert found[1].startswith(
        "log-probability of token 1 ('<|think_start|>', START) of trace 1 of rows.jsonl:3: "
    )


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"engine": "verl", "nodes": 2, "gpus_per_node": 8},
        {"sampler": "vllm", "vllm": {"urls": ["http://gpu-1:8000"]}},
        {"overlap": True},
    ],
)
def test_a_batch_is_replayed_in_one_process_whatever_the_run_had(bad, elsewhere):
    config = in_one_process(bad().model_copy(update=elsewhere))
    assert resolve_names(config).method.name == "breaks"
    assert config == in_one_process(bad())


def test_what_cannot_be_replayed(bad):
    run = nrt.train(bad(2, save_every=1))
    with pytest.raises(nrt.InputError, match="not a skipped batch"):
        replay(run.path / "metrics.jsonl")


def watched(values, before=(), **shares):
    """Steps at which a sequence of trace lengths is told of."""
    watch = Watch(WatchConfig(steps=2, **shares), [{"trace/length": value} for value in before])
    return [i for i, value in enumerate(values, start=1) if watch.see({"trace/length": value})]


def test_the_watch_by_hand():
    """The early mean is 10, its quarter 2.5; means of two: 6, 2 (told of), and then never again."""
    assert watched([10, 10, 10, 2, 2, 2, 9, 9, 1, 1]) == [5]
    assert watched([10, 10, 10, 3, 2, 3]) == []
    assert watched([10, 10, 1, 1], length=0.0) == []
    assert watched([10, None, 10, float("nan"), 1, 1]) == [6]
    assert watched([2, 2], before=[10, 10, 10]) == [2]
    assert watched([2, 2], before=[10, 10, 1, 1]) == []


def test_a_lost_readout_is_warned_of_within_ten_steps():
    """Means of five: .9 at first, then .42, below .9 · .5. A readout of .5 is allowed."""

    def told(late, **shares):
        watch = Watch(WatchConfig(**shares))
        values = [0.9] * 5 + late
        return [
            (step, warning.kind, warning.metric)
            for step, value in enumerate(values, start=1)
            for warning in watch.see({"readout/probability": value})
        ]

    lost = [0.6, 0.5, 0.4, 0.3, 0.3]
    assert told(lost) == [(10, "readout", "readout/probability")]
    assert told([0.5] * 9) == []
    assert told(lost, readout=0.0) == []


def test_end_tokens_are_warned_of_after_fifty_steps():
    """Shares of .3 until step 49 are silent; at step 50 the mean of the last two is .3, above .2. A share of .2 is allowed."""

    def told(share):
        watch = Watch(WatchConfig(steps=2))
        return [
            step for step in range(1, 60) if watch.see({"step": step, "trace/end_token": share})
        ]

    assert told(0.3) == [50]
    assert told(0.2) == []
    assert (
        Watch(WatchConfig(steps=2, end_token=0.0)).see({"step": 60, "trace/end_token": 1.0}) == []
    )


@pytest.mark.parametrize(
    ("shares", "warned"),
    [((0.0, 0.05, 0.59, 0.7), [2]), ((0.6, 0.65, 0.2), []), ((0.1, 0.25), [1])],
)
def test_markers_that_spread_into_answers_are_warned_of(shares, warned):
    """Above the first evaluation's share by more than .1, once."""
    watch = Watch(WatchConfig())
    told = [watch.see({"step": 10 * i, "heldout/answer_marker": x}) for i, x in enumerate(shares)]
    assert [i for i, warnings in enumerate(told) if warnings] == warned
    for i in warned:
        assert told[i][0].kind == "answer-marker"
        assert f"{shares[i]:.0%} of the held-out answers (" in told[i][0].message


def test_a_sampler_that_is_not_the_trainer_is_warned_of_whatever_it_is():
    watch = Watch(WatchConfig(), max_gap=1e-3)
    assert watch.see({"sampler/logp_gap": 1e-4, "sampler/behind": 0.0}) == []
    assert watch.see({"sampler/logp_gap": 0.45, "sampler/behind": 0.5}) == [], (
        "traces of earlier weights"
    )
    (warning,) = watch.see({"sampler/logp_gap": 0.45, "sampler/behind": 0.0})
    assert warning.kind == "sampler-gap"
    assert "0.45 nats" in warning.message
    assert watch.see({"sampler/logp_gap": 0.45, "sampler/behind": 0.0}) == [], "once"


def test_a_run_that_collapses_is_told_so(make_config):
    """Shares of 1: any fall counts, and a high learning rate brings one."""
    shares = {"watch.steps": 2, "watch.entropy": 1.0, "watch.length": 1.0, "watch.beats_null": 1.0}
    run = nrt.train(make_config(steps=8, eval_every=0, **shares, **{"optimizer.lr": 3e-2}))
    told = [w for w in run.warnings() if w["kind"] not in ("learning-rate", "held-out-is-trained")]
    assert {w["kind"] for w in told} == {"collapse"}
    assert len({w["metric"] for w in told}) == len(told) > 0
    assert all("§4.3" in w["message"] and w["message"].startswith(w["metric"]) for w in told)
