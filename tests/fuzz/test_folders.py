"""What fuzzing found in folders of `nrt eval`, `nrt judge`, `nrt compare` and engine=verl, each by itself."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from nrt.analysis.report.data import build_report
from nrt.backends.verl.engine import VerlEngine
from nrt.config import build_config
from nrt.data import Chat
from nrt.errors import InputError, RunError
from nrt.eval.questions import EvalQuestion, ModelReply, ReplyStore, Response
from nrt.models import add_marker_tokens, load_configs, load_tokenizer
from nrt.run import load_run
from nrt.serving.export import export_run
from nrt.study import open_study
from nrt.study.study import read_variants, run_path
from nrt.trainer.cluster_setup import BASE_FOLDER, _initial_model
from nrt.types import Example, Pair
from tests.fuzz import folders
from tests.fuzz.inputs import LAUGHS
from tests.fuzz.outcome import contents
from tests.golden.make import FOLDER, VERL
from tests.runs import write_evaluation, write_run
from tests.trainer.conftest import write_model

# --- nrt eval ---

WHOLE = Response("so", 1, True, "7", 1)


def kept(folder: Path, question: EvalQuestion, *lines: Any) -> ReplyStore:
    """The replies of a folder with these lines."""
    folder.mkdir()
    text = (
        line if isinstance(line, str) else json.dumps(line | {"key": question.key})
        for line in lines
    )
    (folder / "t.0.jsonl").write_text("".join(line + "\n" for line in text))
    return ReplyStore(folder)


SAID = {
    "trace": "so",
    "trace_tokens": 1,
    "finished": True,
    "answer": "7",
    "answer_tokens": 1,
    "cut": False,
    "logps": [],
}


@pytest.mark.parametrize(
    "line",
    [
        "3",
        "[" * 10**5,
        {"said": [SAID]},
        {"said": "x", "seconds": 1.0},
        {"said": [SAID | {"telepathy": 1}], "seconds": 1.0},
        {"said": [SAID | {"answer": None}], "seconds": 1.0},
        {"said": [SAID | {"trace_tokens": 10**400}], "seconds": 1.0},
        {"said": [SAID | {"logps": [math.nan]}], "seconds": 1.0},
        {"said": [SAID], "seconds": 1e308},
        {"said": [], "seconds": 1.0},
        {"said": [SAID, SAID], "seconds": 1.0},
        {"said": [SAID | {"logps": [-1.0]}], "seconds": 1.0},
    ],
)
def test_a_line_that_is_no_reply_is_asked_again(line: Any, tmp_path: Path) -> None:
    question = EvalQuestion("t", ())
    replies = kept(tmp_path / "replies", question, line)
    assert replies.missing([question]) == [question]
    replies.add("t", [ModelReply(question.key, (WHOLE,), 1.0)])
    assert ReplyStore(tmp_path / "replies")[question].said == (WHOLE,)


def test_a_reply_of_another_shape_hides_none_that_answers(tmp_path: Path) -> None:
    question = EvalQuestion("t", (), choices=("a", "b"))
    fits = SAID | {"logps": [-1.0, -2.0]}
    replies = kept(
        tmp_path / "replies",
        question,
        {"said": [fits], "seconds": 1.0},
        {"said": [SAID], "seconds": 1.0},
    )
    assert replies.missing([question]) == []
    assert replies[question].said[0].logps == (-1.0, -2.0)


def test_a_folder_in_the_place_of_replies_is_one_line(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(folders._evaluated(0), run)
    file = next((run / "eval" / "replies").rglob("*.jsonl"))
    file.unlink()
    file.mkdir()
    with pytest.raises(
        RunError,
        match=r"cannot be written \(Is a directory\); move away what is there, then run the same command again",
    ):
        folders._evaluate(run)


def test_a_report_names_the_evaluation_that_cannot_be_read(tmp_path: Path) -> None:
    run = write_evaluation(write_run(tmp_path / "run", groups=1))
    (run / "eval" / "eval.json").unlink()
    (run / "eval" / "eval.json").write_text('{"scores": [3]}')
    with pytest.raises(InputError, match=r"run/eval holds what nrt does not write there"):
        build_report([run])
    (run / "eval" / "eval.json").write_text("{}")
    (run / "eval" / "rows" / "more.jsonl").mkdir()
    with pytest.raises(InputError, match=r"run/eval/rows/more.jsonl is a folder, not a plain file"):
        build_report([run])


# --- nrt judge ---


@pytest.mark.parametrize(
    "text",
    ['{"judge": {}, "steps": ["x"]}', '{"judge": {}, "steps": [{"step": "x"}]}', "[" * 10**5],
)
def test_a_summary_of_another_shape_is_found_before_anything_is_asked(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NRT_CACHE", str(tmp_path / "cache"))
    run = write_run(tmp_path / "run", groups=1)
    (run / "judge").mkdir()
    (run / "judge" / "judge.json").write_text(text)
    with pytest.raises(
        InputError, match=r"judge\.json holds what nrt does not write there .*judge again"
    ):
        folders._judge(run, samples=3)
    assert not (tmp_path / "cache").exists()


def test_held_out_rows_of_another_shape_are_one_line(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", groups=1)
    (run / "heldout" / "step-000001.jsonl").write_text('{"id": 3}\n')
    with pytest.raises(InputError, match=r"heldout holds what nrt does not write there \(KeyError"):
        folders._judge(run, samples=3)


def test_a_verdict_of_another_shape_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NRT_CACHE", str(tmp_path / "cache"))
    run = write_run(tmp_path / "run", groups=1)
    folders._judge(run, samples=3)
    for number, file in enumerate(sorted((tmp_path / "cache" / "judge").iterdir())):
        verdict = json.loads(file.read_text())
        file.write_text(
            "[" * 10**5
            if number == 0
            else json.dumps(verdict | ({"score": "x"} if number == 1 else {"prompt_tokens": [1]}))
        )
    folders._judge(run, samples=3)
    assert load_run(run).metrics()[-1]["judge/quality"] == 0.5


# --- nrt compare ---


@pytest.fixture
def study(tmp_path: Path) -> Path:
    shutil.copytree(folders._studies() / "a", tmp_path / "study")
    return tmp_path / "study"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (b"\xff", "is not UTF-8"),
        (b"recipe: [", "is not valid YAML"),
        (f"{LAUGHS}recipe: *a11\n".encode(), "more than 10,000 values"),
        (b"3", "study.yaml holds what this nrt does not write there"),
        ({"telepathy": True}, r"\(telepathy: .*install the nrt that wrote it"),
        ({"variants": ["sft"]}, r"\(variants: "),
        ({"variants": {"sft": "method=sft"}}, r"\(variants.sft: "),
        ({"settings": [3]}, r"\(settings.0: "),
        ({"seeds": "2"}, r"\(seeds: "),
        ({"seeds": True}, r"\(seeds: "),
        ({"seeds": 10**400}, "a number of 401 characters"),
        ({"seeds": 10**40}, "at most 1,000"),
        ({"baseline": "nobody"}, "unknown baseline"),
    ],
)
def test_a_study_that_nrt_did_not_write(
    change: bytes | dict[str, Any], said: str, study: Path
) -> None:
    file = study / "study.yaml"
    file.write_bytes(
        change
        if isinstance(change, bytes)
        else yaml.safe_dump(yaml.safe_load(file.read_text()) | change).encode()
    )
    with pytest.raises(InputError, match=said) as found:
        folders._go_on(study, "logp")
    assert len(str(found.value)) < 1000


@pytest.mark.parametrize("name", ["../../elsewhere", "a/b", "", "a\nb", "x" * 300])
def test_a_variant_has_a_name_that_a_folder_can_have(name: str, study: Path) -> None:
    values = yaml.safe_load((study / "study.yaml").read_text())
    (study / "study.yaml").write_text(
        yaml.safe_dump(values | {"variants": {**values["variants"], name: []}})
    )
    with pytest.raises(InputError, match="a name that a folder can have"):
        folders._go_on(study, "logp")


@pytest.mark.parametrize(
    "text",
    [
        "variants: {",
        "variants: {a: 3}",
        "variants: {a: [3]}",
        "variants: {}",
        "[" * 5000,
        f"{LAUGHS}variants: *a11",
    ],
)
def test_variants_that_are_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "v.yaml").write_text(text)
    with pytest.raises(InputError, match=r"must hold `baseline|is not valid YAML|more than 10,000"):
        read_variants(str(tmp_path / "v.yaml"))


@pytest.mark.parametrize(
    ("origin", "name", "was"),
    [
        ("a", "sft-seed0", "method='nrt-gm'"),
        ("a", "nrt-gm-seed1", "seed=0"),
        ("b", "nrt-gm-seed0", "traces=4"),
    ],
)
def test_a_run_of_another_variant_seed_or_study_is_not_taken_for_this_one(
    origin: str, name: str, was: str, study: Path
) -> None:
    shutil.rmtree(study / "runs" / name)
    shutil.copytree(folders._studies() / origin / "runs" / "nrt-gm-seed0", study / "runs" / name)
    with pytest.raises(
        InputError,
        match=f"was trained with {was}, which is not the study's for .*trains the run again",
    ):
        open_study(str(study), folders._terms("a"))


def test_settings_that_may_change_when_a_run_goes_on_may_differ(study: Path) -> None:
    file = study / "runs" / "sft-seed0" / "config.yaml"
    file.write_text(
        yaml.safe_dump(
            yaml.safe_load(file.read_text()) | {"device": "cpu", "save_every": 7}, sort_keys=False
        )
    )
    open_study(str(study), folders._terms("a"))


def test_numbers_that_are_null_are_left_out_of_the_confidence(study: Path) -> None:
    file = run_path(study, "nrt-gm", 0) / "heldout" / "step-000002.jsonl"
    first, *rest = map(json.loads, file.read_text().splitlines())
    first["token_logp"][0] = None
    file.write_text("".join(json.dumps(row) + "\n" for row in (first, *rest)))
    folders._go_on(study, "logp")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("metrics.jsonl", {"trace/length": "x"}),
        ("metrics.jsonl", {"trace/length": [1]}),
        ("heldout/step-000002.jsonl", {"token_logp": ["x"]}),
    ],
)
def test_runs_that_cannot_be_drawn_leave_the_results_as_they_were(
    name: str, change: dict[str, Any], study: Path
) -> None:
    file = run_path(study, "nrt-gm", 0) / name
    file.write_text(
        "".join(
            json.dumps(json.loads(line) | change) + "\n" for line in file.read_text().splitlines()
        )
    )
    (study / "compare.json").write_text("as before")
    with pytest.raises(InputError, match="holds what nrt does not write there"):
        folders._go_on(study, "logp")
    assert (study / "compare.json").read_text() == "as before"


def test_a_source_that_is_a_number_is_a_family(study: Path) -> None:
    for run in (study / "runs").iterdir():
        file = run / "heldout" / "step-000002.jsonl"
        file.write_text(
            "".join(
                json.dumps(json.loads(line) | {"source": 3}) + "\n"
                for line in file.read_text().splitlines()
            )
        )
    folders._go_on(study, "logp")
    assert "| 3 (12) |" in (study / "compare.md").read_text()


# --- nrt export, engine=verl ---


def test_a_card_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", groups=1)
    (run / "heldout" / "step-000001.jsonl").write_text('{"logp": "x"}\n')
    with pytest.raises(InputError, match="holds what nrt does not write there"):
        export_run(load_run(run), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_the_head_of_a_base_models_card_may_be_anything(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "README.md").write_text("---\nlicense: 2026-13-45\n---\n")
    run = write_run(tmp_path / "run", groups=1)
    values = yaml.safe_load((run / "config.yaml").read_text()) | {"model": str(tmp_path / "base")}
    (run / "config.yaml").write_text(yaml.safe_dump(values))
    export_run(load_run(run), tmp_path / "out")
    assert "base" in (tmp_path / "out" / "README.md").read_text()


def test_a_checkpoint_of_other_workers_or_another_engine_is_refused() -> None:
    config = load_run(VERL / "run").config
    state = json.loads((VERL / "run" / "checkpoints" / "step-000002" / "state.json").read_text())

    def load(folder: Path, workers: int, state: dict[str, Any] = state) -> VerlEngine:
        given = config.model_copy(update={"gpus_per_node": workers})
        no_method: Any = None
        engine = VerlEngine(
            given, no_method, 1, prepare_model=lambda run: run, finish_model=lambda folder: None
        )
        engine.load(folder / "checkpoints" / "step-000002", state)
        return engine

    assert load(VERL / "run", 2).version == 2
    with pytest.raises(
        InputError,
        match=r"extra_state_world_size_3_rank_0\.pt, so it is not of engine=verl with 3 workers",
    ):
        load(VERL / "run", 3)
    with pytest.raises(InputError, match="has no extra_state_world_size_2"):
        load(FOLDER / "0.1.0", 2)
    with pytest.raises(TypeError):
        load(VERL / "run", 2, state | {"version": "x"})


def test_an_initial_model_that_is_damaged_is_made_anew(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    config = build_config({"model": str(model), "engine": "verl"})
    tokenizer = load_tokenizer(str(model))
    add_marker_tokens(tokenizer, config.markers)
    chat = Chat(tokenizer, config.markers)
    pairs = [Pair(Example("x:1", (), ""), (5, 6, 7), (8, 9))]

    def made() -> Path:
        return _initial_model(
            config, chat, load_configs(str(model)), tmp_path / "run", pairs, knows_markers=False
        )

    before = contents(made())
    weights = tmp_path / "run" / BASE_FOLDER / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert contents(made()) == before
    when = weights.stat().st_mtime_ns
    assert contents(made()) == before
    assert weights.stat().st_mtime_ns == when  # whole, it is left alone
