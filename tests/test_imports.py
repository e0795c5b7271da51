"""Who may import whom: the table of the design, held against every file of the package; and what an import may load."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nrt import errors

ROOT = Path(errors.__file__).parent

LEVEL = {
    "errors": 0, "config": 0, "types": 0, "system": 0,
    "objective": 1, "run": 1, "data": 1, "models": 1, "distributed": 1,
    "rollout": 2, "scoring": 2, "analysis": 2,
    "engine": 3, "serving": 3,
    "backends": 4, "eval": 4,
    "trainer": 5,
    "study": 6, "plan": 6, "lab": 6, "api": 6,
    "cli": 7, "__main__": 8,
}  # fmt: skip
"""A module or package of nrt imports only from lower levels and from itself; level 0 also from level 0."""

ONLY = {
    "objective": {"errors", "types"},
    "analysis": {name for name, level in LEVEL.items() if level == 0} | {"run"},
}
"""These import nothing else of nrt."""

NEVER = {
    ("rollout", "objective"),
    ("scoring", "objective"),
    ("distributed", "data"),
    ("distributed", "models"),
    ("trainer", "eval"),
}
"""(importer, imported), though the level would allow it."""

LIBRARIES = {
    "errors": set(),
    "config": {"pydantic", "pydantic_core", "yaml"},
    "types": {"torch"},
    "system": {"rich", "safetensors"},
    "distributed": {"torch"},
    "objective": {"torch"},
    "run": {"pydantic", "yaml", "pandas"},
}
"""All that these import besides the standard library."""

CONFINED = {
    "vllm": ("rollout/vllm.py", "serving/vllm_reasoning.py"),
    "ray": ("backends/verl/",),
    "verl": ("backends/verl/",),
}
"""Libraries that only these files import."""

NOT_IN = {"analysis": {"torch", "transformers", "accelerate"}}
"""Libraries that these never import."""

QUICK = {
    "__init__.py",
    "cli/__init__.py",
    "cli/app.py",
    "cli/common.py",
    "cli/data_commands.py",
    "cli/eval_commands.py",
    "cli/list_commands.py",
    "cli/plan_commands.py",
    "cli/serve_commands.py",
    "cli/study_commands.py",
    "cli/train_commands.py",
    "run/reader.py",
}
"""What `nrt --help` loads, and `Run`, whose methods a user calls by hand. These import anything inside functions and under TYPE_CHECKING, and eagerly only level 0 and one another.
In all other files, imports inside functions count like any other."""

FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))


@pytest.mark.parametrize("file", FILES)
def test_imports_follow_the_table(file):
    assert faults(file, (ROOT / file).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("file", "source", "fault"),
    [
        ("objective/loss.py", "from nrt.config import Config", "imports nrt.config"),
        ("objective/loss.py", "def f():\n    from nrt import config", "imports nrt.config"),
        ("objective/loss.py", "from ..config import Config", "imports nrt.config"),
        ("objective/loss.py", "import numpy as np", "imports numpy"),
        (
            "objective/loss.py",
            "from . import rewards\nfrom .credit import Streams\nfrom ..types import Row\nimport torch.nn, math",
            None,
        ),
        ("scoring/padded.py", "import nrt.objective", "imports nrt.objective"),
        ("engine/local.py", "import nrt.objective", None),
        ("data/chat.py", "from nrt.models import load_model", "imports nrt.models"),
        ("trainer/step.py", "from nrt.eval.suite import SUITE", "imports nrt.eval"),
        ("trainer/step.py", "import nrt.cli.app", "imports nrt.cli"),
        ("lab/demo.py", "from nrt.cli.app import main", "imports nrt.cli"),
        ("lab/demo.py", "from nrt.trainer import train", None),
        ("analysis/table.py", "from nrt.data import Chat", "imports nrt.data"),
        (
            "analysis/table.py",
            "from nrt.run import Run\nfrom nrt.config import Config\nimport matplotlib",
            None,
        ),
        ("analysis/table.py", "def f():\n    import torch", "imports torch"),
        ("rollout/hf.py", "if True:\n    import vllm", "imports vllm"),
        ("rollout/vllm.py", "from vllm import LLM", None),
        ("engine/local.py", "import ray", "imports ray"),
        ("backends/verl/trainer.py", "import ray, verl.trainer", None),
        ("trainer/loop.py", "from nrt import load_run", "take it from its own module"),
        ("trainer/loop.py", "import nrt", "take it from its own module"),
        ("config.py", "import torch", "imports torch"),
        ("fresh.py", "", "not in the table"),
        ("cli/app.py", "from nrt.trainer import train", "imports nrt.trainer"),
        (
            "cli/app.py",
            "def f():\n    from nrt.trainer import train\nfrom nrt.errors import NrtError\nimport typer",
            None,
        ),
        ("cli/app.py", "import torch", "imports torch"),
        ("cli/app.py", "from nrt.cli import data_commands", None),
        ("cli/app.py", "from nrt.cli import chat", "imports nrt.cli"),
        ("cli/data_commands.py", "from nrt.data import Chat", "imports nrt.data"),
        ("cli/chat.py", "from nrt.data import Chat", None),
        (
            "__init__.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from nrt.trainer import train",
            None,
        ),
        ("__init__.py", "from nrt.trainer import train", "imports nrt.trainer"),
        (
            "run/reader.py",
            "from nrt.analysis.report.page import write_page",
            "imports nrt.analysis",
        ),
        ("run/reader.py", "def f():\n    from nrt.models import load_model", None),
        ("run/writer.py", "def f():\n    from nrt.models import load_model", "imports nrt.models"),
    ],
)
def test_the_test_itself(file, source, fault):
    """One fault that names it, or none."""
    found = faults(file, source)
    if fault is None:
        assert found == []
    else:
        assert len(found) == 1
        assert fault in found[0]


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("nrt", ("torch", "transformers")),
        ("nrt.config", ("torch", "transformers")),
        ("nrt.run", ("torch", "transformers")),
        ("nrt.cli.app", ("torch", "transformers")),
        ("nrt.objective", ("transformers", "pydantic", "yaml")),
    ],
)
def test_importing_loads_nothing_heavy(module, unwanted):
    code = f"import sys, {module}; print(*[name for name in {unwanted!r} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


def test_no_two_public_classes_share_a_name():
    files: dict[str, list[str]] = {}
    for file in FILES:
        for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                files.setdefault(node.name, []).append(file)
    assert {name: places for name, places in files.items() if len(places) > 1} == {}


def test_the_root_has_at_most_five_modules():
    modules = [file for file in FILES if "/" not in file]
    assert len(modules) <= 5, "a module belongs into a package"


def faults(file: str, source: str) -> list[str]:
    """What is wrong with the imports of a file, given by its path under the package."""
    if file == "__main__.py":
        file = "cli/app.py"
    importer = file.split("/")[0].removesuffix(".py")
    if importer not in (*LEVEL, "__init__"):
        return [f"{file}: not in the table of levels above; put it there"]
    tree = ast.parse(source)
    found = []
    for line, name in imports(_eager(tree) if file in QUICK else ast.walk(tree), file):
        library = name.split(".")[0]
        if (
            fault := _inside(importer, file, name)
            if library == "nrt"
            else _outside(importer, file, library)
        ):
            found.append(f"{file}:{line} {fault}")
    return found


def imports(nodes: Iterator[ast.AST], file: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of each import; what comes out of `nrt` itself keeps its name: `from nrt import x` is nrt.x."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = (node.module or "").split(".") if node.module else []
            if node.level:
                package = ["nrt", *file.split("/")[:-1]]
                base = package[: len(package) - node.level + 1] + base
            names = (
                [".".join([*base, alias.name]) for alias in node.names]
                if base in (["nrt"], ["nrt", "cli"])
                else [".".join(base)]
            )
            yield from ((node.lineno, name) for name in names)


def _inside(importer: str, file: str, name: str) -> str | None:
    imported = name.split(".")[1] if "." in name else ""
    if file in QUICK and imported == "cli":
        return (
            None
            if f"{name.removeprefix('nrt.').replace('.', '/')}.py" in QUICK
            else "imports nrt.cli"
        )
    if imported.startswith("__") or imported == importer:
        return None
    if imported not in LEVEL:
        return f"imports {name}: take it from its own module, not from the package"
    if file in QUICK:
        allowed = LEVEL[imported] == 0
    elif importer in ONLY:
        allowed = imported in ONLY[importer]
    else:
        allowed = LEVEL[imported] < max(LEVEL[importer], 1) and (importer, imported) not in NEVER
    return None if allowed else f"imports nrt.{imported}"


def _outside(importer: str, file: str, library: str) -> str | None:
    if library in sys.stdlib_module_names:
        return None
    confined = library in CONFINED and not file.startswith(CONFINED[library])
    heavy = file in QUICK and library in ("torch", "transformers", "datasets", "accelerate")
    listed = library in LIBRARIES.get(importer, {library})
    return (
        None
        if listed and not confined and not heavy and library not in NOT_IN.get(importer, ())
        else f"imports {library}"
    )


def _eager(tree: ast.Module) -> Iterator[ast.AST]:
    """What runs when the file is imported."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield from ast.walk(node)
