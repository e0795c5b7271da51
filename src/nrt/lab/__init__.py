"""Two experiments that show the effect of the training on a CPU.

The miniature is a synthetic world and a tiny model, which learns in minutes on one thread. `world`
makes problems, `dataset` writes them, `corpus` makes the documents that the base model reads,
`base` builds that model, `evaluation` measures it, and `observe` adds metrics to a run.

The other trains a pretrained model, for about half an hour on two cores. `pretrained` fetches
SmolLM2-135M and `arithmetic` makes its questions.

`settings` prepares both for the packaged recipes, and `demo` is `nrt demo`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nrt.lab.base import BaseSettings, build_base
    from nrt.lab.dataset import write_pairs
    from nrt.lab.evaluation import evaluate_base
    from nrt.lab.observe import observe
    from nrt.lab.settings import prepare, prepare_miniature
    from nrt.lab.world import Problem

RECIPES = (
    *("miniature", "miniature-hard", "miniature-weak", "miniature-text"),
    *("smollm2", "smollm2-zero-shot", "smollm2-addsub", "smollm2-hard", "smollm2-five"),
    "smollm2-pairs",
)
"""Recipes whose model `lab.settings.prepare` makes or fetches, and whose data, but for the last."""

_MODULE_OF = {
    "BaseSettings": "base",
    "Problem": "world",
    "build_base": "base",
    "evaluate_base": "evaluation",
    "observe": "observe",
    "prepare": "settings",
    "prepare_miniature": "settings",
    "write_pairs": "dataset",
}

__all__ = [
    "RECIPES",
    "BaseSettings",
    "Problem",
    "build_base",
    "evaluate_base",
    "observe",
    "prepare",
    "prepare_miniature",
    "write_pairs",
]


def __getattr__(name: str) -> Any:
    """Import a name on first access, so that `import nrt.lab` loads no torch."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
