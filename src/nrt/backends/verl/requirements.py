"""Check that everything that engine=verl needs is installed, before a run starts."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from nrt.errors import InputError, install_hint

FIRST_VERSION, END_VERSION = (0, 9), (0, 10)
"""verl from the first version, below the second.

verl's interfaces that this package extends change between minor versions.
"""

PACKAGE_OF_MODULE = {
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
"""Modules that verl's trainer imports. verl's own package does not require all of them."""

ROLLOUT_PACKAGES = ("vllm", "sglang")
"""Rollout engines that are packages of their own; module and package have the same name."""


def check_installed(rollout: str | None = None) -> None:
    """Raise InputError, naming all missing packages, unless engine=verl can run.

    It needs verl in a supported version, verl's libraries, and the rollout engine.
    """
    try:
        installed = version("verl")
    except PackageNotFoundError:
        raise InputError(
            f"engine=verl needs verl, which is not installed; {install_hint('verl')}"
        ) from None
    if not FIRST_VERSION <= _minor_version(installed) < END_VERSION:
        raise InputError(
            f"engine=verl needs verl>=0.9,<0.10, and verl {installed} is installed; "
            + install_hint("verl")
        )
    packages = dict(PACKAGE_OF_MODULE)
    if rollout in ROLLOUT_PACKAGES:
        packages[rollout] = rollout
    missing = [package for module, package in packages.items() if find_spec(module) is None]
    if missing:
        names = ", ".join(missing)
        raise InputError(
            f"engine=verl needs {names}, not installed here; pip install {' '.join(missing)}"
        )


def _minor_version(text: str) -> tuple[int, int]:
    major, minor, *_ = text.split(".")
    return int(major), int("".join(c for c in minor if c.isdigit()) or 0)
