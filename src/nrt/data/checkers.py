"""Checkers of answers, for held-out accuracy and for rlvr, and functions by their dotted names."""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from collections.abc import Callable
from decimal import Decimal
from importlib import import_module
from inspect import signature
from typing import TYPE_CHECKING, Any

from nrt.errors import InputError, RunError, unknown_name

if TYPE_CHECKING:
    from nrt.types import Example

Checker = Callable[[str, str], bool]
"""(the model's answer, the reference answer) → whether the answer is right."""


def resolve_checker(name: str) -> Checker:
    """Return a checker of CHECKERS, or the user's function with that dotted name.

    Raises InputError for any other name, and for a function that does not take two arguments.
    """
    if name in CHECKERS:
        return CHECKERS[name]
    if ":" in name:
        checker = resolve_dotted(name, "checker")
        try:
            signature(checker).bind("answer", "reference")
        except TypeError:
            raise InputError(
                f"checker '{name}' cannot be called with two arguments; write a function "
                "check(answer, reference) that returns True or False"
            ) from None
        except ValueError:  # a function of C has no signature
            pass
        return checker
    raise unknown_name("checker", name, [*CHECKERS, "package.module:function"])


def is_right(checker: Checker, answer: str, example: Example) -> bool:
    """Return whether the checker accepts the answer for any reference answer of the example.

    Raises RunError if the checker fails, or returns something else than True or False.
    """
    references = example.references or (example.answer,)
    return any(_verdict(checker, answer, reference) for reference in references)


def _verdict(checker: Checker, answer: str, reference: str) -> bool:
    name = getattr(checker, "__qualname__", repr(checker))
    called = f"checker {name}({answer!r:.80}, {reference!r:.80})"
    try:
        verdict = checker(answer, reference)
    except Exception as error:  # the user's code
        raise RunError(f"{called} failed: {type(error).__name__}: {error}") from error
    if not _is_verdict(verdict):
        raise RunError(f"{called} returned {verdict!r:.80}; return True or False")
    return bool(verdict)


def _is_verdict(value: Any) -> bool:
    """Return whether a value is True or False, also NumPy's. An array has no truth, nor has NA."""
    try:
        return value in (True, False)
    except (TypeError, ValueError):
        return False


def exact(answer: str, reference: str) -> bool:
    """Return whether both are equal, apart from white space and the encoding of accents.

    >>> exact(" Paris\\n is  it", "Paris is it"), exact("paris", "Paris")
    (True, False)
    """
    return _normalise(answer) == _normalise(reference)


def contains(answer: str, reference: str) -> bool:
    """Return whether the answer contains the reference, apart from white space and case.

    An empty reference occurs in no answer.

    >>> contains("It was  JANE\\nAusten.", "Jane Austen"), contains("Austen", "Jane Austen")
    (True, False)
    >>> contains("Austen", " ")
    False
    """
    wanted = _normalise(reference.casefold())
    return bool(wanted) and wanted in _normalise(answer.casefold())


def last_number(answer: str, reference: str) -> bool:
    """Return whether the last numbers of both are equal.

    Commas, currency, per-cent signs and trailing zeros do not matter. A text without a number is
    wrong. Numbers like 1e-3 are understood, fractions are not.

    >>> last_number("It costs $1,234.50.", "#### 1234.5"), last_number("from 3 to -4", "4")
    (True, False)
    >>> last_number("four", "four")
    False
    """
    number = _last_number(answer)
    return number is not None and number == _last_number(reference)


CHECKERS: dict[str, Checker] = {
    "exact": exact,
    "last-number": last_number,
    "contains": contains,
}


def resolve_dotted(name: str, kind: str) -> Callable[..., Any]:
    """Return the function `package.module:function`, also of modules in the working directory.

    `kind` names the function's purpose in errors. Raises InputError if the name has another form,
    if the module is missing or fails to import, and if it has no such function.
    """
    module_name, colon, function_name = name.partition(":")
    if not (module_name and colon and function_name):
        raise InputError(f"{kind} '{name}' is not a dotted name; write package.module:function")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = import_module(module_name)
    except Exception as error:  # the import runs the user's code, which may raise anything
        raise InputError(
            f"{kind} '{name}': importing {module_name} failed ({type(error).__name__}: {error}); "
            "the module must be installed or in the working directory"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function) and module_name == "__main__":
        raise InputError(
            f"{kind} '{name}' is a function of the script or notebook that started the run; resume "
            "the run there, or move the function into a module"
        )
    if not callable(function):
        functions = [name for name, value in vars(module).items() if callable(value)]
        raise unknown_name(f"{kind} in {module_name}", function_name, functions)
    return function


_NUMBER = re.compile(
    r"""(?P<sign>(?<![\w)%])[-−]          # after a word or a number it is a dash or a subtraction
            |(?<![\w)%])(?<!\d\s)–       # an en dash often stands between two numbers
            |(?<=[=(≈{\[<>,])\s*[-−–]\s+  # followed by a space only where a number must begin
        )?
        [$€£]?
        (?P<sign2>(?<=[$€£])[-−])?
        (?P<digits>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)
        (?P<exponent>[eE][+-]?\d{1,3}(?!\w))?""",
    re.VERBOSE,
)


def _last_number(text: str) -> Decimal | None:
    matches = list(_NUMBER.finditer(text))
    if not matches:
        return None
    match = matches[-1]
    minus = "-" if match["sign"] or match["sign2"] else ""
    return Decimal(minus + match["digits"].replace(",", "") + (match["exponent"] or ""))


def _normalise(text: str) -> str:
    # NFC composes accents. Tokenizers often do so too, while data may have the other form.
    return " ".join(unicodedata.normalize("NFC", text).split())
