"""Runs one program that a model wrote and says whether it ran to its end. Started by `nrt.eval.sandbox`, with Python's library alone.

Reads (token, program, limits) from stdin, closes it, gives up its rights (`layers`), runs the program, and reports on what was its
stdout: a line with the layers in force, and one with the token if the program passed, else with what stopped it.

The program shares this process, so what it must not find is kept from it: it runs on a thread of its own, called from C, with no
frame of ours beneath it; the token is a local of the main thread; and the functions that walk over all frames or objects are refused.
That stops a program that would rather exit, print or patch than pass; one written to read this process's memory could still lie.
"""

import _thread
import itertools
import marshal
import os
import sys
import types
import weakref
from typing import Any


def main() -> None:
    token, program, limits = marshal.load(sys.stdin.buffer)
    report, null = os.dup(1), os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    layers = _layers()
    sys.path.append(limits["packages"])
    in_force = layers.confine([*sys.path, *limits["readable"]], limits["memory"], limits["seconds"], limits["skip"])
    os.write(report, ", ".join(in_force).encode() + b"\n")
    stopped_by = run(program.decode("utf-8", "surrogatepass"))
    os.write(report, (token if stopped_by is None else stopped_by[:300].encode("utf-8", "backslashreplace")) + b"\n")
    os._exit(0)


def _layers() -> Any:
    """The module beside this one; after that its folder is no place for the program to import from."""
    import layers  # pyright: ignore[reportMissingImports]

    del sys.path[0], sys.modules["layers"]
    return layers


class Steps(list[tuple[Any, ...]]):
    """A list whose end can be watched."""


def run(program: str) -> str | None:
    """None if the program ran to its end, else one line on what stopped it.

    `finished.extend(starmap(exec, …))` is C calling C: no frame, no flag that the program could reach, and an exception of any kind
    leaves `finished` empty. The thread lets go of its steps when it ends, however it ends.
    """
    module = types.ModuleType("program")
    sys.modules["program"] = sys.modules["__main__"] = module
    finished: list[None] = []
    stopped_by = ["SystemExit"]  # which threads end with in silence

    def keep(unraisable: Any) -> None:
        stopped_by[:] = [described(unraisable.exc_value, program)]

    sys.unraisablehook = keep
    ended = _thread.allocate_lock()
    ended.acquire()
    steps = Steps([(program, vars(module))])
    watch = weakref.ref(steps, lambda _: ended.release())
    _thread.stack_size(64 << 20)
    _thread.start_new_thread(finished.extend, (itertools.starmap(exec, steps),))
    del steps
    ended.acquire()
    del watch
    return None if finished else stopped_by[0]


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
