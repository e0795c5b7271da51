import sys
from typing import Any, cast

import numpy as np
import pandas
import pytest

from nrt.data.checkers import CHECKERS, is_right, resolve_checker, resolve_dotted
from nrt.errors import InputError, RunError
from nrt.types import Example, Message

LAST_NUMBER = [
    ("1,234.50", "1234.5", True),
    ("so it costs $1,234.50.", "#### 1234.5", True),
    ("72", "72.0", True),
    ("it is 0.5 of it, that is 50%", "50", True),
    ("first 3, then 4", "3", False),
    ("first 3, then 4", "4", True),
    ("no number here", "4", False),
    ("no number here", "none there", False),
    ("4", "four", False),
    ("-4", "4", False),
    ("it falls to -4", "-4.00", True),
    ("it falls to −4", "-4", True),  # U+2212
    ("it owes -$4", "-4", True),
    ("it owes $-4", "-4", True),
    ("10-4", "4", True),  # a subtraction, not a negative number
    ("x = 10 - 4 = 6", "6", True),
    ("pages 3-7", "7", True),
    (".50", "0.5", True),
    ("1, 2, 3", "3", True),
    ("1,2,3", "3", True),
    ("1,2345", "2345", True),  # a list, since thousands have three digits
    ("12,345,678", "12345678", True),
    ("007", "7", True),
    ("1e-3", "0.001", True),
    ("1.5E3", "1500", True),
    ("3e8", "2e8", False),
    (
        "100000000000000000000000001",
        "100000000000000000000000000",
        False,
    ),  # floats would call them equal
    ("The answer is 42.", "42", True),
    ("€3,000", "3000", True),
    ("Answer - 42", "42", True),  # dashes between words and numbers
    ("- 42", "42", True),  # an item of a list
    ("The result is: - 42", "42", True),
    ("x = 10 - 4", "4", True),
    ("x = - 5", "-5", True),  # a sign with a space where a number must begin
    ("f(- 5)", "-5", True),
    ("it is –3", "-3", True),  # en dash
    ("pages 3–7", "7", True),
]


@pytest.mark.parametrize(("answer", "reference", "right"), LAST_NUMBER)
def test_last_number(answer, reference, right):
    assert CHECKERS["last-number"](answer, reference) is right


@pytest.mark.parametrize(
    ("name", "answer", "reference", "right"),
    [
        ("exact", "the room is c .", "  the room\tis c .\n", True),
        ("exact", "the room is c .", "the room is C .", False),
        ("exact", "the room is c", "the room is c .", False),
        ("exact", "", "  ", True),
        ("contains", "I think it was Jane\n Austen .", "jane austen", True),
        ("contains", "Jane", "Jane Austen", False),
        ("contains", "anything", "", False),
    ],
)
def test_text_checkers(name, answer, reference, right):
    assert CHECKERS[name](answer, reference) is right


def test_resolve_a_known_checker():
    assert resolve_checker("last-number") is CHECKERS["last-number"]


def test_resolve_an_unknown_checker_names_the_nearest():
    with pytest.raises(
        InputError, match="unknown checker 'last_number'; did you mean 'last-number'"
    ):
        resolve_checker("last_number")


@pytest.fixture
def working_directory(tmp_path, monkeypatch):
    """An empty working directory that was not on sys.path before."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("dotted_")]:
        del sys.modules[name]


def test_resolve_a_function_of_the_working_directory(working_directory):
    (working_directory / "dotted_mine.py").write_text(
        "def starts(answer, reference):\n    return answer.startswith(reference)\n"
    )
    checker = resolve_checker("dotted_mine:starts")
    assert checker("abc", "ab")
    assert not checker("abc", "b")


def test_resolve_a_function_in_a_package():
    assert resolve_dotted("os.path:join", "observer")("a", "b").endswith("b")


@pytest.mark.parametrize("name", ["os.path", ":join", "os.path:", ""])
def test_a_name_without_its_form_says_the_form(name):
    with pytest.raises(InputError, match=r"observer .* write package.module:function"):
        resolve_dotted(name, "observer")


def test_a_missing_module_says_where_it_was_sought(working_directory):
    with pytest.raises(
        InputError, match=r"importing dotted_none failed .* installed or in the working directory"
    ):
        resolve_dotted("dotted_none:f", "observer")


def test_a_module_that_fails_hands_on_its_reason(working_directory):
    (working_directory / "dotted_bad.py").write_text("raise RuntimeError('no licence')\n")
    with pytest.raises(InputError, match=r"RuntimeError: no licence") as caught:
        resolve_dotted("dotted_bad:f", "checker")
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_missing_function_names_the_nearest(working_directory):
    (working_directory / "dotted_some.py").write_text("LIMIT = 3\ndef starts(a, b): ...\n")
    with pytest.raises(
        InputError,
        match=r"unknown checker in dotted_some 'start'; did you mean 'starts'\? Known: starts$",
    ):
        resolve_dotted("dotted_some:start", "checker")
    with pytest.raises(InputError, match="unknown checker in dotted_some 'LIMIT'"):
        resolve_dotted("dotted_some:LIMIT", "checker")


def test_a_function_of_a_script_that_is_not_running():
    with pytest.raises(
        InputError, match=r"'__main__:mine' is a function of the script or notebook"
    ):
        resolve_checker("__main__:mine")


def test_a_function_with_other_arguments_is_refused(working_directory):
    (working_directory / "dotted_one.py").write_text("def check(answer): ...\n")
    with pytest.raises(InputError, match=r"write a function check\(answer, reference\)"):
        resolve_checker("dotted_one:check")


def test_what_a_checker_may_return():
    example = Example("x:1", (Message("user", "one ?"),), "two")
    assert is_right(lambda answer, reference: answer == reference, "two", example)
    assert not is_right(lambda answer, reference: not answer, "two", example)
    with pytest.raises(RunError, match=r"\('2', 'two'\) returned 'yes'; return True or False"):
        is_right(cast(Any, lambda answer, reference: "yes"), "2", example)
    for value in (pandas.NA, np.array([True, True])):
        with pytest.raises(RunError, match="return True or False"):
            is_right(cast(Any, lambda answer, reference, value=value: value), "2", example)
    with pytest.raises(RunError, match=r"\('2', 'two'\) failed: ZeroDivisionError: "):
        is_right(cast(Any, lambda answer, reference: 1 / 0), "2", example)
