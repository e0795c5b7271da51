"""Where a run ran (versions, hardware, git revision, command line; never environment variables, which hold secrets), and where nrt
keeps what can be made again."""

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
    """One entry of environment.json (docs/run-folder.md). Imports none of the packages it reports."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "git": _git_revision(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "processes": launched()[1],
        "gpus": _gpus(),
    }


def launched() -> tuple[int, int]:
    """(rank of this process, how many there are) of those that torchrun started; (0, 1) without it."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    return (int(os.environ.get("RANK", "0")), size) if size > 1 else (0, 1)


def cache_folder() -> Path:
    """`$NRT_CACHE`, else `$XDG_CACHE_HOME/nrt`, else `~/.cache/nrt`; it may be deleted at any time."""
    if own := os.environ.get("NRT_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nrt"


def _git_revision() -> str | None:
    """Such as "<40 digits>", with "-dirty" where files were changed; None outside a checkout."""
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _gpus() -> list[str]:
    torch = sys.modules.get("torch")  # a run without it has no GPU either, and importing it here would be slow
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def machine_memory() -> int:
    """Bytes of this machine's memory, or of the container's that the process runs in."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8"))  # cgroup v2; "max" is no number
    except (OSError, ValueError):
        return physical
    return min(physical, limit)
