"""From layers to a config: the schema's defaults, the profile, the recipe, the command line; later ones win."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, get_args

import yaml

from nrt.config.schema import SCHEMA_VERSION, Config
from nrt.config.validation import annotation_of, validate
from nrt.errors import InputError, unknown

MOST_VALUES = 10_000
"""In a recipe."""

LARGEST_FILE = 4 * 2**20
"""Bytes of a recipe."""

LONGEST_NUMBER = 100
"""Characters. YAML reads `1:1:1` in base 60, which takes minutes for a long one."""


def load_config(recipe: str, overrides: Iterable[str] = ()) -> Config:
    """Reads a recipe (a packaged name or a YAML path, also a run's config.yaml) and `key=value` overrides.

    Raises InputError for an unknown recipe, an unknown setting (with the nearest known one) or a value of the wrong type.
    """
    return build_config(_read_recipe(recipe), parse_overrides(overrides))


def build_config(*layers: Mapping[str, Any]) -> Config:
    """Merges layers over the profile that they name and validates the result."""
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = merge(merged, layer)
    profile = str(merged.get("profile", Config.model_fields["profile"].default))
    return validate(merge(_read_profile(profile), merged))


def dump_yaml(config: Config) -> str:
    """The resolved config as YAML, with the schema version first."""
    values = {"schema_version": SCHEMA_VERSION, **config.model_dump(mode="json")}
    return yaml.safe_dump(values, sort_keys=False)


def parse_yaml(text: str, source: str) -> Config:
    """The inverse of `dump_yaml`. Raises InputError when a later nrt wrote it."""
    return validate(_settings(text, source))


def read_text(path: Path) -> str:
    """A file of settings. Raises InputError where it cannot be read, or is larger than any recipe."""
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
        if len(data) > LARGEST_FILE:
            raise InputError(f"{path} is larger than {LARGEST_FILE >> 20} MiB, so it is no recipe; give another file")
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (byte {error.start + 1}); save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None


def parse_overrides(arguments: Iterable[str]) -> dict[str, Any]:
    """`["data.train=x.jsonl", "steps=3"]` → `{"data": {"train": "x.jsonl"}, "steps": 3}`; values are YAML scalars."""
    values: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not key:
            raise InputError(f"'{argument:.100}' is not a setting; write key=value, for example steps=100")
        value = _scalar(text)
        annotation = annotation_of(key)
        named = annotation in (str, str | None) or (str in get_args(annotation) and not isinstance(value, list))
        if not isinstance(value, str | None) and named:
            value = text  # run=0012 is a name, not a number
        *sections, name = key.split(".")
        nested = {name: value}
        for section in reversed(sections):
            nested = {section: nested}
        values = merge(values, nested)
    return values


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings merged key by key; values of `above` win.

    >>> merge({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}})
    {'a': {'b': 3, 'c': 2}}
    """
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def packaged(folder: str = "") -> dict[str, Traversable]:
    """Names and files of the packaged recipes (or, with folder="profiles", of the profiles)."""
    root = files("nrt") / "recipes"
    root = root / folder if folder else root
    return {Path(f.name).stem: f for f in root.iterdir() if f.name.endswith(".yaml")}


def _read_recipe(recipe: str, above: tuple[str, ...] = ()) -> Mapping[str, Any]:
    """A recipe's settings; its key `over` names the recipe that it lies over."""
    if recipe in above:
        raise InputError(f"recipe {recipe} lies over itself ({' over '.join((*above, recipe))}); change the key `over` of one of them")
    values = dict(_read_layer(recipe))
    below = values.pop("over", None)
    return values if below is None else merge(_read_recipe(str(below), (*above, recipe)), values)


def _read_layer(recipe: str) -> Mapping[str, Any]:
    if recipe.endswith((".yaml", ".yml")):
        path = Path(recipe)
        if not path.is_file():
            raise InputError(f"recipe {recipe}: no such file")
        return _settings(read_text(path), recipe)
    known = packaged()
    if recipe not in known:
        raise unknown("recipe", recipe, known)
    return _settings(known[recipe].read_text(encoding="utf-8"), recipe)


def _read_profile(name: str) -> Mapping[str, Any]:
    known = packaged("profiles")
    if name not in known:
        raise unknown("profile", name, known)
    return _settings(known[name].read_text(encoding="utf-8"), f"profile {name}")


def _settings(text: str, source: str) -> Mapping[str, Any]:
    """What a YAML file sets. A run's config.yaml can be used as a recipe: its schema version is checked and left out."""
    values = plain_values(text, source)
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise InputError(f"{source} must hold settings (key: value), not {type(values).__name__}")
    if (version := values.get("schema_version", SCHEMA_VERSION)) != SCHEMA_VERSION:
        raise InputError(f"{source} has schema version {version!s:.20}, this nrt reads {SCHEMA_VERSION}; install the nrt that wrote it")
    return {key: value for key, value in values.items() if key != "schema_version"}


def plain_values(text: str, source: str) -> Any:
    """The value that a YAML text holds: plain types only.

    Raises InputError for text that is not YAML, or that holds more than MOST_VALUES values with its aliases and merge keys written out:
    aliases of aliases make billions out of a line, so they are counted before they are.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _values_in(node, {}) > MOST_VALUES:
            raise _TooManyValues
        return loader.construct_document(node)
    except _TooManyValues:
        raise InputError(
            f"{source} holds more than {MOST_VALUES:,} values (a YAML alias within itself?); write them out, or in a data file"
        ) from None
    except Exception as error:  # also ValueError and others, of values that are not what their tag says, and of deep nesting
        raise InputError(f"{source} is not valid YAML: {' '.join(str(error).split())[:300]}") from None


class _TooManyValues(Exception): ...


class _Loader(yaml.SafeLoader):
    """Stops after MOST_VALUES values (a file of gigabytes is not read to its end), and refuses a key that stands twice."""

    composed = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.composed += 1
        if self.composed > MOST_VALUES:
            raise _TooManyValues
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if twice := next((key for key, count in keys.items() if count > 1), None):
            raise ValueError(f"'{twice:.80}' stands twice, in line {node.start_mark.line + 1} or below; remove one")
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > LONGEST_NUMBER:
            raise ValueError(f"a number of {len(node.value):,} characters")
        return super().construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def _values_in(node: yaml.Node, counted: dict[int, float]) -> float:
    """Values of a node with its aliases written out; infinite for a node within itself."""
    if id(node) not in counted:
        counted[id(node)] = math.inf  # until it is known: met again before that, it is within itself
        children: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            children = node.value
        elif isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
        counted[id(node)] = 1 + sum(_values_in(child, counted) for child in children)
    return counted[id(node)]


def _scalar(text: str) -> Any:
    """A YAML scalar or list; also 1e-5, which YAML 1.1 takes for a string. Text that is not quoted stays as it is: `after: ####`."""
    try:
        value = plain_values(text, text) if text else ""
    except InputError:
        return text
    if isinstance(value, Mapping):
        return text
    if not isinstance(value, str) or text.lstrip()[:1] in ("'", '"'):
        return value
    try:
        return float(text)
    except ValueError:
        return text
