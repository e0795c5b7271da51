"""Run one side of a program's test in a confined process.

`nrt.eval.sandbox` starts this script. It imports only Python's library.

    answer   run the model's code, then call the function that it defines for each request
    check    run the benchmark's test, which requests every value of the function from the other
             process, and report whether the test passed

Arguments: the role, and the numbers of two pipes, one to read from and one to write to. A role
reads its task from stdin, closes stdin, gives up its rights (`layers`), and performs the task.
`check` then writes two lines to its former stdout: the layers in force, and PASSED or FAILED with
the reason.

The model's code thus shares no process with the code that judges it. It receives requests for
values and can send only values. They travel as JSON (`encode`), never as pickles.
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

PASSED = "passed"
FAILED = "failed: "
"""Start of the verdict's line after a failure; the text after it may come from the program."""

ENDED = "the program's process has ended"
"""Reason of a failure that this script sets, not the program."""


def main() -> None:
    """Run the role that the arguments name."""
    role = sys.argv[1]
    reader, writer = os.fdopen(int(sys.argv[2]), "rb"), os.fdopen(int(sys.argv[3]), "wb")
    task, limits = marshal.load(sys.stdin.buffer)
    report, null = os.dup(1), os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    layers = _import_layers()
    sys.path.append(limits["packages"])
    readable = [*sys.path, *limits["readable"]]
    in_force = layers.confine(readable, limits["memory"], limits["seconds"], limits["skip"])
    texts = {name: text.decode("utf-8", "surrogatepass") for name, text in task.items()}
    if role == "answer":
        os.close(report)
        answer(Channel(reader, writer), texts["code"], texts["entry"])
    else:
        os.write(report, ", ".join(in_force).encode() + b"\n")
        failure = check(Channel(reader, writer), texts["setup"], texts["test"], texts["entry"])
        verdict = PASSED if failure is None else FAILED + failure[:300]
        os.write(report, verdict.encode("utf-8", "backslashreplace") + b"\n")
    os._exit(0)


def _import_layers() -> Any:
    """Import `layers` from this folder, then remove the folder from the program's import path."""
    import layers  # pyright: ignore[reportMissingImports]

    del sys.path[0], sys.modules["layers"]
    return layers


class Channel:
    """Messages between the two processes, one line of JSON each."""

    def __init__(self, reader: BinaryIO, writer: BinaryIO) -> None:
        self.reader, self.writer = reader, writer

    def send(self, kind: str, value: Any = None) -> None:
        """Send a message."""
        self.writer.write(json.dumps([kind, value]).encode() + b"\n")
        self.writer.flush()

    def receive(self) -> tuple[str, Any] | None:
        """Return (kind, value); None if the other process has ended or sent an invalid message."""
        try:
            kind, value = json.loads(self.reader.readline())
        except (ValueError, TypeError, RecursionError, OSError):
            return None
        return kind, value


# --- process of the model's code ---


def answer(channel: Channel, code: str, entry: str) -> None:
    """Run `code`, then call its function `entry` for each request until the other process ends."""
    module = types.ModuleType("program")
    sys.modules["program"] = sys.modules["__main__"] = module
    try:
        exec(code, vars(module))
        function = vars(module)[entry] if entry else None
    except BaseException as error:
        channel.send("raised", describe_error(error, code))
        return
    channel.send("ready")
    while request := channel.receive():
        positional, named = request[1]
        try:
            value = encode(
                function(  # pyright: ignore[reportOptionalCall]
                    *map(decode, positional),
                    **{name: decode(item) for name, item in named.items()},
                )
            )
        except BaseException as error:
            channel.send("raised", describe_error(error, code))
        else:
            channel.send("value", value)


# --- process of the test ---


def check(channel: Channel, setup: str, test: str, entry: str) -> str | None:
    """Return None if the test passed, else one line with the reason.

    `setup` is the benchmark's own text, imports and helpers that the test uses. In `setup` and in
    the test, the name `entry` refers to the function of the other process. Without a test, a
    program passes if it runs to its end.
    """
    message = channel.receive()
    if message is None or message[0] != "ready":
        return _failure_text(message)

    def function(*positional: Any, **named: Any) -> Any:
        try:
            channel.send(
                "call",
                [
                    [encode(item) for item in positional],
                    {name: encode(item) for name, item in named.items()},
                ],
            )
        except OSError:
            raise ProgramError(ENDED) from None
        message = channel.receive()
        if message is None or message[0] != "value":
            raise _as_exception(_failure_text(message))
        return decode(message[1])

    module = sys.modules["program"] = types.ModuleType("program")
    names = vars(module)
    try:
        if test:
            exec(setup, names)
            names[entry] = function
            exec(test, names)
            names["check"](function)
    except ProgramError as error:
        return str(error.args[0])  # str() of a KeyError would add quotes
    except BaseException as error:
        return describe_error(error, test)
    return None


def _failure_text(message: tuple[str, Any] | None) -> str:
    return ENDED if message is None else str(message[1]) or "error"


class ProgramError(Exception):
    """Error that the other process reported."""


def _as_exception(text: str) -> Exception:
    """Return a reported error as an exception of the same kind, if a test may expect that kind.

    StopIteration is not among these kinds: it would end a loop of the test.
    """
    kind = getattr(builtins, text.partition(":")[0], None)
    expected = ArithmeticError | AssertionError | LookupError | TypeError | ValueError
    if isinstance(kind, type) and issubclass(kind, expected):
        with suppress(TypeError):  # a kind that requires more than a text
            return type(kind.__name__, (ProgramError, kind), {})(text)
    return ProgramError(text)


# --- values ---


class OpaqueValue:
    """Placeholder for a value that `encode` does not support; equal only to itself."""


def encode(value: Any) -> Any:
    """Encode a value as JSON.

    Subclasses of Python's types become these types (a Counter becomes a dict), and NumPy's scalars
    become Python's numbers.
    """
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
            return [kind.__name__, [encode(item) for item in value]]
    if isinstance(value, dict):
        return ["dict", [[encode(key), encode(item)] for key, item in value.items()]]
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        return encode(value.item())
    return ["other"]


DECODERS: dict[str, Callable[..., Any]] = {
    "int": lambda text: int(text, 16),
    "float": float.fromhex,
    "complex": lambda real, imaginary: complex(float.fromhex(real), float.fromhex(imaginary)),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "list": lambda items: [decode(item) for item in items],
    "tuple": lambda items: tuple(decode(item) for item in items),
    "set": lambda items: {decode(item) for item in items},
    "frozenset": lambda items: frozenset(decode(item) for item in items),
    "dict": lambda pairs: {decode(key): decode(item) for key, item in pairs},
    "other": OpaqueValue,
}


def decode(value: Any) -> Any:
    """Decode the result of `encode`. Raises an exception of any type for other input."""
    if value is None or isinstance(value, bool | str):
        return value
    kind, *parts = value
    return DECODERS[kind](*parts)


def describe_error(error: BaseException, program: str) -> str:
    """Describe an error in one line; for an assertion without a message, by its source line."""
    message = " ".join(str(error).split())
    if not message and isinstance(error, AssertionError):
        step = error.__traceback__
        while step and step.tb_next:
            step = step.tb_next
        if step and step.tb_frame.f_code.co_filename == "<string>":
            message = program.split("\n")[step.tb_lineno - 1].strip()
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


if __name__ == "__main__":
    main()
