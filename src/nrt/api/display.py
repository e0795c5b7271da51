"""Choose how a call of `nrt.train` shows its progress."""

from __future__ import annotations

import sys
from typing import Literal

from nrt.api.live import LiveLine
from nrt.api.notebook import NotebookDisplay
from nrt.errors import InputError
from nrt.system.environment import rank_and_world_size
from nrt.system.terminal import Display, ResilientDisplay, Terminal

Progress = bool | Literal["auto"]
"""`auto` and True: a bar and a table in a notebook, a live line on a terminal, lines in a log;
False: nothing."""


def check_progress(progress: Progress) -> None:
    """Raise InputError for another value."""
    if progress not in (True, False, "auto"):
        raise InputError(f"progress={progress!r}: give 'auto', True or False")


def open_display(progress: Progress) -> Display | None:
    """Return the display for this process, or None. Raises InputError for another value."""
    check_progress(progress)
    rank, _ = rank_and_world_size()
    if rank:
        return None
    if progress and _in_notebook():
        return NotebookDisplay()
    return ResilientDisplay(LiveLine(Terminal())) if progress else None


def _in_notebook() -> bool:
    """True in a process that a notebook front end talks to. Does not import IPython."""
    if "IPython" not in sys.modules:
        return False
    from IPython.core.getipython import get_ipython

    return hasattr(get_ipython(), "kernel")
