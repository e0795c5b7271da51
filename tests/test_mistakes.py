"""Plausible mistakes of a first day: each message names cause, place and fix, and is short."""

import json
import sys
from dataclasses import replace
from typing import Any

import numpy
import pytest

import nrt
from nrt.cli.app import main
from nrt.objective import METHODS
from tests.trainer.conftest import model_dir, pairs_file  # noqa: F401

SMALL = [
    "threads=1", "steps=1", "batch=2", "traces=2", "max_trace_tokens=4", "max_answer_tokens=8",
    "max_prompt_tokens=16", "device=cpu",
]  # fmt: skip

PAIR = json.dumps({"question": "one ?", "answer": "two"}) + "\n"
FILES = {
    "other.csv": "q,a\none ?,two\n",
    "semicolons.csv": "question;answer\none ?;two\n",
    "gap.csv": "question,answer\none ?,two\ntwo ?,\n",
    "prose.jsonl": "one plus one ? two\n",
    "comma.json": f"[{PAIR.strip()},]",
    "lists.json": '{"a": [1], "b": [2]}',
    "nothing.jsonl": "",
    "mixed.jsonl": PAIR + '{"question": "one ?", "answer": 2}\n',
    "renamed.jsonl": PAIR + '{"question": "one ?", "anwser": "two"}\n',
    "several.jsonl": '{"question": "one ?", "answer": ["two", "three"]}\n',
    "sheet.xlsx": "PK",
    "nan.jsonl": PAIR + '{"question": "one ?", "answer": NaN}\n',
    "tabs.yaml": "optimizer:\n\tlr: 1\n",
}
TRAIN = "train model=tiny data.train=pairs.jsonl"
COMPARE = (
    "compare pairs model=tiny data.train=pairs.jsonl data.valid=pairs.jsonl heldout.checker=exact"
)


@pytest.fixture
def command(tmp_path, monkeypatch, capsys, model_dir, pairs_file):  # noqa: F811
    """Return a function that runs `nrt` in a folder with a model, pairs and files with mistakes.

    It maps arguments to (exit status, standard output, standard error).
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").symlink_to(model_dir)
    (tmp_path / "pairs.jsonl").write_bytes(pairs_file.read_bytes())
    (tmp_path / "alpaca.jsonl").write_text(
        json.dumps({"instruction": "what is one ?", "input": "", "output": "one"}) + "\n"
    )
    turns = [{"role": "user", "content": "one ?"}, {"role": "assistant", "content": "two"}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    (tmp_path / "asked.jsonl").write_text(json.dumps({"messages": turns[:1]}) + "\n")
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "latin.csv").write_bytes("question,answer\nwer ?,Müller\n".encode("latin-1"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "runs" / "earlier").mkdir(parents=True)
    (tmp_path / "runs" / "earlier" / "config.yaml").write_text("")
    (tmp_path / "runs" / "done" / "model").mkdir(parents=True)
    (tmp_path / "notokenizer").mkdir()
    for copy in (tmp_path / "runs" / "done" / "model", tmp_path / "notokenizer"):
        (copy / "config.json").write_bytes((model_dir / "config.json").read_bytes())
    (tmp_path / "runs" / "done" / "config.yaml").write_text("")
    (tmp_path / "splits").mkdir()
    for split in ("train", "test"):
        (tmp_path / "splits" / f"{split}-0.jsonl").write_bytes(pairs_file.read_bytes())

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["nrt", *arguments])
        status = 0
        try:
            main()
        except SystemExit as left:
            status = int(left.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train lr=1e-5", "unknown setting 'lr'; in nrt it is optimizer.lr"),
        ("train num_generations=4", "in nrt it is traces"),
        ("train report_to=wandb", "in nrt it is trackers"),
        ("train push_to_hub=true", "in nrt it is hub.repo"),
        ("train stesp=4", "did you mean 'steps'?"),
        ("train data=pairs.jsonl", "set one of them, such as data.train"),
        ("train model=tiny train=pairs.jsonl", "unknown setting 'train'; in nrt it is data.train"),
        (f"train tiny {'x' * 5000}", "' is not a setting; write key=value, for example steps=100"),
        ("train tiny pairs.jsonl", "'pairs.jsonl' is not a setting; write data.train=pairs.jsonl, or"),
        ("train pairs --top-p=1", "nrt has no setting top_p: "),
        ("train pairs --stpes 3", "nrt has no setting stpes; did you mean 'steps'. nrt train --help"),
        ("train pairs --foo", "--foo is no option of nrt train, and nrt has no setting foo. nrt train --help"),
        ("replay done", "runs/done is a folder; give the file of a skipped batch; this run has none"),
        ("train model=nowhere data.train=pairs.jsonl run=earlier", "runs/earlier already holds a run (config.yaml); choose"),
        ("compare earlier done", "nrt report RUN RUN puts runs side by side"),
        ("train --steps 3 model=tiny", "settings have no dashes: write steps=3. nrt train --help"),
        ("train pairs --lr=3", "settings have no dashes: write optimizer.lr=3"),
        ("train pairs --lora-rank model=tiny", "settings have no dashes: write lora.rank=VALUE"),
        ("train pairs --max-length 9", "no dashes: max-length is max_prompt_tokens (and max_trace"),
        ("plan pairs --steps 3", "--steps is no option of nrt plan; settings have no dashes: write steps=3"),
        ("compare pairs --num-seeds=3", "--num-seeds=3 is no option of nrt compare, and nrt has no setting num_seeds"),
        ("data check pairs.jsonl --model tiny", "--model is no option of nrt data check; settings have no"),
        ("compare pairs --study -x --lr=3", "--lr=3 is no option of nrt compare; settings have no"),
        ("report earlier --text -o page.html", "--output is the file of the page, which --text does not write"),
        ("train lora=true", "lora is a section of settings; set one of them, such as lora.rank"),
        ("train optimizer=adamw", "optimizer is a section of settings"),
        ("train steps=ten", "setting steps='ten': input should be a valid integer"),
        ("train gsm9k", "did you mean 'gsm8k'?"),
        ("train earlier", "to continue the run earlier: nrt resume earlier"),
        ("chat erlier", "a hub name or a .gguf file; did you mean 'earlier'?"),
        ("train model=tiney data.train=pairs.jsonl", "a hub name or a .gguf file; did you mean 'tiny'?"),
        ("train reward_funcs=len", "in nrt it is method (the reward is the reference answer's"),
        ("train model=tiny data.train=splits", "splits has files of several splits (test-0.jsonl, train-0.jsonl); name the files, or the split as in splits:SPLIT"),
        ("train model=tiny", "no training data given; set data.train=FILE"),
        ("train data.train=pairs.jsonl", "no model given; set model=FOLDER"),
        ("train model=tiny data.train=none.jsonl", "none.jsonl: no such file"),
        ("resume nothing", "runs/nothing is not a run"),
        ("report ./notarun", "notarun is not a run: it does not exist"),
        ("replay first", "give a file RUN/skipped/step-….json"),
        ("chat nothing", "there is no run runs/nothing, and model nothing is neither a folder nor"),
        ("compare pairs model=tiny data.train=pairs.jsonl --methods sft,rlpr", "set data.valid=FILE"),
        ("compare model=tiny data.train=pairs.jsonl --methods sft,rlpr", "set data.valid=FILE"),
        (
            "compare pairs model=tiny data.train=pairs.jsonl data.valid=pairs.jsonl --methods sft,rlpr",
            "--measure correct needs a checker of answers; set heldout.checker=exact",
        ),
        # data
        ("train model=tiny data.train=other.csv", "other.csv:2: no question and answer among the columns q, a; set"),
        ("train model=tiny data.train=semicolons.csv", "separate the columns of a CSV file by commas"),
        ("train model=tiny data.train=gap.csv", "gap.csv:3: the answer (column 'answer') is empty; fill it in"),
        ("train model=tiny data.train=prose.jsonl", "prose.jsonl:1: broken JSON at column 1: Expecting value; write one"),
        ("train model=tiny data.train=comma.json", "comma.json:1: broken JSON at column 41"),
        ("train model=tiny data.train=lists.json", "set data.rows to the key of the list"),
        ("train model=tiny data.train=nothing.jsonl", "nothing.jsonl:1: the file has no rows; write one"),
        ("train model=tiny data.train=mixed.jsonl", "mixed.jsonl:2: column 'answer' is a number here and text in row 1"),
        ("train model=tiny data.train=renamed.jsonl", "renamed.jsonl:2: no column 'answer' among question, anwser; set"),
        ("train model=tiny data.train=several.jsonl", "several.jsonl:1: column 'answer' is a list of answers; set data.ref"),
        ("train model=tiny data.train=asked.jsonl", "asked.jsonl:1: the last turn has the role 'user'; it must be the"),
        ("train model=tiny data.train=latin.csv", "latin.csv:2: byte 8 of the line is not UTF-8; convert the file"),
        ("train model=tiny data.train=sheet.xlsx", "the ending '.xlsx' is unknown; known endings: .jsonl, .json, .csv"),
        ("train model=tiny data.train=empty", "empty is a folder without data files; known endings: .jsonl"),
        (f"{TRAIN} data.valid=none.jsonl", "none.jsonl: no such file; give a file, or a datasets name"),
        (f"{TRAIN} data.columns.question=prompt", "pairs.jsonl:1: no column 'prompt' among question, answer, kind; set"),
        # model
        ("train model=./absent data.train=pairs.jsonl", "model ./absent: no such folder; give a folder written by"),
        ("train model=runs/done data.train=pairs.jsonl", "model runs/done is a run; give its model: runs/done/model"),
        ("train model=done data.train=pairs.jsonl", "model done is a run; give its model: runs/done/model"),
        ("train model=notokenizer data.train=pairs.jsonl", "model notokenizer has no tokenizer: "),
        ("train model=empty data.train=pairs.jsonl", "the folder has no config.json; give a folder written by"),
        ("train model=pairs.jsonl data.train=pairs.jsonl", "model pairs.jsonl is a file; give a folder written by"),
        ("train model=meta-llama/Llama-3.2-1B data.train=pairs.jsonl", "; give a folder written by save_pretrained, a hub"),
        # settings
        (f"{TRAIN} temperature=0", "setting temperature=0: input should be greater than 0"),
        (f"{TRAIN} traces=0", "traces=0: a group needs K ≥ 1 traces; set traces=8"),
        (f"{TRAIN} dtype=fp16", "setting dtype='fp16': input should be 'float32' or 'bfloat16'"),
        (f"{TRAIN} max_trace_tokens=100000", "tiny has positions for 64; set max_trace_tokens="),
        (f"{TRAIN} device=cuda:99", "device 'cuda:99' is not available on this machine; use device=auto"),
        (f"{TRAIN} quantize=nf4", "quantize=nf4 freezes the quantised weights; set lora.rank=16"),
        (f"{TRAIN} method=nrt-mg", "unknown method 'nrt-mg'; did you mean 'nrt-gm'?"),
        (f"{TRAIN} method=grpo", "method grpo is not offered: its reward is a verifier's; set method=rlvr"),
        (f"{TRAIN} method=rlvr", "method rlvr checks sampled answers; set heldout.checker=exact"),
        (f"{TRAIN} heldout.checker=my.checks:same", "importing my.checks failed"),
        (f"{TRAIN} keep_best=heldout/acc", "unknown metric 'heldout/acc'; did you mean 'heldout/accuracy'?"),
        ("train pairs steps = 3", "setting steps has no value; write steps=VALUE without blanks"),
        ("train pairs data.train = pairs.jsonl", "setting data.train has no value; write data.train=VALUE without blanks"),
        ("train pairs model= tiny", "a blank after model=: write model=tiny without it"),
        (f"{TRAIN} max_prompt_tokens=2", "longer than max_prompt_tokens=2; raise max_prompt_tokens"),
        ("train model=tiny data.train=nan.jsonl", "nan.jsonl:2: column 'answer' is nan, not text; fill it in"),
        ("train sequence_len=512", "in nrt it is max_prompt_tokens"),
        ("train pairs -m tiny", "settings have no dashes: write model=FOLDER, for example"),
        ("train use_peft=true", "in nrt it is lora.rank"),
        ("train beta=0.04", "nrt has none: the objective has no KL penalty"),
        ("resume erlier", "runs/erlier is not a run: it does not exist; did you mean 'earlier'?"),
        ("train resume=earlier run=copy", "a resumed run stays in its folder; leave out run="),
        ("settings learning_rate", "no setting is called 'learning_rate'; in nrt it is optimizer.lr"),
        ("train my.yaml", "recipe my.yaml: no such file; give a YAML file, or a recipe of `nrt recipes`"),
        ("train tabs.yaml", "tabs.yaml is not valid YAML"),
        ("train pairs resume=first", "a resumed run keeps its own recipe; leave out pairs: nrt resume first"),
        # other commands
        (f"{COMPARE} --methods sft --seeds 0", "--seeds 0: give at least 1 and at most 1,000"),
        ("compare smollm2-pairs model=tiny data.train=pairs.jsonl --methods sft", "nrt compare scores held-out questions; set data.valid=FILE"),
        ("plan pairs model=tiny --gpu h1000", "unknown GPU 'h1000'; did you mean 'h100'?"),
        ("eval tiny --benchmarks gsm9k", "unknown benchmark 'gsm9k'; did you mean 'gsm8k'?"),
        ("eval tiny --benchmarks gsm8k --data empty", "empty has no file of gsm8k: expected gsm8k/test.jsonl"),
        ("data check none.jsonl", "none.jsonl: no such file; give a file, or a datasets name"),
        ("data tulu --input empty -o drawn", "empty has no parquet files, nor has empty/data; give the folder"),
        ("demo --model qwen", "unknown model of the demo 'qwen'. Known: miniature, smollm2"),
        ("chat pairs.jsonl", "pairs.jsonl is a file; give a run, or a model's folder or name"),
    ],
)  # fmt: skip
def test_what_is_wrong_and_how_to_fix_it(command, arguments, message):
    status, _, err = command(*arguments.split())
    assert status == 2
    assert message in err
    assert len(err) < 700
    assert "Traceback" not in err
    assert err.count(",") <= 10, "no more than ten names"


def test_benchmarks_without_the_harness(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    status, _, err = command("eval", "tiny", "--benchmarks", "bbh")
    assert status == 2
    assert "benchmarks need lm-evaluation-harness" in err
    assert "pip install -e '.[eval]'" in err


def test_checked_data_can_be_trained_on(command):
    """Caps beyond the model's context are a fault of the check too, and its remedy fits."""
    given = ["pairs.jsonl", "model=tiny", "data.valid=pairs.jsonl", "heldout.checker=exact"]
    status, out, _ = command("data", "check", *given)
    assert status == 1
    fault = next(line for line in out.splitlines() if "has positions for 64" in line)
    caps = fault.partition("; set ")[2].partition(", or take")[0].split()
    assert [cap.partition("=")[0] for cap in caps] == ["max_answer_tokens", "max_trace_tokens"]
    status, out, _ = command("data", "check", *given, *caps)
    assert status == 0
    small = ["steps=1", "batch=2", "traces=2", "threads=1", "run=fits"]
    assert command("train", *given[1:], "data.train=pairs.jsonl", *caps, *small)[0] == 0


def test_a_dropped_row_does_not_count_for_the_context(command, tmp_path):
    long = {"question": "one " * 200, "answer": "two"}
    rows = (tmp_path / "pairs.jsonl").read_text() + json.dumps(long) + "\n"
    (tmp_path / "outlier.jsonl").write_text(rows)
    caps = ["max_prompt_tokens=40", "max_trace_tokens=40", "max_answer_tokens=8"]
    status, out, _ = command("data", "check", "outlier.jsonl", "model=tiny", *caps)
    assert "has positions for" not in out
    assert status == 0


def test_a_folder_of_save_to_disk(command, tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list([{"question": "one ?", "answer": "two"}]).save_to_disk(
        tmp_path / "saved"
    )
    status, _, err = command("train", "model=tiny", "data.train=saved")
    assert status == 2
    assert (
        "saved was written by save_to_disk of datasets; write a file with Dataset.to_parquet" in err
    )


def test_resume_with_another_setting_and_of_a_finished_run(command):
    """One setting is named, not two dicts; and a finished run says how to train further."""
    assert command("train", "model=tiny", "data.train=pairs.jsonl", *SMALL)[0] == 0
    status, _, err = command("resume", "run", "optimizer.lr=1")
    assert status == 2
    assert "the run to resume has optimizer.lr=1e-05, not 1.0; leave the setting out" in err
    assert len(err) < 200
    status, out, _ = command("resume", "run")
    assert status == 0
    assert "nothing to do: the run is at step 1 of 1; to train further" in out
    assert " steps=N" in out


def test_resume_with_fewer_steps_than_are_done_changes_nothing(command, tmp_path):
    pairs = ("model=tiny", "data.train=pairs.jsonl")
    assert command("train", *pairs, *SMALL, "steps=2")[0] == 0
    config = (tmp_path / "runs" / "run" / "config.yaml").read_bytes()
    status, _, err = command("resume", "run", "steps=1")
    assert status == 2
    assert "steps=1 is below the 2 steps that the run has done or begun" in err
    assert (tmp_path / "runs" / "run" / "config.yaml").read_bytes() == config


def test_a_check_that_fails_says_why(command):
    status, out, _ = command("data", "check", "gap.csv")
    assert status == 1
    assert "training would refuse the train data: 1 unusable rows" in out.splitlines()[-1]
    status, out, _ = command("data", "check", "pairs.jsonl", "model=tiny", "max_prompt_tokens=2")
    assert status == 1
    assert "no row is usable and within the caps" in out.splitlines()[-1]


def test_without_a_recipe_all_commands_take_pairs(command):
    """nrt data check reported other caps than nrt train had, and nrt plan took a setting for a recipe's name."""
    status, out, _ = command("data", "check", "pairs.jsonl", "--json")
    assert status == 0
    with_recipe = command("data", "check", "pairs.jsonl", "--recipe", "pairs", "--json")[1]
    assert json.loads(out) == json.loads(with_recipe)
    assert "pairs.jsonl" in command("data", "check", "pairs.jsonl")[1].splitlines()[-1]
    assert command("plan", "model=tiny", "steps=3", "--gpu", "RTX3090")[0] == 0


@pytest.mark.parametrize("file", ["pairs.jsonl", "alpaca.jsonl", "chat.jsonl"])
def test_no_recipe_reads_all_common_columns(command, file):
    status, out, err = command(
        "train", "model=tiny", f"data.train={file}", *SMALL, "method=sft", "batch=1"
    )
    assert status == 0, err
    assert "done: runs/run" in out


def test_a_run_that_exists_and_what_it_does_not_have(command):
    """Its name is taken; a checkpoint and held-out rows that it lacks; a folder in the way."""
    assert command(*TRAIN.split(), *SMALL, "run=first")[0] == 0
    for arguments, message in (
        (f"{TRAIN} {' '.join(SMALL)} run=first", "runs/first already holds a run"),
        (
            "export first new --step 7",
            "checkpoints that do: step-000001; choose one by its step (--step N",
        ),
        ("export first empty", "empty exists already; give a new folder"),
        (
            "judge first --model tiny",
            "runs/first has no held-out evaluation; train with data.valid=",
        ),
    ):
        status, _, err = command(*arguments.split())
        assert status == 2
        assert message in err


def test_a_batch_larger_than_the_data_is_reported(command, tmp_path):
    (tmp_path / "one.jsonl").write_text(PAIR)
    status, out, err = command("train", "model=tiny", "data.train=one.jsonl", *SMALL)
    assert status == 0, err
    assert "batch=2 prompts repeat within a step: the data have 1 rows; set batch=1" in out
    warnings = (tmp_path / "runs" / "run" / "warnings.jsonl").read_text()
    assert json.loads(warnings.splitlines()[0])["kind"] == "repeated-prompts"


@pytest.mark.parametrize(("rate", "high"), [("1", True), ("2e-2", True), ("1e-2", False)])
def test_a_learning_rate_that_overwrites_the_model_is_reported(command, rate, high):
    pairs = ("model=tiny", "data.train=pairs.jsonl")
    status, out, err = command("train", *pairs, *SMALL, f"optimizer.lr={rate}")
    assert status == 0, err
    assert ("overwrites a pretrained model within a few updates" in out) == high


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        (("tiny", []), {}, "no rows"),
        (
            ("tiny", {"question": ("one ?",), "answer": numpy.array(["two"])}),
            {},
            r"Dataset.from_dict\(…\), or a list with",
        ),
        (("tiny", {"train": "rows"}), {}, r"give one split, such as dataset\['train'\]"),
        (
            ("tiny", [{"question": "one ?", "answer": "two"}]),
            {"num_generation": 4},
            "in nrt num_generations is traces",
        ),
        (
            ("tiny", "pairs.jsonl", "pairs.jsonl"),
            {"checker": lambda answer, reference: answer == reference},
            "top level",
        ),
        (("tiny", "pairs.jsonl"), {"callbacks": [print]}, "callback"),
    ],
)
@pytest.mark.usefixtures("command")
def test_mistakes_in_python(arguments, settings, message):
    with pytest.raises(nrt.InputError, match=message):
        nrt.train(*arguments, **settings)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (
            lambda logp_KT, base_T: logp_KT,
            r"returned a tensor \[2, 3\] for .* return a tensor \[2\]",
        ),
        (lambda logp_KT, base_T: logp_KT.mean(), r"returned a tensor \[\] for"),
        (lambda logp_KT, base_T: None, "returned NoneType for"),
        (lambda logp_KT, base_T: logp_KT.nonsense(), "has no attribute 'nonsense'"),
    ],
)
@pytest.mark.usefixtures("command")
def test_a_reward_of_the_wrong_form_is_refused_before_anything_is_loaded(reward, message):
    method = replace(METHODS["nrt-gm"], name="mine", reward=reward)
    with pytest.raises(nrt.InputError, match=f"method mine: its reward fails .*{message}"):
        nrt.train("nowhere", "pairs.jsonl", method=method)
    METHODS.pop("mine")


def test_a_run_with_a_method_from_python_says_how_to_resume(command):
    method = replace(METHODS["nrt-gm"], name="mine")
    settings: dict[str, Any] = dict(argument.split("=") for argument in SMALL)
    nrt.train("tiny", "pairs.jsonl", method=method, run="own", **settings)
    METHODS.pop("mine")
    status, _, err = command("resume", "own", "steps=2")
    assert status == 2
    assert (
        "own was trained with the method 'mine', which is defined in Python; pass it again" in err
    )


def test_files_are_written_where_they_belong(command, tmp_path):
    """Histograms only when asked for, and the figures of one run into its folder."""
    assert command(*TRAIN.split(), *SMALL, "run=first")[0] == 0
    before = {path.name for path in tmp_path.iterdir()}
    status, out, _ = command("data", "stats", "pairs.jsonl")
    assert status == 0
    assert "written" not in out
    assert command("figures", "first")[0] == 0
    assert (tmp_path / "runs" / "first" / "figures" / "dynamics.png").is_file()
    assert {path.name for path in tmp_path.iterdir()} == before
    assert command("-h")[0] == command("train", "-h")[0] == 0
