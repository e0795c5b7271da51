"""Runs one side of a program's test, confined. Started by `nrt.eval.sandbox`, with Python's library alone.

    answer   runs what a model wrote, then calls the function that it defines, as often as it is asked to
    check    runs the benchmark's own test, which asks the other process wherever it calls the function, and says whether it passed

Arguments: the role, and the numbers of two pipes, to read from and to write to. A role reads what it has to do from stdin, closes it,
gives up its rights (`layers`), and does it. `check` then writes two lines to what was its stdout: the layers in force, and PASSED or
FAILED with what went wrong.

What a model wrote thus shares no process with what judges it: it is asked for values, and values are all that it can say. They travel
as JSON (`encoded`), never as pickles.
"""

import builtins
import json
import marshal
import os
import sys
import types
from collections.abc import Callable
from contextlib import suppress
from typing import Any, BinaryIO

PASSED, FAILED, ENDED = "passed", "failed: ", "the program's process has ended"
"""The verdict's line is the first, or the second and then words, some of them the program's; the third are words of ours."""


def main() -> None:
    role, reads, writes = sys.argv[1], os.fdopen(int(sys.argv[2]), "rb"), os.fdopen(int(sys.argv[3]), "wb")
    task, limits = marshal.load(sys.stdin.buffer)
    report, null = os.dup(1), os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    layers = _layers()
    sys.path.append(limits["packages"])
    in_force = layers.confine([*sys.path, *limits["readable"]], limits["memory"], limits["seconds"], limits["skip"])
    texts = {name: text.decode("utf-8", "surrogatepass") for name, text in task.items()}
    if role == "answer":
        os.close(report)
        answer(Wire(reads, writes), texts["code"], texts["entry"])
    else:
        os.write(report, ", ".join(in_force).encode() + b"\n")
        failure = check(Wire(reads, writes), texts["setup"], texts["test"], texts["entry"])
        verdict = PASSED if failure is None else FAILED + failure[:300]
        os.write(report, verdict.encode("utf-8", "backslashreplace") + b"\n")
    os._exit(0)


def _layers() -> Any:
    """The module beside this one; after that its folder is no place for the program to import from."""
    import layers  # pyright: ignore[reportMissingImports]

    del sys.path[0], sys.modules["layers"]
    return layers


class Wire:
    """Lines of JSON between the two processes."""

    def __init__(self, reads: BinaryIO, writes: BinaryIO) -> None:
        self.reads, self.writes = reads, writes

    def say(self, kind: str, value: Any = None) -> None:
        self.writes.write(json.dumps([kind, value]).encode() + b"\n")
        self.writes.flush()

    def hear(self) -> tuple[str, Any] | None:
        """None: the other process has ended, or says something else than it should."""
        try:
            kind, value = json.loads(self.reads.readline())
        except (ValueError, TypeError, RecursionError, OSError):
            return None
        return kind, value


# --- the side of what a model wrote ---


def answer(wire: Wire, code: str, entry: str) -> None:
    module = types.ModuleType("program")
    sys.modules["program"] = sys.modules["__main__"] = module
    try:
        exec(code, vars(module))
        function = vars(module)[entry] if entry else None
    except BaseException as error:
        wire.say("raised", described(error, code))
        return
    wire.say("ready")
    while heard := wire.hear():
        positional, named = heard[1]
        try:
            value = encoded(function(*map(decoded, positional), **{name: decoded(item) for name, item in named.items()}))  # pyright: ignore[reportOptionalCall]
        except BaseException as error:
            wire.say("raised", described(error, code))
        else:
            wire.say("value", value)


# --- the side of the test ---


def check(wire: Wire, setup: str, test: str, entry: str) -> str | None:
    """None if the test passed, else one line on what went wrong.

    `setup` is the benchmark's own text (imports and helpers that the test uses); in it and in the test `entry` is the other process's
    function. Without a test it passes where the program runs to its end.
    """
    heard = wire.hear()
    if heard is None or heard[0] != "ready":
        return _said(heard)

    def function(*positional: Any, **named: Any) -> Any:
        try:
            wire.say("call", [[encoded(item) for item in positional], {name: encoded(item) for name, item in named.items()}])
        except OSError:
            raise Told(ENDED) from None
        heard = wire.hear()
        if heard is None or heard[0] != "value":
            raise _error(_said(heard))
        return decoded(heard[1])

    module = sys.modules["program"] = types.ModuleType("program")
    names = vars(module)
    try:
        if test:
            exec(setup, names)
            names[entry] = function
            exec(test, names)
            names["check"](function)
    except Told as error:
        return str(error.args[0])  # str() of a KeyError would quote it
    except BaseException as error:
        return described(error, test)
    return None


def _said(heard: tuple[str, Any] | None) -> str:
    return ENDED if heard is None else str(heard[1]) or "error"


class Told(Exception):
    """What the other process said of an error of its own."""


def _error(said: str) -> Exception:
    """As the kind that it was, where that is one which a test may expect. Not StopIteration: it would end a loop of the test's."""
    kind = getattr(builtins, said.partition(":")[0], None)
    if isinstance(kind, type) and issubclass(kind, ArithmeticError | AssertionError | LookupError | TypeError | ValueError):
        with suppress(TypeError):  # a kind that wants more than a text
            return type(kind.__name__, (Told, kind), {})(said)
    return Told(said)


# --- values ---


class Other:
    """Stands for a value that is none of those that `encoded` knows: equal to nothing but itself."""


def encoded(value: Any) -> Any:
    """A value as JSON. Kinds derived from Python's own travel as these (a Counter as a dict), numpy's numbers as Python's."""
    if value is None or isinstance(value, bool | str):
        return value if value is None or isinstance(value, bool) else str.__str__(value)
    if isinstance(value, int):
        return ["int", hex(int(value))]
    if isinstance(value, float):
        return ["float", float(value).hex()]
    if isinstance(value, complex):
        return ["complex", value.real.hex(), value.imag.hex()]
    if isinstance(value, bytes | bytearray):
        return [type(value).__name__, bytes(value).hex()]
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return [kind.__name__, [encoded(item) for item in value]]
    if isinstance(value, dict):
        return ["dict", [[encoded(key), encoded(item)] for key, item in value.items()]]
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        return encoded(value.item())
    return ["other"]


MAKE: dict[str, Callable[..., Any]] = {
    "int": lambda text: int(text, 16),
    "float": float.fromhex,
    "complex": lambda real, imaginary: complex(float.fromhex(real), float.fromhex(imaginary)),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "list": lambda items: [decoded(item) for item in items],
    "tuple": lambda items: tuple(decoded(item) for item in items),
    "set": lambda items: {decoded(item) for item in items},
    "frozenset": lambda items: frozenset(decoded(item) for item in items),
    "dict": lambda pairs: {decoded(key): decoded(item) for key, item in pairs},
    "other": Other,
}


def decoded(value: Any) -> Any:
    """The inverse of `encoded`. Raises some Exception for anything else."""
    if value is None or isinstance(value, bool | str):
        return value
    kind, *rest = value
    return MAKE[kind](*rest)


def described(error: BaseException, program: str) -> str:
    """An assertion without words of its own is told by its line."""
    said = " ".join(str(error).split())
    if not said and isinstance(error, AssertionError):
        step = error.__traceback__
        while step and step.tb_next:
            step = step.tb_next
        if step and step.tb_frame.f_code.co_filename == "<string>":
            said = program.split("\n")[step.tb_lineno - 1].strip()
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


if __name__ == "__main__":
    main()
