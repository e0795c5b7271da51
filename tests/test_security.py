"""What SECURITY.md says: nothing of a recipe, a model or a run folder is executed, nothing is asked of a network, no secret is written."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nrt import errors
from nrt.config import Config, load_config, packaged_recipes
from nrt.errors import InputError
from nrt.models import load_model
from tests.trainer.conftest import write_model, write_sums

ROOT = Path(errors.__file__).parent
FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))

# --- nothing is unpickled or executed ---

UNPICKLERS = {
    "pickle",
    "cPickle",
    "_pickle",
    "cloudpickle",
    "dill",
    "joblib",
    "marshal",
    "shelve",
    "jsonpickle",
    "pandas",
}
"""Modules that turn bytes into objects of any class; pandas reads pickles where a file's ending says so."""

CALLS = {
    *(
        "torch.load",
        "torch.hub.load",
        "torch.jit.load",
        "torch.package.PackageImporter",
        "os.system",
        "os.popen",
    ),
    *(
        "yaml.load",
        "yaml.load_all",
        "yaml.unsafe_load",
        "yaml.full_load",
        "yaml.Loader",
        "yaml.UnsafeLoader",
        "yaml.FullLoader",
    ),
}
BARE = {"eval", "exec", "compile", "__import__"}

STATED = {
    "multiprocessing": ("eval/asking.py",),  # to its own children, over pipes that nobody else has
    "all_gather_object": ("distributed.py",),  # between the processes of one torchrun
    "marshal": (
        "eval/confined/__main__.py",
        "eval/sandbox.py",
    ),  # the program under test, from its own parent
    "exec": ("eval/confined/__main__.py",),  # the program under test, behind every layer
    "compile": ("eval/confined/__main__.py",),
    "pandas": (
        "run/frames.py",
        "run/reader.py",
    ),  # the class DataFrame, made of records that nrt has read
    "import_module": (
        "__init__.py",
        "lab/__init__.py",
        "data/checkers.py",
        "trainer/resolve.py",
    ),  # own names; dotted names and plugins of the recipe
}
"""What may stand in these files alone. verl reads its own checkpoints, and Ray its own messages, by pickle: not in our code."""


def faults(file: str, source: str) -> list[str]:
    """What in a file reads objects or code out of bytes, beyond what is stated."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names} & {
                *UNPICKLERS,
                "multiprocessing",
            }
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            whole = {f"{node.module}.{name.name}" for name in node.names}
            found |= {str(node.module).partition(".")[0]} & {
                *UNPICKLERS,
                "multiprocessing",
            } | whole & CALLS
        elif isinstance(node, ast.Attribute):
            found |= {ast.unparse(node)} & CALLS | {node.attr} & {
                "all_gather_object",
                "import_module",
            }
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found |= {node.func.id} & {*BARE, "import_module"}
        elif (
            isinstance(node, ast.keyword)
            and node.arg in ("allow_pickle", "shell")
            and ast.unparse(node.value) != "False"
        ):
            found.add(node.arg)
    return sorted(name for name in found if file not in STATED.get(name, ()))


@pytest.mark.parametrize("file", FILES)
def test_nothing_is_unpickled_or_executed(file):
    assert faults(file, (ROOT / file).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("import pickle", "pickle"),
        ("from pickle import loads", "pickle"),
        ("import torch\ntorch.load('x')", "torch.load"),
        ("from torch import load", "torch.load"),
        ("import yaml\nyaml.load(x, Loader=yaml.Loader)", "yaml.load"),
        ("numpy.load(x, allow_pickle=True)", "allow_pickle"),
        ("subprocess.run(x, shell=True)", "shell"),
        ("eval(text)", "eval"),
        ("from multiprocessing import Pool", "multiprocessing"),
    ],
)
def test_the_walk_finds_them(source, fault):
    assert fault in faults("data/files.py", source)


class Payload:
    """What a hostile file does to whoever unpickles it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_weights_that_are_a_pickle_run_no_code(tmp_path):
    """A folder with pytorch_model.bin alone: transformers reads it by torch's own unpickler, which makes tensors only."""
    model = write_model(tmp_path / "model")
    weights = load_model(str(model), dtype=torch.float32, device="cpu")[0].state_dict()
    (model / "model.safetensors").unlink()
    torch.save(weights, model / "pytorch_model.bin")
    load_model(str(model), dtype=torch.float32, device="cpu")
    torch.save(weights | {"extra": Payload(tmp_path / "run")}, model / "pytorch_model.bin")
    with pytest.raises(InputError, match="its weights cannot be loaded"):
        load_model(str(model), dtype=torch.float32, device="cpu")
    assert not (tmp_path / "run").exists()
    torch.load(model / "pytorch_model.bin", weights_only=False)
    assert (tmp_path / "run").exists()  # the trap is real


@pytest.mark.parametrize("kind", ["AutoConfig", "AutoModelForCausalLM", "AutoTokenizer"])
def test_a_models_own_code_runs_only_if_the_recipe_says_so(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    model, mark = write_model(tmp_path / "model"), tmp_path / "run"
    (model / "own.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Own: pass\n")
    name = "tokenizer_config.json" if kind == "AutoTokenizer" else "config.json"
    values = json.loads((model / name).read_text())
    values["auto_map"] = {kind: [None, "own.Own"] if kind == "AutoTokenizer" else "own.Own"}
    if kind != "AutoModelForCausalLM":
        values |= {"model_type": "own"} if kind == "AutoConfig" else {"tokenizer_class": "Own"}
    (model / name).write_text(json.dumps(values))
    with contextlib.suppress(InputError):
        load_model(str(model), dtype=torch.float32, device="cpu")
    assert not mark.exists()
    with pytest.raises(Exception):  # noqa: B017 - a class without anything in it
        load_model(str(model), dtype=torch.float32, device="cpu", trust_remote_code=True)
    assert mark.exists()  # the trap is real


def test_no_recipe_of_ours_trusts_code():
    assert not Config().trust_remote_code
    assert [
        name
        for name in packaged_recipes()
        if load_config(name).trust_remote_code or load_config(name).plugins
    ] == []


@pytest.mark.parametrize(
    "tag",
    ["!!python/object/apply:os.mkdir", "!!python/object/new:os.mkdir", "!!python/name:os.mkdir"],
)
def test_yaml_makes_plain_values_only(tag, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(f"data:\n  system: {tag} [made]\n")
    with pytest.raises(InputError, match="not valid YAML"):
        load_config("recipe.yaml")
    with pytest.raises(InputError):  # an override that is no YAML value is a text
        load_config("gsm8k", [f"data.shuffle={tag} [made]"])
    assert not Path("made").exists()


# --- nothing is asked of a network, no secret is written ---

SECRETS = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "WANDB_API_KEY",
    "OPENAI_API_KEY",
    "NRT_ROLLOUT_TOKEN",
    "NRT_REPORT_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
)

OFFLINE = """
import sys

def refuse(event, args):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request"):
        raise SystemExit(f"asked the network: {event} {args}")

sys.addaudithook(refuse)
from nrt.cli import app as cli

for command in COMMANDS:
    sys.argv = ["nrt", *command]
    try:
        cli.main()
    except SystemExit as leaving:
        assert not leaving.code, (command, leaving.code)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a run was trained, reported and exported, with secrets in the environment, and where no address could be asked for."""
    folder = tmp_path_factory.mktemp("offline")
    model, pairs = write_model(folder / "model"), write_sums(folder / "pairs.jsonl")
    given = [f"model={model}", f"data.train={pairs}", f"data.valid={pairs}", "data.answer=whole", "steps=2", "batch=4", "traces=2",
             "max_trace_tokens=5", "max_answer_tokens=8", "run=mine", "threads=1", "save_every=1"]  # fmt: skip
    commands = [["train", "gsm8k", *given, "--report"], ["report", "mine"], ["report", "mine", "--text"],
                ["export", "mine", "exported"]]  # fmt: skip
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "TRANSFORMERS_"))
    }  # HF_HUB_OFFLINE
    environment |= {
        name: f"sesame-{number}-3141592653589793" for number, name in enumerate(SECRETS)
    }
    environment |= {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "HOME": str(folder / "home"),
        "OMP_NUM_THREADS": "1",
    }
    code = OFFLINE.replace("COMMANDS", repr(commands))
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder


def test_nothing_is_asked_of_a_network(folder):
    assert (folder / "exported" / "model.safetensors").is_file()
    assert (folder / "runs" / "mine" / "report.html").is_file()


def test_no_secret_is_written(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {"environment.json", "config.yaml", "report.html", "state.json", "README.md"} <= {
        path.name for path in files
    }
    assert [path for path in files if b"sesame" in path.read_bytes()] == []
