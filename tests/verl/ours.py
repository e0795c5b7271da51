"""python tests/verl/ours.py MODULE [ARGUMENTS]: a module of our `tests`, where verl's own package brings a top-level one that hides it."""

import runpy
import sys
import types
from pathlib import Path

if __name__ == "__main__":
    root = Path(__file__).parents[2]
    sys.modules["tests"] = types.ModuleType("tests")
    sys.modules["tests"].__path__ = [str(root / "tests")]
    sys.path[:0] = [str(root / "src"), str(root)]
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
