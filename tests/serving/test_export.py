"""What `nrt export` writes beside the weights: a card that the hub's own library reads, with instructions that work."""

from __future__ import annotations

import re

import pytest
from huggingface_hub import ModelCard

from nrt.errors import InputError
from nrt.run import load_run
from nrt.serving.export import check_repository, export_run
from nrt.training import train
from tests.test_cli import nrt_command, small  # noqa: F401
from tests.training.conftest import make_config, model_dir, pairs_file  # noqa: F401


@pytest.fixture
def run(make_config, tmp_path):  # noqa: F811
    return train(make_config(run=str(tmp_path / "run"), steps=4))


def test_the_card_says_what_was_done_and_measured(run, tmp_path, pairs_file):  # noqa: F811
    export_run(run, tmp_path / "mine")
    card = ModelCard.load(tmp_path / "mine" / "README.md")
    header = card.data.to_dict()
    assert header["library_name"] == "transformers"
    assert "base_model" not in header  # a folder has no name on the hub
    assert "license" not in header
    assert "# mine" in card.text
    for said in ("`nrt-ws-neg-log-p`, `recommended`", "| 4, of 4 prompts with 3 traces each |", f"`{pairs_file.name}`", "2602.11549"):
        assert said in card.text, said
    rows = run.heldout(4)
    right = sum(row["correct"] for row in rows) / len(rows)
    assert "step 0 (6 rows) | step 4 (6 rows)" in card.text
    assert re.search(rf"right, after its own trace \| share \| [\d.]+ \| {right:.3f} \|", card.text)
    assert str(tmp_path) not in card.content
    export_run(run, tmp_path / "earlier", step=2)
    assert "step 2 (6 rows)" in (tmp_path / "earlier" / "README.md").read_text()


def test_its_instructions_work(run, tmp_path, capsys):
    export_run(run, tmp_path / "mine")
    text = (tmp_path / "mine" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(code.replace('"MODEL"', repr(str(tmp_path / "mine"))).replace("4096", "20"), {})
    assert re.match(r"reasoning: .*\nanswer: ", capsys.readouterr().out)
    assert (tmp_path / "mine" / "vllm_reasoning.py").is_file()


def test_the_base_of_a_base(run, make_config, tmp_path):  # noqa: F811
    """SFT, then NRT: the base is what SFT began from, and so is its licence."""
    base = tmp_path / "base"
    (tmp_path / "run" / "model").rename(base)
    (base / "README.md").write_text("---\nbase_model: some/base\nlicense: llama3.2\n---\n# Base\n")
    sft = train(make_config(run=str(tmp_path / "sft"), model=str(base), method="sft", steps=1))
    nrt = train(make_config(run=str(tmp_path / "nrt"), model=str(sft.model_dir), steps=1))
    for one, name in ((sft, "a"), (nrt, "b")):
        export_run(one, tmp_path / name)
        header = ModelCard.load(tmp_path / name / "README.md").data.to_dict()
        assert (header["base_model"], header["license"]) == ("some/base", "llama3.2")
    assert "An ordinary chat model" in (tmp_path / "a" / "README.md").read_text()
    assert not (tmp_path / "a" / "vllm_reasoning.py").exists()


def test_push_says_what_stands_against_it(nrt_command, small, tmp_path):  # noqa: F811
    """Without a network: the folder is there, the push is not."""
    assert nrt_command("train", *small)[0] == 0
    status, _, err = nrt_command("export", "mine", "no", "--push", "no name")
    assert (status, (tmp_path / "no").exists()) == (2, False)
    assert "USER/NAME" in err
    status, _, err = nrt_command("export", "mine", "out", "--push", "me/my-model")
    assert status == 1
    assert "out was written but not pushed to me/my-model" in err
    assert len(err.strip().splitlines()) == 1
    card = (tmp_path / "out" / "README.md").read_text()
    assert "# my-model" in card
    assert load_run(tmp_path / "runs" / "mine").config.model is not None


@pytest.mark.parametrize("name", ["model", "a/b/c", "", "me/..", "me/mine "])
def test_names_of_the_hub(name):
    check_repository("me/my-model_1.0")
    with pytest.raises(InputError, match="USER/NAME"):
        check_repository(name)
