"""What engine=verl needs of the environment, said in one line before anything starts."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from nrt.errors import InputError

SUPPORTED = ((0, 9), (0, 10))
"""verl from the first version on, under the second: between minor versions it moves what the plug-in hooks into."""

MODULES = {
    "ray": "ray",
    "transfer_queue": "TransferQueue",
    "tensordict": "tensordict",
    "hydra": "hydra-core",
    "codetiming": "codetiming",
    "torchdata": "torchdata",
    "datasets": "datasets",
    "accelerate": "accelerate",
    "peft": "peft",
    "cachetools": "cachetools",
    "uvicorn": "uvicorn",
    "fastapi": "fastapi",
    "zmq": "pyzmq",
    "msgspec": "msgspec",
    "pylatexenc": "pylatexenc",
}
"""Modules that verl's trainer imports, some of which its own package does not ask for, and the packages that hold them."""


def check_installed(rollout: str | None = None) -> None:
    """Raises InputError that names all that is missing: verl in a supported version, its libraries, and the rollout engine's."""
    try:
        found = version("verl")
    except PackageNotFoundError:
        raise InputError("engine=verl needs verl, which is not installed; pip install 'native-reasoning[verl]'") from None
    if not SUPPORTED[0] <= _minor(found) < SUPPORTED[1]:
        raise InputError(f"engine=verl needs verl>=0.9,<0.10, and verl {found} is installed; pip install 'native-reasoning[verl]'")
    engines = {"vllm": "vllm", "sglang": "sglang"}
    needed = MODULES | ({rollout: engines[rollout]} if rollout in engines else {})
    missing = [package for module, package in needed.items() if find_spec(module) is None]
    if missing:
        raise InputError(f"engine=verl needs {', '.join(missing)}, not installed here; pip install {' '.join(missing)}")


def _minor(text: str) -> tuple[int, int]:
    major, minor, *_ = text.split(".")
    return int(major), int("".join(c for c in minor if c.isdigit()) or 0)
