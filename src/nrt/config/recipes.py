"""Packaged recipes and profiles; nested settings, read from YAML and merged."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from nrt.config.safe_yaml import parse_plain_yaml
from nrt.errors import InputError, unknown_name

SCHEMA_VERSION = 1


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


def read_profile(name: str) -> Mapping[str, Any]:
    """Return the settings of a profile. Raises InputError if there is none with that name."""
    known = packaged_recipes("profiles")
    if name not in known:
        raise unknown_name("profile", name, known)
    return parse_settings(known[name].read_text(encoding="utf-8"), f"profile {name}")


def parse_settings(text: str, source: str) -> Mapping[str, Any]:
    """Return the settings in a YAML text; `source` names it in errors.

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
