"""The one error policy: raise early, say what is wrong, and say how to mend it."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class NrtError(Exception):
    """Base of all errors that nrt raises on purpose; `exit_status` is what the command line returns."""

    exit_status = 1


class InputError(NrtError):
    """Something that the user gave cannot be used: a setting, a file, a row, a model."""

    exit_status = 2


class RunError(NrtError):
    """A run that was well configured failed on its way."""


def first_line(error: BaseException) -> str:
    """The first line of another library's error, or its class where it says nothing.

    >>> first_line(ValueError("no such key\\n  in the file")), first_line(KeyError())
    ('no such key', 'KeyError')
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that is not in a table, with the nearest known name.

    >>> str(unknown("method", "nrt-mg", ["nrt-gm", "sft"]))
    "unknown method 'nrt-mg'; did you mean 'nrt-gm'? Known: nrt-gm, sft"
    """
    names = sorted(known)
    near = get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    return InputError(f"unknown {kind} '{name:.100}'{hint} Known: {', '.join(names)}")
