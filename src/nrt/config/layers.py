"""Build a config from layers: schema defaults, profile, recipe, command line; later layers win."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml

from nrt.config.recipes import SCHEMA_VERSION, merge_settings, packaged_recipes, parse_settings
from nrt.config.safe_yaml import parse_plain_yaml, read_yaml_file
from nrt.config.schema import Config
from nrt.config.sections import COMPLETE
from nrt.config.validation import annotation_of, check_keys
from nrt.errors import InputError, unknown_name

NEUTRAL_RECIPE = "pairs"
"""Recipe that is taken if none is named."""


def load_config(
    recipe: str | Path | None = None, overrides: Iterable[str] = (), **settings: Any
) -> Config:
    """Return the config of a recipe with settings over it.

    `load_config("gsm8k", steps=100, optimizer={"lr": 1e-5})`; in place of the mapping also
    `optimizer__lr=1e-5`.

    Args:
        recipe: name of a packaged recipe, or path of a YAML file, such as a run's config.yaml;
            None: the recipe `pairs`.
        overrides: `key=value` texts, as on the command line.
        settings: settings by name; they win over `overrides`.

    Raises InputError for an unknown recipe, an unknown setting (with the nearest known one) or a
    value of the wrong type.
    """
    name = NEUTRAL_RECIPE if recipe is None else str(recipe)
    return build_config(_read_recipe(name), parse_overrides(overrides), nest_settings(settings))


def build_config(*layers: Mapping[str, Any]) -> Config:
    """Merge layers, the later over the earlier ones and all over the profile that they name."""
    settings: dict[str, Any] = {}
    for layer in layers:
        settings = merge_settings(settings, layer)
    return Config.model_validate(settings)


def dump_yaml(config: Config) -> str:
    """Return the resolved config as YAML, with the schema version first."""
    values = {"schema_version": SCHEMA_VERSION, **config.model_dump(mode="json")}
    return yaml.safe_dump(values, sort_keys=False)


def parse_yaml(text: str, source: str) -> Config:
    """Return the config that `dump_yaml` wrote; `source` names the text in errors.

    Raises InputError if another version of the schema wrote it.
    """
    return Config.model_validate(parse_settings(text, source), context=COMPLETE)


def parse_overrides(arguments: Iterable[str]) -> dict[str, Any]:
    """Return `key=value` arguments as nested settings; values are YAML scalars or lists.

    >>> parse_overrides(["data.train=x.jsonl", "steps=3"])
    {'data': {'train': 'x.jsonl'}, 'steps': 3}
    """
    settings: dict[str, Any] = {}
    before = ""
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals and key.partition(".")[0] in Config.model_fields:
            raise InputError(f"setting {key} has no value; write {key}=VALUE without blanks")
        if not equals and before.endswith("="):
            raise InputError(f"a blank after {before}: write {before}{argument:.100} without it")
        before = argument
        if not equals or not key:
            hint = "write key=value, for example steps=100"
            if argument.endswith((".yaml", ".yml")):
                hint = "give one recipe, first; a recipe builds on another with its key `over`"
            elif os.path.exists(argument):  # Path raises for names that are too long
                hint = f"write data.train={argument}, or model={argument}"
            raise InputError(f"'{argument:.100}' is not a setting; {hint}")
        value = _parse_value(text)
        if not isinstance(value, str | None) and _takes_text(key, value):
            value = text  # run=0012 is a name, not a number
        if isinstance(value, str) and key.startswith(("data.columns.", "markers.")):
            value = value.replace("\\n", "\n").replace("\\t", "\t")  # a shell keeps both letters
        *sections, name = key.split(".")
        nested = {name: value}
        for section in reversed(sections):
            nested = {section: nested}
        settings = merge_settings(settings, nested)
    return settings


def nest_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments of a Python call as nested settings.

    A double underscore separates a section from its setting, and so does a dot. No setting has a
    double underscore in its own name. Paths become texts.

    >>> nest_settings({"optimizer__lr": 1e-5, "data": {"columns.answer": "a"}, "run": Path("x")})
    {'optimizer': {'lr': 1e-05}, 'data': {'columns': {'answer': 'a'}}, 'run': './x'}
    """
    nested: dict[str, Any] = {}
    for key, value in settings.items():
        layer: Any = value
        if isinstance(value, Mapping):
            layer = nest_settings(value)
        elif isinstance(value, os.PathLike):
            layer = os.fspath(value)
            if key in ("run", "resume") and os.path.basename(layer) == layer:
                # a name alone would be a folder in runs/
                layer = os.path.join(os.curdir, layer)
        for name in reversed(key.replace("__", ".").split(".")):
            layer = {name: layer}
        twice = sorted(flat_settings(nested).keys() & flat_settings(layer).keys())
        if twice:
            raise InputError(f"{twice[0]} is given twice; give it once")
        nested = merge_settings(nested, layer)
    return nested


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings under dotted names.

    >>> flat_settings({"data": {"train": None}, "steps": 3})
    {'data.train': None, 'steps': 3}
    """
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flat_settings(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


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
            raise InputError(
                f"recipe {recipe}: no such file; give a YAML file, or a recipe of `nrt recipes`"
            )
        settings = parse_settings(read_yaml_file(path), recipe)
        try:
            check_keys(Config, {key: settings[key] for key in settings if key != "over"})
        except InputError as error:
            raise InputError(f"{recipe}: {error}") from None
        return settings
    known = packaged_recipes()
    if recipe not in known:
        error = unknown_name("recipe", recipe, known)
        if (Path("runs") / recipe / "config.yaml").is_file():
            command = shlex.join(["nrt", "resume", recipe])
            error = InputError(f"{error}; to continue the run {recipe}: {command}")
        elif Path(f"{recipe}.yaml").is_file():
            error = InputError(f"{error}; the file is {recipe}.yaml")
        raise error
    return parse_settings(known[recipe].read_text(encoding="utf-8"), recipe)


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
    if value is None and text.strip() and text.strip().lower() not in ("null", "~"):
        return text  # YAML takes `# Be brief` for a comment
    if not isinstance(value, str) or text.lstrip()[:1] in ("'", '"'):
        return value
    try:
        return float(text)
    except ValueError:
        return text


def _takes_text(key: str, value: Any) -> bool:
    """Return True if the setting is a text, or may be one and the value is no list."""
    annotation = annotation_of(Config, key)
    if annotation in (str, str | None):
        return True
    return str in get_args(annotation) and not isinstance(value, list)
