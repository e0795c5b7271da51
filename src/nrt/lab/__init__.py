"""The miniature: a synthetic world and a tiny model in which Native Reasoning Training shows its effect within minutes on one CPU thread.

`world` makes problems, `corpus` the documents that the base model reads, `base` that model, `settings` what the packaged recipes need of
both, `observe` its own metrics in a run.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nrt.lab.base import BaseSettings, build_base, readout
    from nrt.lab.observe import observe
    from nrt.lab.settings import prepare
    from nrt.lab.world import Problem, write_pairs

_HOME = {
    "BaseSettings": "base",
    "Problem": "world",
    "build_base": "base",
    "observe": "observe",
    "prepare": "settings",
    "readout": "base",
    "write_pairs": "world",
}

__all__ = ["BaseSettings", "Problem", "build_base", "observe", "prepare", "readout", "write_pairs"]


def __getattr__(name: str) -> Any:
    """Loads a name when it is first asked for: `import nrt.lab` loads no torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
