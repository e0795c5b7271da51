"""The public Python interface: every name has a docstring, every parameter is described, and docs/python.md has every signature."""

import inspect
import re
from pathlib import Path

import pytest

import nrt

PAGE = (Path(__file__).parents[1] / "docs" / "python.md").read_text(encoding="utf-8")
FUNCTIONS = [name for name in nrt.__all__ if inspect.isfunction(getattr(nrt, name))]
CLASSES = ["Callback", "Control", "EarlyStopping", "Run"]
RECORDS = ["Config", "Method"]
"""Their fields are described where they are defined: settings, and rules of a method."""

METHODS = [
    (name, method)
    for name in CLASSES
    for method, value in vars(getattr(nrt, name)).items()
    if inspect.isfunction(value) and not method.startswith("_")
    if name == "Callback" or not hasattr(nrt.Callback, method)
]


def signature(function, *, without_self=False):
    """The signature as the page writes it: no annotations."""
    parameters = list(inspect.signature(function).parameters.values())[without_self:]
    plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    return str(inspect.Signature(plain)).replace("'", '"')


def documented(text):
    return " ".join(text.split()) in " ".join(PAGE.split())


def test_every_public_name_is_here():
    errors = [name for name in nrt.__all__ if name.endswith("Error")]
    assert sorted(nrt.__all__) == sorted([*FUNCTIONS, *CLASSES, *RECORDS, *errors, "Interrupted"])
    assert set(nrt.__all__) <= set(dir(nrt))


@pytest.mark.parametrize("name", nrt.__all__)
def test_every_public_name_is_described(name):
    assert inspect.getdoc(getattr(nrt, name))
    assert f"nrt.{name}" in PAGE


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_page_has_the_functions(name):
    assert documented(f"nrt.{name}{signature(getattr(nrt, name))}")


@pytest.mark.parametrize("name", CLASSES)
def test_the_page_has_the_classes(name):
    assert documented(f"nrt.{name}{signature(getattr(nrt, name))}")


@pytest.mark.parametrize(("name", "method"), METHODS)
def test_the_page_has_their_methods(name, method):
    function = getattr(getattr(nrt, name), method)
    block = PAGE.partition(f"\nnrt.{name}(")[2].partition("\nnrt.")[0] + "\n"
    assert f"    .{method}{signature(function, without_self=True)}\n" in block
    assert inspect.getdoc(function)


@pytest.mark.parametrize("name", ["train", "resume", "load_config"])
def test_every_parameter_is_described(name):
    function = getattr(nrt, name)
    described = set(re.findall(r"^ {4}(\w+): ", inspect.getdoc(function) or "", re.MULTILINE))
    expected = set(inspect.signature(function).parameters)
    assert expected <= described


def test_the_page_begins_with_an_example_of_five_lines():
    example = PAGE.partition("```python\n")[2].partition("```")[0]
    assert len(example.strip().splitlines()) == 5
