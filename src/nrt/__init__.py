"""nrt: Native Reasoning Training (arXiv 2602.11549) from plain question–answer pairs.

    import nrt
    run = nrt.train(nrt.load_config("gsm8k", ["model=…", "data.train=…"]))
    run.metrics()[-1]["reward/gain"]

Public names are imported on first use, so that `import nrt` and `import nrt.config` load no torch.
"""

from __future__ import annotations

import logging
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nrt.config import Config, load_config
    from nrt.errors import InputError, NrtError
    from nrt.run import Run, load_run
    from nrt.trainer import train

try:
    __version__ = version("native-reasoning")
except PackageNotFoundError:  # a source tree that was not installed
    __version__ = "0+unknown"

# bitsandbytes warns at import that it could download faster CPU kernels.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

_MODULE_OF = {
    "Config": "nrt.config",
    "InputError": "nrt.errors",
    "NrtError": "nrt.errors",
    "Run": "nrt.run",
    "load_config": "nrt.config",
    "load_run": "nrt.run",
    "train": "nrt.trainer",
}

__all__ = ["Config", "InputError", "NrtError", "Run", "load_config", "load_run", "train"]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'nrt' has no attribute '{name}'")
    return getattr(import_module(_MODULE_OF[name]), name)
