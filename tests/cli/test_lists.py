"""`nrt settings`, `recipes`, `methods` and `runs`, and the page of all settings."""

import json
import re
from pathlib import Path

from nrt.config import Config, packaged_recipes
from nrt.config.reference import all_settings, kind_of, markdown
from nrt.objective import METHODS
from tests.cli.test_cli import nrt_command, small  # noqa: F401
from tests.runs import write_run
from tests.trainer.conftest import model_dir, pairs_file  # noqa: F401

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def test_the_page_is_current():
    """python -m nrt.config.reference > docs/settings.md"""
    assert PAGE.read_text(encoding="utf-8") == markdown(all_settings())


def test_every_setting_has_a_meaning():
    settings = {setting.key: setting for setting in all_settings()}
    assert settings["optimizer.lr"].default == "1.0e-05"
    assert settings["tokens_per_batch"].values == "integer or auto"
    assert settings["data.text.stride"].default == "64"
    assert all(setting.meaning for setting in settings.values())
    assert len(settings) > 120


def test_kinds_in_words():
    assert kind_of(tuple[str, ...]) == "list: text"
    assert kind_of(dict[str, int]) == "settings"


def test_settings(nrt_command):  # noqa: F811
    status, out, _ = nrt_command("settings", "rank")
    assert status == 0
    assert "lora.rank: integer (default: 0)" in out
    assert "Rank of the adapters" in out
    status, _, err = nrt_command("settings", "frobnicate")
    assert (status, "no setting has 'frobnicate'" in err) == (2, True)
    schema = json.loads(nrt_command("settings", "--schema")[1])
    assert set(schema["properties"]) == set(Config.model_fields)


def test_recipes_and_methods(nrt_command):  # noqa: F811
    out = nrt_command("recipes")[1]
    assert [line.split()[0] for line in out.splitlines()] == sorted(packaged_recipes())
    assert "Any question–answer pairs; also what no recipe means\n" in out
    out = nrt_command("methods")[1]
    assert [line.split()[0] for line in out.splitlines()] == list(METHODS)


def test_runs(nrt_command, tmp_path):  # noqa: F811
    status, _, err = nrt_command("runs")
    assert (status, "runs has no runs; start one" in err) == (2, True)
    write_run(tmp_path / "runs" / "first", groups=3)
    damaged = write_run(tmp_path / "runs" / "second")
    (damaged / "config.yaml").write_text("steps: [")
    status, out, _ = nrt_command("runs")
    assert status == 0
    first, second = out.splitlines()[1:3]
    assert first.split()[:4] == ["first", "nrt-gm", "3", "finished"]
    assert second.split()[:4] == ["second", "cannot", "be", "read:"]


def test_help_of_compare_names_all_sets_of_variants(nrt_command):  # noqa: F811
    _, out, _ = nrt_command("compare", "--help")
    text = " ".join(out.replace("│", " ").split())
    sets = re.search(r"packaged set of them: ([^.]*)\.", text)
    assert sets is not None
    assert sets[1].split(", ") == sorted(packaged_recipes("ablations"))
