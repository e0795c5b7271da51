"""Answers right or wrong, for held-out accuracy and for rlvr; and names of the form `package.module:function`."""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from collections.abc import Callable
from decimal import Decimal
from importlib import import_module
from typing import TYPE_CHECKING, Any

from nrt.errors import InputError, unknown

if TYPE_CHECKING:
    from nrt.types import Example

Checker = Callable[[str, str], bool]
"""(the model's answer, the reference) -> whether the answer is right."""


def resolve_checker(name: str) -> Checker:
    """A row of CHECKERS, or a function of yours by its dotted name. Raises InputError for any other name."""
    if name in CHECKERS:
        return CHECKERS[name]
    if ":" in name:
        return resolve_dotted(name, "checker")
    raise unknown("checker", name, [*CHECKERS, "package.module:function"])


def is_right(checker: Checker, answer: str, example: Example) -> bool:
    """Whether the checker takes the answer for any of the example's references."""
    return any(checker(answer, reference) for reference in example.references or (example.answer,))


def exact(answer: str, reference: str) -> bool:
    """Equal but for white space and for how an accent is written.

    >>> exact(" Paris\\n is  it", "Paris is it"), exact("paris", "Paris")
    (True, False)
    """
    return _spaced(answer) == _spaced(reference)


def contains(answer: str, reference: str) -> bool:
    """The reference occurs in the answer, but for white space and case. An empty reference occurs nowhere.

    >>> contains("It was  JANE\\nAusten.", "Jane Austen"), contains("Austen", "Jane Austen"), contains("Austen", " ")
    (True, False, False)
    """
    wanted = _spaced(reference.casefold())
    return bool(wanted) and wanted in _spaced(answer.casefold())


def last_number(answer: str, reference: str) -> bool:
    """The last number of each is the same, whatever its commas, currency, per-cent sign and trailing zeros.

    A text without a number is wrong. Numbers like 1e-3 are understood, fractions are not.

    >>> last_number("It costs $1,234.50.", "#### 1234.5"), last_number("from 3 to -4", "4"), last_number("four", "four")
    (True, False, False)
    """
    found, wanted = _last_number(answer), _last_number(reference)
    return found is not None and found == wanted


CHECKERS: dict[str, Checker] = {"exact": exact, "last-number": last_number, "contains": contains}


def resolve_dotted(name: str, kind: str) -> Callable[..., Any]:
    """The function that `package.module:function` names; modules in the working directory are found too.

    `kind` says in errors what the function is for. Raises InputError when the name has no such form, when the module is
    missing or fails to import, and when it has no such function.
    """
    module_name, colon, function_name = name.partition(":")
    if not (module_name and colon and function_name):
        raise InputError(f"{kind} '{name}' is not a dotted name; write package.module:function")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = import_module(module_name)
    except Exception as error:  # whatever the user's module does when it is imported
        raise InputError(
            f"{kind} '{name}': importing {module_name} failed ({type(error).__name__}: {error}); "
            "it must be installed or lie in the working directory"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise unknown(f"{kind} in {module_name}", function_name, [n for n, value in vars(module).items() if callable(value)])
    return function


_NUMBER = re.compile(
    r"""(?P<sign>(?<![\w)%])[-−]\s?)?         # a minus after a word or a number is a dash or a subtraction
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


def _spaced(text: str) -> str:
    """In the composed form of Unicode: tokenizers that bring text into it are common, and data in the other form too."""
    return " ".join(unicodedata.normalize("NFC", text).split())
