"""From layers to a config: the schema's defaults, the profile, the recipe, the command line; later ones win."""

from __future__ import annotations

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
    """A file of settings. Raises InputError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
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
    """What YAML holds. Raises InputError where it holds none, or more than recipes do: aliases within aliases make billions of a line."""
    try:
        values = yaml.safe_load(text)
    except Exception as error:  # also ValueError and others, of values that are not what their tag says, and of deep nesting
        raise InputError(f"{source} is not valid YAML: {' '.join(str(error).split())[:300]}") from None
    waiting, seen = [values], 0
    while waiting:
        value = waiting.pop()
        seen += 1
        waiting += [*value.keys(), *value.values()] if isinstance(value, dict) else value if isinstance(value, list | tuple | set) else ()
        if seen > MOST_VALUES:
            raise InputError(
                f"{source} holds more than {MOST_VALUES:,} values (a YAML alias within itself?); write them out, or in a data file"
            )
    return values


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
