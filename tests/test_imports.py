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
    "errors": 0, "config": 0, "types": 0, "lock": 0, "environment": 0, "network": 0, "durable": 0, "terminal": 0,
    "objective": 1, "run": 1, "metrics": 1, "trackers": 1, "data": 1, "models": 1, "checkers": 1,
    "rollout": 2, "scoring": 2, "serving": 2,
    "engine": 3,
    "training": 4, "eval": 4,
    "study": 5, "plan": 5, "lab": 5, "analysis": 5, "talk": 5, "live": 5,
    "comparing": 6, "reporting": 6, "inspecting": 6, "evaluating": 6, "cli_data": 7, "cli_eval": 7, "cli": 8, "__main__": 9,
}  # fmt: skip
"""A module or package of nrt imports only from lower levels and from itself; level 0 also from level 0."""

ONLY = {"objective": {"errors", "types"}, "analysis": {name for name, level in LEVEL.items() if level == 0} | {"run"}}
"""These import nothing else of nrt."""

NEVER = {("rollout", "objective"), ("scoring", "objective")}
"""(importer, imported), though the level would allow it."""

LIBRARIES = {
    "errors": set(),
    "config": {"pydantic", "yaml"},
    "types": {"torch"},
    "lock": set(),
    "durable": {"safetensors"},
    "environment": set(),
    "network": set(),
    "terminal": {"rich"},
    "objective": {"torch"},
    "run": {"pydantic", "yaml"},
    "metrics": set(),
    "trackers": {"accelerate"},
    "checkers": set(),
}
"""All that these import besides the standard library."""

CONFINED = {"vllm": ("rollout/vllm.py", "serving/vllm_reasoning.py"), "ray": ("engine/verl/",), "verl": ("engine/verl/",)}
"""Libraries that only these files import."""

NOT_IN = {"analysis": {"torch", "transformers", "accelerate"}}
"""Libraries that these never import."""

LAZY = {"__init__.py", "cli.py", "cli_data.py", "cli_eval.py"}
"""Files that import anything inside functions and under TYPE_CHECKING; elsewhere those count like any other import."""

QUICK = {"__init__", "cli", "cli_data", "cli_eval"}
"""What `nrt --help` loads: of nrt itself eagerly only level 0, and the commands of a group."""

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
        ("objective/loss.py", "from . import rewards\nfrom .credit import Streams\nfrom ..types import Row\nimport torch.nn, math", None),
        ("scoring/logprobs.py", "import nrt.objective", "imports nrt.objective"),
        ("engine/local.py", "import nrt.objective", None),
        ("data/chat.py", "from nrt.models import load_model", "imports nrt.models"),
        ("training/step.py", "from nrt.eval.suite import SUITE", "imports nrt.eval"),
        ("training/step.py", "import nrt.cli", "imports nrt.cli"),
        ("lab/demo.py", "from nrt.cli import main", "imports nrt.cli"),
        ("lab/demo.py", "from nrt.training import train", None),
        ("analysis/table.py", "from nrt.metrics import METRICS", "imports nrt.metrics"),
        ("analysis/table.py", "from nrt.run import Run\nfrom nrt.config import Config\nimport matplotlib", None),
        ("analysis/table.py", "def f():\n    import torch", "imports torch"),
        ("rollout/hf.py", "if True:\n    import vllm", "imports vllm"),
        ("rollout/vllm.py", "from vllm import LLM", None),
        ("engine/local.py", "import ray", "imports ray"),
        ("engine/verl/trainer.py", "import ray, verl.trainer", None),
        ("training/loop.py", "from nrt import load_run", "take it from its own module"),
        ("training/loop.py", "import nrt", "take it from its own module"),
        ("config.py", "import torch", "imports torch"),
        ("fresh.py", "", "not in the table"),
        ("cli.py", "from nrt.training import train", "imports nrt.training"),
        ("cli.py", "def f():\n    from nrt.training import train\nfrom nrt.errors import NrtError\nimport typer", None),
        ("cli.py", "import torch", "imports torch"),
        ("cli.py", "from nrt import cli_data", None),
        ("cli_data.py", "from nrt.data import Chat", "imports nrt.data"),
        ("__init__.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from nrt.training import train", None),
        ("__init__.py", "from nrt.training import train", "imports nrt.training"),
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
        ("nrt.trackers", ("torch", "accelerate")),
        ("nrt.cli", ("torch", "transformers")),
        ("nrt.objective", ("transformers", "pydantic", "yaml")),
    ],
)
def test_importing_loads_nothing_heavy(module, unwanted):
    code = f"import sys, {module}; print(*[name for name in {unwanted!r} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def faults(file: str, source: str) -> list[str]:
    """What is wrong with the imports of a file, given by its path under the package."""
    if file == "__main__.py":
        file = "cli.py"
    importer = file.split("/")[0].removesuffix(".py")
    if importer not in (*LEVEL, "__init__"):
        return [f"{file}: not in the table of levels above; put it there"]
    tree = ast.parse(source)
    found = []
    for line, name in imports(_eager(tree) if file in LAZY else ast.walk(tree), file):
        library = name.split(".")[0]
        if fault := _inside(importer, name) if library == "nrt" else _outside(importer, file, library):
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
            names = [f"nrt.{alias.name}" for alias in node.names] if base == ["nrt"] else [".".join(base)]
            yield from ((node.lineno, name) for name in names)


def _inside(importer: str, name: str) -> str | None:
    imported = name.split(".")[1] if "." in name else ""
    if imported.startswith("__") or imported == importer:
        return None
    if imported not in LEVEL:
        return f"imports {name}: take it from its own module, not from the package"
    if importer in QUICK:
        allowed = LEVEL[imported] == 0 or (importer == "cli" and imported in QUICK)
    elif importer in ONLY:
        allowed = imported in ONLY[importer]
    else:
        allowed = LEVEL[imported] < max(LEVEL[importer], 1) and (importer, imported) not in NEVER
    return None if allowed else f"imports nrt.{imported}"


def _outside(importer: str, file: str, library: str) -> str | None:
    if library in sys.stdlib_module_names:
        return None
    confined = library in CONFINED and not file.startswith(CONFINED[library])
    heavy = importer in QUICK and library in ("torch", "transformers", "datasets", "accelerate")
    listed = library in LIBRARIES.get(importer, {library})
    return None if listed and not confined and not heavy and library not in NOT_IN.get(importer, ()) else f"imports {library}"


def _eager(tree: ast.Module) -> Iterator[ast.AST]:
    """What runs when the file is imported."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield from ast.walk(node)
