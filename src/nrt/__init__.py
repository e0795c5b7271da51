"""nrt: Native Reasoning Training (arXiv 2602.11549) from plain question–answer pairs.

    import nrt
    run = nrt.train("path/to/model", "train.jsonl", "valid.jsonl", steps=100)
    run.frame("metrics")["reward/gain"]

Public names are imported on first use, so that `import nrt` and `import nrt.config` load no torch.
"""

from __future__ import annotations

import logging
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nrt.api import resume, train
    from nrt.config import Config, load_config
    from nrt.errors import InputError, Interrupted, NrtError
    from nrt.objective import Method
    from nrt.run import Run, load_run
    from nrt.trainer import Callback, Control, EarlyStopping

try:
    __version__ = version("native-reasoning")
except PackageNotFoundError:  # a source tree that was not installed
    __version__ = "0+unknown"

# bitsandbytes warns at import that it could download faster CPU kernels.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

_MODULE_OF = {
    "Callback": "nrt.trainer",
    "Config": "nrt.config",
    "Control": "nrt.trainer",
    "EarlyStopping": "nrt.trainer",
    "InputError": "nrt.errors",
    "Interrupted": "nrt.errors",
    "Method": "nrt.objective",
    "NrtError": "nrt.errors",
    "Run": "nrt.run",
    "load_config": "nrt.config",
    "load_run": "nrt.run",
    "resume": "nrt.api",
    "train": "nrt.api",
}

__all__ = [
    "Callback",
    "Config",
    "Control",
    "EarlyStopping",
    "InputError",
    "Interrupted",
    "Method",
    "NrtError",
    "Run",
    "load_config",
    "load_run",
    "resume",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'nrt' has no attribute '{name}'")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
