"""Run a module of nrt's `tests` where verl is installed, whose top-level `tests` hides nrt's.

python tests/verl/ours.py MODULE [ARGUMENTS]
"""

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
