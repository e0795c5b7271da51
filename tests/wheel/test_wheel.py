"""The built wheel and sdist, as somebody gets them who has no checkout: `make dist`.

The wheel goes into an environment of its own outside the checkout; every command runs from an empty folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Callable
from email import message_from_bytes
from pathlib import Path

import pytest

pytestmark = pytest.mark.dist

ROOT = Path(__file__).parents[2]
DIST = ROOT / "dist"

OPEN_EVERYTHING = """
from importlib.resources import files
import yaml
import nrt
from nrt.analysis.report.page import write_page
from nrt.config import packaged_recipes

assert "site-packages" in nrt.__file__, nrt.__file__
recipes, profiles = packaged_recipes(), packaged_recipes("profiles")
for recipe in recipes:
    for profile in profiles:
        nrt.load_config(recipe, [f"profile={profile}"])
for variants in packaged_recipes("ablations").values():
    assert yaml.safe_load(variants.read_text(encoding="utf-8"))["variants"]
tasks = [file for file in (files("nrt.eval") / "tasks").iterdir() if file.name.endswith(".yaml")]
for task in tasks:
    assert yaml.compose(task.read_text(encoding="utf-8")) is not None  # its !function tags are lm-eval's
print(len(recipes), len(profiles), len(tasks))
"""

Call = Callable[..., str]


def _only(pattern: str) -> Path:
    found = list(DIST.glob(pattern))
    assert len(found) == 1, f"{DIST} holds {len(found)} of {pattern}: make dist builds them"
    return found[0]


def _tracked(folder: str) -> set[str]:
    """What git has under a folder."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", folder], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(listed.stdout.split("\0")) - {""}


def _names(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.fixture(scope="session")
def environment(tmp_path_factory) -> Path:
    """Torch first, then the wheel without extras, at the versions of constraints.txt."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(folder, with_pip=True)
    for what in (
        [os.environ.get("TORCH", "torch")],
        ["-c", str(ROOT / "constraints.txt"), str(_only("*.whl"))],
    ):
        _run(
            [
                str(folder / "bin/python"),
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                *what,
            ],
            folder,
        )
    return folder


@pytest.fixture(scope="session")
def call(environment, tmp_path_factory) -> Call:
    """call("nrt", …) → standard output of a command of that environment, in one empty folder; it must succeed."""
    work = tmp_path_factory.mktemp("empty")
    return lambda name, *arguments: _run([str(environment / "bin" / name), *arguments], work)


def _run(command: list[str], folder: Path) -> str:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "VIRTUAL_ENV")
    }
    done = subprocess.run(
        command,
        cwd=folder,
        env=kept | {"NRT_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_wheel_holds_the_package_and_nothing_else():
    ours = {name for name in _names(_only("*.whl")) if ".dist-info/" not in name}
    assert ours == {path.removeprefix("src/") for path in _tracked("src/nrt")}


def test_the_sdist_makes_the_same_wheel(tmp_path):
    """The wheel in dist was made from the sdist; this one is made from the checkout."""
    _run([sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)], tmp_path)
    straight = next(tmp_path.glob("*.whl"))
    from_sdist = _only("*.whl")
    assert _names(straight) == _names(from_sdist)
    for name in _names(straight):
        assert zipfile.ZipFile(straight).read(name) == zipfile.ZipFile(from_sdist).read(name), name


def test_the_sdist_holds_what_it_should():
    sdist = _only("*.tar.gz")
    prefix = sdist.name.removesuffix(".tar.gz") + "/"
    with tarfile.open(sdist) as tar:
        held = {member.name.removeprefix(prefix) for member in tar.getmembers() if member.isfile()}
    beside = {
        "CHANGELOG.md",
        "CITATION.cff",
        "LICENSE",
        "PKG-INFO",
        "README.md",
        "pyproject.toml",
        ".gitignore",
    }
    assert held == _tracked("src/nrt") | _tracked("examples") | beside


def test_metadata():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    archive = zipfile.ZipFile(_only("*.whl"))
    found = message_from_bytes(
        archive.read(next(name for name in archive.namelist() if name.endswith("/METADATA")))
    )
    assert found["Name"] == "native-reasoning"
    assert found["Version"] == project["version"]
    assert found["License-Expression"] == "Apache-2.0"
    assert found.get_all("License-File") == ["LICENSE"]
    assert set(found.get_all("Provides-Extra") or ()) == set(project["optional-dependencies"])


def test_commands(call):
    assert call("nrt", "--version").startswith("nrt 0.")
    assert "RECIPE" in call("nrt", "train", "--help")
    assert "fits on h100" in call("nrt", "plan", "llama-3.2-3b", "--gpu", "h100")


def test_all_package_data_opens(call):
    recipes, profiles, tasks = map(int, call("python", "-c", OPEN_EVERYTHING).split())
    assert recipes == len(list((ROOT / "src/nrt/recipes").glob("*.yaml")))
    assert profiles == len(list((ROOT / "src/nrt/recipes/profiles").glob("*.yaml")))
    assert tasks == len(list((ROOT / "src/nrt/eval/tasks").glob("*.yaml")))


def test_demo_then_its_page(call, environment):
    """The demo runs without an extra and says what its page needs; with the extra `report` the page is written."""
    assert "no report: " in call("nrt", "demo", "--quick", "--run", "first")
    call(
        "python",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "-c",
        str(ROOT / "constraints.txt"),
        f"{_only('*.whl')}[report]",
    )
    assert "report.html" in call("nrt", "report", "first")
