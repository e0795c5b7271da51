"""`nrt export`: the hub's library reads the model card, and the code in the card runs."""

from __future__ import annotations

import ast
import json
import re

import pytest
from huggingface_hub import ModelCard

from nrt.analysis.stats import mean_interval, wilson
from nrt.config import MarkersConfig, build_config
from nrt.errors import InputError
from nrt.eval.reasoner import find_model, open_reasoner
from nrt.run import RunWriter, load_run
from nrt.serving.card import model_card
from nrt.serving.export import check_repository, export_run
from nrt.serving.layout import write_layout
from nrt.system.files import model_fingerprint
from nrt.trainer import train
from tests.cli.test_cli import nrt_command, small  # noqa: F401
from tests.trainer.conftest import make_config, model_dir, pairs_file  # noqa: F401


@pytest.fixture
def run(make_config, tmp_path):  # noqa: F811
    return train(make_config(run=str(tmp_path / "run"), steps=4))


def test_the_card_has_settings_and_measurements(run, tmp_path, pairs_file):  # noqa: F811
    export_run(run, tmp_path / "mine")
    card = ModelCard.load(tmp_path / "mine" / "README.md")
    header = card.data.to_dict()
    assert header["library_name"] == "transformers"
    assert "base_model" not in header  # the base model is a folder, without a name on the hub
    assert "license" not in header
    assert "# mine" in card.text
    for text in (
        "`nrt-ws-neg-log-p`, `recommended`",
        "| 4, of 4 prompts with 3 traces each |",
        f"`{pairs_file.name}`",
        "2602.11549",
    ):
        assert text in card.text, text
    rows = run.heldout(4)
    right = sum(row["correct"] for row in rows)
    assert "step 0 (6 rows) | step 4 (6 rows) | difference" in card.text
    line = rf"accuracy, after its own trace \| share \| [\d., \[\]]+ \| {re.escape(str(wilson(right, 6)))} \|"
    assert re.search(line, card.text)
    before = {row["id"]: row["logp"] for row in run.heldout(0)}
    gain = mean_interval([[[row["logp"] - before[row["id"]] for row in rows]]])
    line = f"after its own trace | nats per token | .* | {gain} |"
    assert re.search(re.escape(line).replace(re.escape(".*"), ".*"), card.text)
    assert str(tmp_path) not in card.content
    export_run(run, tmp_path / "earlier", step=2)
    assert "step 2 (6 rows)" in (tmp_path / "earlier" / "README.md").read_text()


def test_a_card_names_data_sets_of_the_hub_and_benchmarks(tmp_path):
    run = tmp_path / "run"
    config = build_config({"model": "some/base", "data": {"train": "openai/gsm8k:main:train"}})
    with RunWriter.create(run, config) as writer:
        writer.metrics({"step": 3, "data/epoch": 0.25})
    for folder in ("model", "eval"):
        (run / folder).mkdir()
    weights = run / "model" / "model.safetensors"
    weights.write_bytes(b"first")
    scores = [
        {"benchmark": "gsm8k", "score": 0.5, "stderr": 0.01, "rows": 2500},
        {"benchmark": "one", "score": 1.0, "stderr": None, "rows": 1},
    ]
    document = {
        "fingerprint": model_fingerprint(str(run / "model"), thinks=True, backend="hf"),
        "settings": {"thinks": True, "backend": "hf", "rows": "of the hub, 2500 of each benchmark"},
        "scores": scores,
    }
    (run / "eval" / "eval.json").write_text(json.dumps(document))
    card = ModelCard(model_card(load_run(run), "me/my-model"))
    assert card.data.to_dict()["datasets"] == ["openai/gsm8k"]
    line = "| training data | `openai/gsm8k:main:train`; 0.25 passes over its rows |"
    assert line in card.text
    assert "| gsm8k | 0.500 ± 0.020 | 2,500 |\n| one | 1.000 | 1 |" in card.text
    assert "by `nrt eval` (rows: of the hub, 2500 of each benchmark)" in card.text
    assert "# my-model\n" in card.text
    assert 'from_pretrained("me/my-model")' in card.text
    assert "gsm8k | 0.5" not in model_card(load_run(run), "my-model", step=3)
    weights.write_bytes(b"after a resume")
    assert "gsm8k | 0.5" not in model_card(load_run(run), "my-model")


@pytest.mark.parametrize(("passes", "text"), [(0.254, "0.25"), (9.96, "10"), (1500.4, "1,500")])
def test_passes_over_the_data_are_plain_numbers(tmp_path, passes, text):
    with RunWriter.create(tmp_path / "run", build_config({"model": "some/base"})) as writer:
        writer.metrics({"step": 3, "data/epoch": passes})
    assert f"; {text} passes over its rows" in model_card(load_run(tmp_path / "run"), "mine")


def test_rows_of_one_document_count_once(tmp_path):
    """Two cuts of one document, with a mean of 2, and another document with 4."""
    rows = [
        {"id": "a:0@10", "logp": 1.0},
        {"id": "a:0@20", "logp": 3.0},
        {"id": "a:1@10", "logp": 4.0},
    ]
    with RunWriter.create(tmp_path / "run", build_config({"model": "some/base"})) as writer:
        writer.heldout(0, rows)
    card = model_card(load_run(tmp_path / "run"), "mine")
    assert f"| nats per token | {mean_interval([[[2.0, 4.0]]])} |" in card


def test_the_code_in_the_card_runs(run, tmp_path, capsys):
    export_run(run, tmp_path / "mine")
    text = (tmp_path / "mine" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    code = code.replace('"MODEL"', repr(str(tmp_path / "mine"))).replace("4096", "20")
    exec(code, {})
    assert re.match(r"reasoning: .*\nanswer: ", capsys.readouterr().out)
    assert (tmp_path / "mine" / "vllm_reasoning.py").is_file()


@pytest.mark.parametrize(
    ("start", "end"), [("<think>", "</think>"), ("[THINK]", "[/THINK]"), (None, "</think>")]
)
def test_an_exported_model_knows_its_markers(make_config, tmp_path, start, end):  # noqa: F811
    """`nrt chat DIR` reads the trace as `nrt chat RUN` does, and vLLM's plugin has the markers."""
    markers = MarkersConfig(start=start, end=end)
    values = {"markers.start": start, "markers.end": end}
    run = train(make_config(steps=1, **values))
    export_run(run, tmp_path / "mine")
    for name in (str(run.path), str(run.model_dir), str(tmp_path / "mine")):
        source = find_model(name)
        assert (source.markers.start, source.markers.end) == (start, end), name
        assert source.thinks, name
    open_reasoner(str(tmp_path / "mine"))
    plugin = tmp_path / "mine" / "vllm_reasoning.py"
    card = (tmp_path / "mine" / "README.md").read_text()
    assert plugin.exists() == (start is not None) == ("--reasoning-parser nrt" in card)
    if start:
        tree = ast.parse(plugin.read_text())
        returned = [
            n.value.value
            for n in ast.walk(tree)
            if isinstance(n, ast.Return) and isinstance(n.value, ast.Constant)
        ]
        assert {markers.start, markers.end} <= set(returned)


def test_an_export_to_where_nothing_can_be_written(make_config, tmp_path):  # noqa: F811
    run = train(make_config(method="sft", steps=1))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written: "):
        export_run(run, tmp_path / "file" / "mine")


@pytest.mark.parametrize(
    ("model", "base"),
    [("meta/llama", "meta/llama"), ("some/local/base", None), ("/a/b", None)],
)
def test_the_card_names_no_path(tmp_path, model, base):
    run = tmp_path / "run"
    with RunWriter.create(run, build_config({"model": model, "data": {"train": "x.jsonl"}})):
        pass
    (run / "model").mkdir()
    card = ModelCard(model_card(load_run(run), "mine"))
    assert card.data.to_dict().get("base_model") == base
    assert base or model not in card.content


def test_the_card_says_what_it_does_not_show(make_config, tmp_path):  # noqa: F811
    """A model that an earlier run trained; and answers that are all wrong have an interval."""
    first = train(make_config(run=str(tmp_path / "first"), steps=1))
    then = train(make_config(run=str(tmp_path / "then"), steps=1, model=str(first.model_dir)))
    card = model_card(then, "mine")
    assert "It continues the run `first`, whose training is not shown here." in card
    assert "It continues" not in model_card(first, "mine")
    assert f"max_new_tokens={6 + 8})" in card
    (line,) = [line for line in card.split("\n") if line.startswith("| accuracy, after its own")]
    assert "0.000 [0.000, 0.000]" not in line


def test_an_sft_export_is_no_model_with_traces(make_config, tmp_path):  # noqa: F811
    export_run(train(make_config(method="sft", steps=1)), tmp_path / "mine")
    assert not find_model(str(tmp_path / "mine")).thinks


@pytest.mark.parametrize(("exported", "name_of_base"), [(True, "some/base"), (False, "base")])
def test_an_sft_model_is_traced_to_its_base(
    run,
    make_config,  # noqa: F811
    tmp_path,
    exported,
    name_of_base,
):
    """SFT, then NRT: base model and licence are those of the model that SFT started from.

    A card of the hub names the model from which its own was made, which is not the one here.
    """
    base = tmp_path / "base"
    (tmp_path / "run" / "model").rename(base)
    card = "---\nbase_model: some/base\nlicense: llama3.2\n---\n# Base\n"
    (base / "README.md").write_text(card)
    if exported:
        write_layout(base, run.config)
    sft = train(make_config(run=str(tmp_path / "sft"), model=str(base), method="sft", steps=1))
    nrt = train(make_config(run=str(tmp_path / "nrt"), model=str(sft.model_dir), steps=1))
    for trained, name in ((sft, "a"), (nrt, "b")):
        export_run(trained, tmp_path / name)
        header = ModelCard.load(tmp_path / name / "README.md").data.to_dict()
        assert header["license"] == "llama3.2"
        # A folder's name is no name of the hub, and stands in the text only
        assert header.get("base_model", "base") == name_of_base
    assert "An ordinary chat model" in (tmp_path / "a" / "README.md").read_text()
    assert not (tmp_path / "a" / "vllm_reasoning.py").exists()


def test_a_failed_push_is_explained(nrt_command, small, tmp_path):  # noqa: F811
    """Without a network nothing is written, and the same command works later."""
    assert nrt_command("train", *small)[0] == 0
    status, _, err = nrt_command("export", "mine", "no", "--push", "no name")
    assert (status, (tmp_path / "no").exists()) == (2, False)
    assert "USER/NAME" in err
    status, _, err = nrt_command("export", "mine", "out", "--push", "me/my-model")
    assert status == 1
    assert "the repository me/my-model cannot be created" in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model", "a/b/c", "", "me/..", "me/mine "])
def test_repository_names(name):
    check_repository("me/my-model_1.0", "--push ")
    with pytest.raises(InputError, match=r"--push .*USER/NAME"):
        check_repository(name, "--push ")
