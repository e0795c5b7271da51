"""The sandbox: outcomes of programs that pass or fail, and the operations that it refuses."""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

import pytest

from nrt.eval.sandbox import (
    ModelProgram,
    ProgramOutcome,
    _run,
    describe_confinement,
    run_programs,
    usable_cores,
)

SOON = 0.7
"""Seconds; a program that is to time out."""

KERNEL = ("landlock", "seccomp", "capabilities")
ALL = (*KERNEL, "memory limit", "other limits", "audit hook")


def outcome(
    program: str, timeout_s: float = 10.0, memory_mb: int = 1024, skip: tuple[str, ...] = ()
) -> ProgramOutcome:
    return _run(ModelProgram(program), timeout_s, memory_mb, skip)[0]


def needs(layer: str) -> None:
    if layer not in describe_confinement().partition(";")[0]:
        pytest.skip(f"this system has no {layer}")


def test_confinement_says_in_one_line_what_is_in_force() -> None:
    said = describe_confinement()
    assert said.startswith("programs are confined by ")
    assert "audit hook" in said
    assert "\n" not in said
    assert ("NOT in force" in said) == any(
        layer not in said.partition(";")[0] for layer in ("memory limit", "landlock", "seccomp")
    )


def test_a_layer_that_is_skipped_is_not_said_to_be_in_force() -> None:
    assert _run(ModelProgram(""), 10.0, 1024, ALL) == (ProgramOutcome(True), "")


PASSES = [
    "",
    "def f(x):\n    return x + 1\n\nassert f(1) == 2",
    "import math, re, collections, dataclasses, typing, itertools, functools, heapq, hashlib, random, string, datetime, decimal",
    "import numpy as np\nassert np.prod([2, 3]) == 6\nassert abs(np.linalg.det(np.eye(3)) - 1) < 1e-9",  # human-eval's programs may
    "import dataclasses\n@dataclasses.dataclass\nclass A:\n    x: 'int' = 1\nassert A().x == 1",
    "import threading\nfound = []\nt = threading.Thread(target=found.append, args=(1,))\nt.start()\nt.join()\nassert found == [1]",
    "print('é' * 100)\nimport sys\nsys.stderr.write('words')",
    "with open('/dev/null', 'w') as sink:\n    print('words', file=sink)",
    "import os\ntry:\n    os.fork()\nexcept OSError:\n    pass",  # refused, not killed
    "if __name__ == '__main__':\n    raise SystemExit",  # no more the main program than in human-eval
    "def f(n):\n    return 0 if n == 0 else 1 + f(n - 1)\nassert f(900) == 900",
    "import sys\nsys.setrecursionlimit(20000)\ndef f(n):\n    return 0 if n == 0 else 1 + f(n - 1)\nassert f(9000) == 9000",
]


@pytest.mark.parametrize("program", PASSES)
def test_a_program_that_runs_to_its_end_passes(program: str) -> None:
    assert outcome(program) == ProgramOutcome(True)


FAILS = {
    "def f(x):\n    return x\n\nassert f(1) == 2": "AssertionError: assert f(1) == 2",
    "x = 'open": "SyntaxError: unterminated string literal (detected at line 1) (<string>, line 1)",
    "assert 1 == 2, 'two\\nlines'": "AssertionError: two lines",
    "raise ValueError('wrong')": "ValueError: wrong",
    "raise KeyboardInterrupt": "KeyboardInterrupt",
    "1 / 0": "ZeroDivisionError: division by zero",
    "def f(:\n    pass": "SyntaxError: invalid syntax (<string>, line 1)",
    "return 1": "SyntaxError: 'return' outside function (<string>, line 1)",
    "x = '\ud800'": "UnicodeEncodeError: 'utf-8' codec can't encode character '\\ud800' in position 5: surrogates not allowed",
    "(" * 100_000: "SyntaxError: too many nested parentheses (<string>, line 1)",
    "def f():\n    f()\nf()": "RecursionError: maximum recursion depth exceeded",
    "raise ValueError('x' * 10**6)": f"ValueError: {'x' * 288}",
    "input()": "EOFError: EOF when reading a line",
    "x = [0] * 10**10": "MemoryError",
    "x = []\nwhile True:\n    x.append(bytes(1 << 20))": "MemoryError",
}


@pytest.mark.parametrize(("program", "detail"), FAILS.items(), ids=range(len(FAILS)))
def test_what_stopped_a_program_is_told_in_one_line(program: str, detail: str) -> None:
    assert outcome(program) == ProgramOutcome(False, detail)


def test_a_null_byte_is_a_syntax_error() -> None:
    """Or a value error, to some Pythons."""
    assert outcome("x = '\0'").detail.endswith("source code string cannot contain null bytes")


@pytest.mark.parametrize(
    "program",
    [
        "while True:\n    pass",
        "import time\ntime.sleep(60)",
        "while True:\n    print('x' * 100_000)",
        "import threading\nthreading.Event().wait()",
        "try:\n    while True:\n        pass\nexcept BaseException:\n    pass",
    ],
)
def test_a_program_without_end_is_stopped(program: str) -> None:
    started = time.monotonic()
    assert outcome(program, SOON) == ProgramOutcome(False, f"timed out after {SOON} s")
    assert time.monotonic() - started < SOON + 2


FORGERY = """
import os
for number in range(64):
    for line in (b'passed', b'["value", ["int", "0x4"]]', b'["ready", null]', b'[]', b'[[[['):
        try:
            os.write(number, line + bytes([10]))
        except OSError:
            pass
os._exit(0)
"""
FRAMES = """
import sys
frame = sys._getframe()
while frame:
    frame.f_globals.update(check=lambda *_: None, PASSED='wrong', describe_error=lambda *_: 'passed', encode=lambda _: ['int', '0x3'])
    frame = frame.f_back
"""
EQUAL = """
class Equal(int):
    def __eq__(self, other): return True
    __hash__ = int.__hash__
    def __index__(self): return 3
    def __int__(self): return 3
"""
HOOK = """
import sys
report = {}
def steal(*given):
    frame = given[-1].tb_frame if given[-1] else None
    while frame:
        report.update(frame.f_locals)
        frame = frame.f_back
sys.excepthook = sys.unraisablehook = steal
import _thread
_thread.interrupt_main()
"""
WRONG = "\ndef double(x):\n    return 3\n"
TEST = "def check(double):\n    assert double(2) == 4\n    assert all(map(double, [1, 2]))\n"


def doubled(code: str) -> ProgramOutcome:
    (found,) = run_programs([ModelProgram(code, "double", test=TEST)])
    return found


def test_a_function_that_is_right_passes() -> None:
    assert doubled("def double(x):\n    return 2 * x") == ProgramOutcome(True)
    assert doubled(WRONG) == ProgramOutcome(False, "AssertionError: assert double(2) == 4")


@pytest.mark.parametrize(
    "code",
    [
        "raise SystemExit",
        "import os\nos._exit(0)",
        "import _thread\n_thread.exit()",
        "import os\nos.abort()",
        "import os\nos.closerange(0, 100)" + WRONG,
        FORGERY,
        "print('passed')" + WRONG,
        "import sys\nsys.unraisablehook = lambda *_: None" + WRONG,
        "import sys\n[c.cell_contents.clear() for c in getattr(sys.unraisablehook, '__closure__', None) or ()]\nsys.exit()",
        "import os\nos.write = lambda number, text: len(text)" + WRONG,
        HOOK + WRONG,
        "import builtins\nbuiltins.exec = builtins.AssertionError = None" + WRONG,
        "import __main__\n__main__.check = __main__.answer = lambda *_: None" + WRONG,
        "import atexit, os\natexit.register(os._exit, 0)" + WRONG,
        FRAMES + WRONG,
        "import gc\n[x.append(None) for x in gc.get_objects() if x == []]" + WRONG,
        'import json\njson.dumps = lambda value: \'["value", ["other"]]\'' + WRONG,
        EQUAL + "def double(x):\n    return Equal(3)",
        "class Equal:\n    def __eq__(self, other): return True\ndef double(x):\n    return Equal()",
        "def double(x):\n    raise StopIteration",
        "def double(x):\n    raise type('ProgramError', (Exception,), {})('passed')",
        "def double(x):\n    raise Exception('passed')",
        "import os\ndef double(x):\n    os._exit(0)",
        "def check(function):\n    pass\ndef double(x):\n    return 3",
    ],
)
def test_a_program_cannot_say_itself_that_it_passed(code: str) -> None:
    found = doubled(code)
    assert not found.passed
    assert found.detail


SAYS_RAISED = """
import os
for number in range(3, 64):
    try:
        os.write(number, b'["raised", "passed"]' + bytes([10]))
    except OSError:
        pass
"""


@pytest.mark.parametrize(
    "code",
    [
        "raise type('passed', (Exception,), {})()",
        "def double(x):\n    raise type('passed', (Exception,), {})()",
        "def double(x):\n    raise type('failed: passed', (Exception,), {})()",
        SAYS_RAISED + WRONG,
    ],
)
def test_the_words_of_a_program_are_not_the_verdict(code: str) -> None:
    found = doubled(code)
    assert not found.passed
    assert found.detail


VALUES = [
    "None", "True", "0", "-17", "2 ** 200", "1.5", "float('inf')", "0.1 + 0.2", "1 + 2j", "'é\\ud800'", "b'\\xff'", "[]",
    "[1, [2, (3,)]]", "(1, 'a')", "{1, 2}", "frozenset({1})", "{'a': [1], 2: {}}", "{(1, 2): None}",
]  # fmt: skip


def test_values_come_and_go_as_they_are() -> None:
    """Subclasses become Python's own types, other objects equal nothing: no test runs a program's code."""
    same = "def same(x):\n    return x"
    check = "def check(same):\n    x = {}\n    assert same(x) == x and type(same(x)) is type(x) and repr(same(x)) == repr(x), same(x)"
    for value in VALUES:
        assert run_programs([ModelProgram(same, "same", test=check.replace("{}", value, 1))]) == [
            ProgramOutcome(True)
        ], value
    get = "import collections, enum\nimport numpy as np\nclass E(enum.IntEnum):\n    A = 3\ndef get():\n    return {}"
    derived = {
        "collections.Counter('aab')": "{'a': 2, 'b': 1}",
        "E.A": "3",
        "np.int64(3)": "3",
        "np.float64(1.5)": "1.5",
        "np.bool_(True)": "True",
    }
    for made, value in derived.items():
        check = f"def check(get):\n    assert get() == {value} and type(get()) is type({value})"
        assert run_programs([ModelProgram(get.replace("{}", made), "get", test=check)]) == [
            ProgramOutcome(True)
        ], made
    check = (
        "def check(get):\n    assert get() != [0, 1, 2] and get() != get() and get() is not None"
    )
    for other in ("range(3)", "object()", "(x for x in [1])", "np.zeros(2)", "map(int, [])"):
        assert run_programs([ModelProgram(get.replace("{}", other), "get", test=check)]) == [
            ProgramOutcome(True)
        ], other


EXPECTS = """
def check(f):
    try:
        f(0)
    except ZeroDivisionError as error:
        assert 'division' in str(error)
    else:
        assert False
"""


def test_a_test_may_expect_an_error() -> None:
    programs = [
        ModelProgram(f"def f(x):\n    return {value}", "f", test=EXPECTS)
        for value in ("1 / x", "x", "{}[x]")
    ]
    assert run_programs(programs) == [
        ProgramOutcome(True),
        ProgramOutcome(False, "AssertionError: assert False"),
        ProgramOutcome(False, "KeyError: 0"),
    ]


def test_a_test_has_the_helpers_of_the_benchmark_and_none_of_the_programs() -> None:
    setup = "def helper(x):\n    return x + 1\n\n\ndef f(x):\n    'Adds one.'\n"
    test = "def check(f):\n    assert f(1) == helper(1) == 2"
    codes = (setup + "    return x + 1", setup + "    return 7\n\n\ndef helper(x):\n    return 7")
    right, cheat = run_programs([ModelProgram(code, "f", setup, test) for code in codes])
    assert right == ProgramOutcome(True)
    assert cheat == ProgramOutcome(False, "AssertionError: assert f(1) == helper(1) == 2")


def test_neither_process_outlives_a_verdict() -> None:
    """A program that goes on after its test has ended, and a test whose program has ended."""
    started = time.monotonic()
    waits = "\nimport threading\nthreading.Thread(target=threading.Event().wait).start()"
    assert doubled("def double(x):\n    return 2 * x" + waits).passed
    assert doubled("import os\ndef double(x):\n    os._exit(3)") == ProgramOutcome(
        False, "exited with status 3"
    )
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "program",
    [
        "open({path!r}, 'w').write('x')",
        "import os\nos.close(os.open({path!r}, os.O_WRONLY | os.O_CREAT))",
        "import os\nos.mkdir({path!r})",
        "import os\nos.symlink('/', {path!r})",
        "import os\nos.rename({kept!r}, {path!r})",
        "import os\nos.remove({kept!r})",
        "import os\nos.truncate({kept!r}, 0)",
        "open({kept!r}, 'r+').write('x')",
        "import os\nos.chmod({kept!r}, 0)",
        "import os\nos.utime({kept!r}, (0, 0))",
        "import shutil\nshutil.rmtree({folder!r})",
        "open({kept!r}).read()",
    ],
)
@pytest.mark.parametrize("hook", [True, False], ids=["all layers", "the kernel alone"])
def test_files_outside_are_out_of_reach(program: str, hook: bool, tmp_path: Path) -> None:
    if not hook:
        needs("landlock")
        needs("seccomp")
    kept = tmp_path / "kept"
    kept.write_text("secret", encoding="utf-8")
    before = kept.stat()
    given = program.format(path=str(tmp_path / "new"), kept=str(kept), folder=str(tmp_path))
    found = outcome(given, skip=() if hook else ("audit hook", "other limits"))
    assert not found.passed
    assert found.detail.startswith("PermissionError: ")
    assert [file.name for file in tmp_path.iterdir()] == ["kept"]
    assert kept.read_text(encoding="utf-8") == "secret"
    assert (kept.stat().st_mode, kept.stat().st_mtime) == (before.st_mode, before.st_mtime)


def test_a_symbolic_link_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "null").symlink_to(tmp_path / "new")
    assert outcome(f"open({str(tmp_path / 'null')!r}, 'w')").detail.startswith("PermissionError: ")
    assert not (tmp_path / "new").exists()


def test_not_even_its_own_folder_takes_a_byte() -> None:
    """So that no number of programs fills a disk. First by the hook and Landlock, then by the limit alone."""
    huge = "with open('huge', 'wb') as file:\n    while True:\n        file.write(bytes(1 << 20))"
    assert outcome(huge).detail.startswith("PermissionError: the sandbox refuses to open ")
    assert (
        outcome(huge, skip=(*KERNEL, "audit hook")).detail == "OSError: [Errno 27] File too large"
    )


def test_its_folder_is_empty_and_gone_afterwards() -> None:
    found = outcome(
        "import os\nraise ValueError(os.getcwd() + ' ' + str(os.listdir('.')))", skip=("landlock",)
    )
    _, folder, listing = found.detail.split(" ")
    assert listing == "[]"
    assert not Path(folder).exists()


def test_the_environment_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NRT_TEST_SECRET", "token")
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    held = "set(os.environ) - {'LC_CTYPE', 'OPENBLAS_NUM_THREADS', 'PYTHONHASHSEED'}"  # the first is Python's own doing
    assert outcome(f"import os\nassert not {held}") == ProgramOutcome(True)


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")
def test_the_parents_environment_is_out_of_reach_too(monkeypatch: pytest.MonkeyPatch) -> None:
    read = "import os\nopen(f'/proc/{os.getppid()}/environ', 'rb').read()"
    assert outcome(read).detail.startswith("PermissionError: the sandbox refuses to open /proc/")
    needs("landlock")
    assert outcome(read, skip=("audit hook",)).detail.startswith("PermissionError: [Errno 13]")


@pytest.mark.parametrize("skip", [(), ("audit hook",)], ids=["all layers", "the kernel alone"])
@pytest.mark.parametrize("family", ["AF_INET", "AF_UNIX"])
def test_there_is_no_network(
    skip: tuple[str, ...], family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if skip:
        needs("seccomp")
    monkeypatch.chdir(tmp_path)  # a socket's path has to be short
    with socket.socket(getattr(socket, family)) as listening:
        listening.bind(("127.0.0.1", 0) if family == "AF_INET" else "socket")
        listening.listen()
        listening.setblocking(False)
        address = listening.getsockname() if family == "AF_INET" else str(tmp_path / "socket")
        found = outcome(
            f"import socket\nsocket.socket(socket.{family}).connect({address!r})", skip=skip
        )
        assert found.detail.startswith("PermissionError: ")
        with pytest.raises(BlockingIOError):
            listening.accept()


@pytest.mark.parametrize("skip", [(), ("audit hook",)], ids=["all layers", "the kernel alone"])
@pytest.mark.parametrize(
    "program",
    [
        "import os\nos.fork()",
        "import os\nfor _ in range(50):\n    os.fork()",
        "import os\nos.execv('/bin/sh', ['sh', '-c', 'exit 0'])",
        "import os\nos.posix_spawn('/bin/true', ['true'], {})",
        "import subprocess\nsubprocess.run(['true'])",
        "import multiprocessing\nmultiprocessing.Process(target=print).start()",
        "import os\nos.kill(os.getppid(), 0)",
        "import os\nos.killpg(0, 0)",
    ],
)
def test_there_are_no_further_processes_and_no_signals(program: str, skip: tuple[str, ...]) -> None:
    if skip:
        needs("seccomp")
    assert outcome(program, skip=skip).detail.startswith("PermissionError: ")


def test_ctypes_is_absent_and_useless() -> None:
    for how in ("import ctypes", "import _ctypes", "from ctypes import CDLL"):
        assert outcome(how).detail.startswith("ModuleNotFoundError: import of ")
    smuggled = "import importlib, sys\nsys.modules.clear()\nimportlib.import_module('_ctypes').dlopen(None, 0)"
    assert outcome(smuggled) == ProgramOutcome(
        False, "PermissionError: the sandbox refuses ctypes.dlopen"
    )


def test_rights_once_given_up_do_not_come_back() -> None:
    raised = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))"
    needs("capabilities")
    assert outcome(raised).detail == "ValueError: not allowed to raise maximum limit"


BEATING = """
import os, time
def beat():
    while True:
        with open({file!r}, 'a') as file:
            file.write('x')
        time.sleep(0.01)
try:
    if os.fork() == 0:
        {detach}
        beat()
    time.sleep(0.2)
except OSError:
    pass
"""


def test_a_process_left_behind_is_dead_afterwards(tmp_path: Path) -> None:
    """Without any layer, as on a system that has none: the group is killed. With them, none can be left behind, whatever it does."""
    file = tmp_path / "beats"
    assert outcome(BEATING.format(file=str(file), detach="pass"), skip=ALL).passed
    beats = file.stat().st_size
    assert beats > 0
    time.sleep(0.1)
    assert file.stat().st_size == beats
    file.unlink()
    needs("seccomp")
    for skip in ((), ("audit hook", "landlock", "other limits")):
        assert outcome(BEATING.format(file=str(file), detach="os.setsid()"), skip=skip).passed
        assert not file.exists()


def test_outcomes_come_in_the_order_of_their_programs() -> None:
    programs = [f"import time\ntime.sleep({(7 * k) % 5 / 50})\nassert {k} % 3" for k in range(12)]
    expected = [
        ProgramOutcome(True) if k % 3 else ProgramOutcome(False, f"AssertionError: assert {k} % 3")
        for k in range(12)
    ]
    assert run_programs([ModelProgram(program) for program in programs], jobs=4) == expected


def test_the_same_program_is_run_once() -> None:
    started = time.monotonic()
    assert (
        run_programs([ModelProgram("import time\ntime.sleep(0.5)")] * 20, jobs=1)
        == [ProgramOutcome(True)] * 20
    )
    assert time.monotonic() - started < 5
    assert run_programs([]) == []
    assert usable_cores() >= 1


def test_hashes_are_the_same_on_every_run() -> None:
    """A set of words in another order is another verdict."""
    first, second = (
        outcome(f"raise ValueError(list({{'a', 'b', 'c', 'd', 'e', 'f'}}))  # {k}")
        for k in range(2)
    )
    assert first == second
