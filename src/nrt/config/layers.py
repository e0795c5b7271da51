"""Build a config from layers: schema defaults, profile, recipe, command line; later layers win."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, get_args

import yaml

from nrt.config.safe_yaml import parse_plain_yaml, read_yaml_file
from nrt.config.schema import SCHEMA_VERSION, Config
from nrt.config.validation import annotation_of, validate
from nrt.errors import InputError, unknown_name


def load_config(recipe: str, overrides: Iterable[str] = ()) -> Config:
    """Return the config of a recipe with `key=value` overrides.

    `recipe` is the name of a packaged recipe or the path of a YAML file, such as a run's
    config.yaml. Raises InputError for an unknown recipe, an unknown setting (with the nearest known
    one) or a value of the wrong type.
    """
    return build_config(_read_recipe(recipe), parse_overrides(overrides))


def build_config(*layers: Mapping[str, Any]) -> Config:
    """Merge layers over the profile that they name, and validate the result."""
    settings: dict[str, Any] = {}
    for layer in layers:
        settings = merge_settings(settings, layer)
    profile = str(settings.get("profile", Config.model_fields["profile"].default))
    return validate(merge_settings(_read_profile(profile), settings))


def dump_yaml(config: Config) -> str:
    """Return the resolved config as YAML, with the schema version first."""
    values = {"schema_version": SCHEMA_VERSION, **config.model_dump(mode="json")}
    return yaml.safe_dump(values, sort_keys=False)


def parse_yaml(text: str, source: str) -> Config:
    """Return the config that `dump_yaml` wrote; `source` names the text in errors.

    Raises InputError if another version of the schema wrote it.
    """
    return validate(_parse_settings(text, source))


def parse_overrides(arguments: Iterable[str]) -> dict[str, Any]:
    """Return `key=value` arguments as nested settings; values are YAML scalars or lists.

    >>> parse_overrides(["data.train=x.jsonl", "steps=3"])
    {'data': {'train': 'x.jsonl'}, 'steps': 3}
    """
    settings: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not key:
            raise InputError(
                f"'{argument:.100}' is not a setting; write key=value, for example steps=100"
            )
        value = _parse_value(text)
        if not isinstance(value, str | None) and _takes_text(key, value):
            value = text  # run=0012 is a name, not a number
        *sections, name = key.split(".")
        nested = {name: value}
        for section in reversed(sections):
            nested = {section: nested}
        settings = merge_settings(settings, nested)
    return settings


def merge_settings(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested mappings merged key by key; values of `upper` win.

    >>> merge_settings({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}})
    {'a': {'b': 3, 'c': 2}}
    """
    merged = dict(lower)
    for key, value in upper.items():
        lower_value = merged.get(key)
        if isinstance(lower_value, Mapping) and isinstance(value, Mapping):
            merged[key] = merge_settings(lower_value, value)
        else:
            merged[key] = value
    return merged


def packaged_recipes(folder: str = "") -> dict[str, Traversable]:
    """Return the packaged recipes by name; with folder="profiles" or "ablations", those instead."""
    root = files("nrt") / "recipes"
    if folder:
        root = root / folder
    return {Path(file.name).stem: file for file in root.iterdir() if file.name.endswith(".yaml")}


def _read_recipe(recipe: str, upper_recipes: tuple[str, ...] = ()) -> Mapping[str, Any]:
    """Return the settings of a recipe over those of the recipe that its key `over` names.

    `upper_recipes` are the recipes that led here, each over the next.
    """
    if recipe in upper_recipes:
        chain = " over ".join((*upper_recipes, recipe))
        raise InputError(
            f"recipe {recipe} builds on itself ({chain}); change the key `over` of one of them"
        )
    settings = dict(_read_layer(recipe))
    lower_recipe = settings.pop("over", None)
    if lower_recipe is None:
        return settings
    return merge_settings(_read_recipe(str(lower_recipe), (*upper_recipes, recipe)), settings)


def _read_layer(recipe: str) -> Mapping[str, Any]:
    if recipe.endswith((".yaml", ".yml")):
        path = Path(recipe)
        if not path.is_file():
            raise InputError(f"recipe {recipe}: no such file")
        return _parse_settings(read_yaml_file(path), recipe)
    known = packaged_recipes()
    if recipe not in known:
        raise unknown_name("recipe", recipe, known)
    return _parse_settings(known[recipe].read_text(encoding="utf-8"), recipe)


def _read_profile(name: str) -> Mapping[str, Any]:
    known = packaged_recipes("profiles")
    if name not in known:
        raise unknown_name("profile", name, known)
    return _parse_settings(known[name].read_text(encoding="utf-8"), f"profile {name}")


def _parse_settings(text: str, source: str) -> Mapping[str, Any]:
    """Return the settings in a YAML text.

    A run's config.yaml is a recipe too: its schema version is checked and removed.
    """
    settings = parse_plain_yaml(text, source)
    if settings is None:
        return {}
    if not isinstance(settings, Mapping):
        raise InputError(f"{source} must hold settings (key: value), not {type(settings).__name__}")
    version = settings.get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{source} has schema version {version!s:.20}, this nrt reads {SCHEMA_VERSION}; "
            "install the nrt that wrote it"
        )
    return {key: value for key, value in settings.items() if key != "schema_version"}


def _parse_value(text: str) -> Any:
    """Return a value of the command line: a YAML scalar or list.

    Unlike YAML 1.1, `1e-5` is a number. Text that is not YAML is kept as it is: `after: ####`.
    """
    try:
        value = parse_plain_yaml(text, text) if text else ""
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


def _takes_text(key: str, value: Any) -> bool:
    """Return True if the setting is a text, or may be one and the value is no list."""
    annotation = annotation_of(key)
    if annotation in (str, str | None):
        return True
    return str in get_args(annotation) and not isinstance(value, list)
