"""Errors of nrt: raise early, describe the problem, and describe the fix."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class NrtError(Exception):
    """Base of all errors that nrt raises on purpose.

    The command line exits with the status `exit_status`.
    """

    exit_status = 1


class InputError(NrtError):
    """Invalid input from the user: a setting, a file, a row or a model that cannot be used."""

    exit_status = 2


class RunError(NrtError):
    """Failure during a run whose settings are valid."""


class Interrupted(NrtError):
    """A signal stopped the work. Everything done so far is saved; the same command or a resume
    continues.
    """

    exit_status = 130


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error message, or its class if it has none.

    >>> first_line(ValueError("no such key\\n  in the file")), first_line(KeyError())
    ('no such key', 'KeyError')
    """
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """True if memory ran out.

    Only CUDA's allocator has an error class; MPS, cuBLAS and the CPU's allocator raise
    RuntimeError.

    >>> is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"))
    True
    """
    messages = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    # by name, because this module does not import torch
    is_torch_error = type(error).__name__ == "OutOfMemoryError"
    return is_torch_error or any(message in str(error) for message in messages)


def install_hint(extra: str) -> str:
    """Return how to install an optional dependency group of nrt, which is not on PyPI.

    >>> install_hint("gguf")
    "in the folder of nrt's clone run pip install -e '.[gguf]'"
    """
    return f"in the folder of nrt's clone run pip install -e '.[{extra}]'"


MAX_NAMES = 10
"""Most names that an error lists."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint at the closest known name, to end a message; empty without a close one.

    >>> did_you_mean("frist", ["first", "sums"])
    "; did you mean 'first'?"
    """
    closest = get_close_matches(name, list(known), n=1)
    return f"; did you mean '{closest[0]}'?" if closest else ""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """Return the error for a name that is not in a table, with the closest known name.

    Of a long table the error lists the closest names.

    >>> str(unknown_name("method", "nrt-mg", ["nrt-gm", "sft"]))
    "unknown method 'nrt-mg'; did you mean 'nrt-gm'? Known: nrt-gm, sft"
    """
    names = sorted(known)
    hint = did_you_mean(name, names) or "."
    if len(names) > MAX_NAMES:
        nearest = get_close_matches(name, names, n=MAX_NAMES, cutoff=0.0)
        listed = f"The closest of {len(names)}: {', '.join(nearest)}"
    else:
        listed = f"Known: {', '.join(names)}"
    return InputError(f"unknown {kind} '{name:.100}'{hint} {listed}")
