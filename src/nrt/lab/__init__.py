"""The miniature: a synthetic world and a tiny model in which Native Reasoning Training shows its effect within minutes on one CPU thread.

`world` makes problems, `corpus` the documents that the base model reads, `base` that model, `observe` its own metrics in a run.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "Problem": "world",
    "write_pairs": "world",
    "BaseSettings": "base",
    "build_base": "base",
    "readout": "base",
    "observe": "observe",
}

__all__ = ["BaseSettings", "Problem", "build_base", "observe", "readout", "write_pairs"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Loads a name when it is first asked for: `import nrt.lab` loads no torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
