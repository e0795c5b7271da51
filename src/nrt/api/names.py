"""Names under which a config holds methods and checkers that a caller passes as objects."""

from __future__ import annotations

import sys
from typing import Any

from nrt.data.checkers import CHECKERS, Checker
from nrt.errors import InputError
from nrt.objective import METHODS, Method
from nrt.objective.methods import PACKAGED


def method_name(method: str | Method) -> str:
    """Return the name of a method; a record is entered in METHODS under its own name.

    Raises InputError if the name is that of another method of nrt.
    """
    if not isinstance(method, Method):
        return method
    if method.name in PACKAGED and METHODS[method.name] != method:
        raise InputError(
            f"the method passed has the name of nrt's own '{method.name}' and other rules; give it "
            "a name of its own: replace(method, name=…)"
        )
    METHODS[method.name] = method
    return method.name


def checker_name(checker: str | Checker) -> str:
    """Return the name of a checker; of a function of the caller `package.module:function`.

    Raises InputError for a function that cannot be found by its name, because a resumed run could
    not find it either.
    """
    if isinstance(checker, str):
        return checker
    for name, function in CHECKERS.items():
        if function is checker:
            return name
    module = getattr(checker, "__module__", None)
    name = getattr(checker, "__qualname__", None)
    if not module or not name or _top_level(module, name) is not checker:
        raise InputError(
            f"checker {checker!r:.100} is no function at the top level of a module, so a resumed "
            "run could not find it; write it with def, outside of functions and classes"
        )
    return f"{module}:{name}"


def _top_level(module: str, name: str) -> Any:
    return getattr(sys.modules.get(module), name, None)
