"""Description of the machine and software of a run, and the cache folder.

The description holds versions, hardware, git revision and command line. It never holds environment
variables, because those contain secrets.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("native-reasoning", "torch", "transformers", "tokenizers", "vllm", "lm-eval")


def describe_environment() -> dict[str, Any]:
    """Return one entry of environment.json (docs/run-folder.md).

    The function imports none of the packages that it reports.
    """
    _, world_size = rank_and_world_size()
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "git": _git_revision(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "processes": world_size,
        "gpus": _gpus(),
    }


def rank_and_world_size() -> tuple[int, int]:
    """Return torchrun's (rank, world size), or (0, 1) without torchrun."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size <= 1:
        return 0, 1
    return int(os.environ.get("RANK", "0")), world_size


def cache_folder() -> Path:
    """Return `$NRT_CACHE`, else `$XDG_CACHE_HOME/nrt`, else `~/.cache/nrt`.

    The folder may be deleted at any time; nrt can recreate its contents.
    """
    if nrt_cache := os.environ.get("NRT_CACHE"):
        return Path(nrt_cache)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nrt"


def machine_memory() -> int:
    """Return the bytes of memory of this machine, or of the container's limit if it is lower."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        # cgroup v2; "max" is not a number
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return physical
    return min(physical, limit)


def _git_revision() -> str | None:
    """Return the commit's 40 hexadecimal digits, with "-dirty" if files differ from it.

    None means that the working directory is not in a checkout.
    """
    command = [
        "git", "--no-optional-locks", "describe", "--always", "--dirty", "--abbrev=40",
        "--exclude=*",
    ]  # fmt: skip
    try:
        described = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _gpus() -> list[str]:
    # A run that did not import torch uses no GPU, and an import here would be slow.
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
