"""Nested values → Config: the first fault becomes one InputError that names the setting, and the nearest one to a misspelt key."""

from __future__ import annotations

import types as pytypes
from collections.abc import Mapping
from reprlib import Repr
from typing import Any, Union, get_args, get_origin

from pydantic import ValidationError

from nrt.config.schema import Config, Section
from nrt.errors import InputError, unknown
from nrt.network import refuse_credentials

_SHORT = Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 3, 200, 200, 100
"""What was given, as an error shows it."""


def validate(values: Mapping[str, Any]) -> Config:
    """Config from nested values; the first fault becomes one InputError."""
    _check_keys(Config, values, prefix="")
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        faults = [(_key(fault["loc"]), fault) for fault in error.errors()]
        key, first = faults[0]
        branches = dict.fromkeys(fault["msg"][0].lower() + fault["msg"][1:] for where, fault in faults if where == key)  # of a union
        raise InputError(f"setting {key}={_SHORT.repr(first['input'])}: {' or '.join(branches)}") from None
    if config.traces < 1:
        raise InputError(f"traces={config.traces}: a group needs K ≥ 1 traces; set traces=8 as in the paper")
    if config.batch % config.updates_per_rollout:
        raise InputError(
            f"batch={config.batch} cannot be split into updates_per_rollout={config.updates_per_rollout} equal parts; "
            "set a batch that it divides"
        )
    if config.quantize and not config.lora.rank:
        raise InputError(f"quantize={config.quantize} freezes the weights that it shortens; set lora.rank=16 to train adapters beside them")
    for url in config.vllm.urls:
        refuse_credentials("vllm.urls", url)
    for kind in ("train", "valid"):
        if len({source.weight is None for source in config.data.sources(kind)}) == 2:
            raise InputError(f"some sources of data.{kind} have a weight and some have none; give a weight to all or to none")
    return config


def _section(annotation: Any) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    if get_origin(annotation) in (Union, pytypes.UnionType):
        return next((s for a in get_args(annotation) if (s := _section(a))), None)
    return None


def _item_section(annotation: Any) -> type[Section] | None:
    """The section that a list holds, where the setting may be a list of sections."""
    if get_origin(annotation) is tuple:
        return _section(get_args(annotation)[0])
    return next((s for a in get_args(annotation) if (s := _item_section(a))), None)


def annotation_of(key: str) -> Any:
    """The type of a dotted setting; None if there is no such setting."""
    section: type[Section] | None = Config
    annotation = None
    for part in key.split("."):
        if section is None or part not in section.model_fields:
            return None
        annotation = section.model_fields[part].annotation
        section = _section(annotation)
    return annotation


def _key(location: tuple[int | str, ...]) -> str:
    """The setting that pydantic's location points into, without list indices and branches of unions."""
    known, key = set(_known_keys(Config)), str(location[0])
    for part in location[1:]:
        key = longer if (longer := f"{key}.{part}") in known else key
    return key


def _known_keys(section: type[Section], prefix: str = "") -> list[str]:
    keys = []
    for name, info in section.model_fields.items():
        keys.append(prefix + name)
        if inner := _section(info.annotation):
            keys += _known_keys(inner, prefix + name + ".")
    return keys


def _check_keys(section: type[Section], values: Mapping[str, Any], prefix: str) -> None:
    for key, value in values.items():
        if key not in section.model_fields:
            raise unknown("setting", prefix + str(key), {*_known_keys(Config), *_known_keys(section, prefix)})
        annotation = section.model_fields[key].annotation
        if (inner := _section(annotation)) and isinstance(value, Mapping):
            _check_keys(inner, value, f"{prefix}{key}.")
        if (item := _item_section(annotation)) and isinstance(value, list | tuple):
            for part in value:
                if isinstance(part, Mapping):
                    _check_keys(item, part, f"{prefix}{key}.")
