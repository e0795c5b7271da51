"""Checks of nested settings, and the InputError that names the setting of the first error.

A misspelt key is reported with the nearest known key, or with nrt's name for a setting that
other libraries have too. `root` is the class of the config.
"""

from __future__ import annotations

import types as pytypes
from collections.abc import Mapping
from difflib import get_close_matches
from reprlib import Repr
from typing import Any, Union, get_args, get_origin

from pydantic import ValidationError

from nrt.config.aliases import ABSENT, ALIASES
from nrt.config.sections import Section
from nrt.errors import InputError, did_you_mean
from nrt.system.network import refuse_credentials

_SHORT = Repr()
"""Formats rejected values in errors."""

_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 3, 200, 200, 100


def annotation_of(root: type[Section], key: str) -> Any:
    """Return the type of a setting by its dotted key; None if there is no such setting."""
    section: type[Section] | None = root
    annotation = None
    for name in key.split("."):
        if section is None or name not in section.model_fields:
            return None
        annotation = section.model_fields[name].annotation
        section = section_of(annotation)
    return annotation


def first_error(root: type[Section], error: ValidationError) -> InputError:
    """Return the error for the setting of the first error.

    pydantic reports one error for each branch of a union; those of the same setting are joined.
    """
    errors = error.errors()
    key = _setting_key(root, errors[0]["loc"])
    value = _SHORT.repr(errors[0]["input"])
    section = section_of(annotation_of(root, key))
    if section and not isinstance(errors[0]["input"], Mapping):
        usual = {"data": "train", "heldout": "checker", "objective": "answer_weight"}
        example = usual.get(key, next(iter(section.model_fields)))
        return InputError(
            f"setting {key}={value}: {key} is a section of settings; set one of them, such as "
            f"{key}.{example}"
        )
    messages = []
    for detail in errors:
        if _setting_key(root, detail["loc"]) == key:
            message = detail["msg"]
            messages.append(message[0].lower() + message[1:])
    return InputError(f"setting {key}={value}: {' or '.join(dict.fromkeys(messages))}")


def check_combinations(config: Any) -> None:
    """Raise InputError for values that are valid on their own but not together."""
    if config.steps is not None and config.epochs is not None:
        raise InputError(
            f"steps={config.steps} and epochs={config.epochs:g} both say how long to train; set "
            "one of them to null"
        )
    if config.traces < 1:
        raise InputError(
            f"traces={config.traces}: a group needs K ≥ 1 traces; set traces=8 as in the paper"
        )
    if config.batch % config.updates_per_rollout:
        raise InputError(
            f"batch={config.batch} cannot be split into "
            f"updates_per_rollout={config.updates_per_rollout} equal parts; "
            "set a batch that it divides"
        )
    if config.quantize and not config.lora.rank:
        raise InputError(
            f"quantize={config.quantize} freezes the quantised weights; "
            "set lora.rank=16 to train adapters"
        )
    if config.tracking.samples and not config.log_traces:
        raise InputError(
            f"tracking.samples={config.tracking.samples} sends the traces that log_traces keeps, "
            "and log_traces is 0; set log_traces=1"
        )
    for url in config.vllm.urls:
        refuse_credentials("vllm.urls", url)
    for kind in ("train", "valid"):
        has_weight = {source.weight is not None for source in config.data.sources(kind)}
        if len(has_weight) == 2:
            raise InputError(
                f"some sources of data.{kind} have a weight and some have none; "
                "give a weight to all or to none"
            )


def section_of(annotation: Any) -> type[Section] | None:
    """Return the section that a setting is or, in a union, may be; None if it is no section."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    if get_origin(annotation) in (Union, pytypes.UnionType):
        for branch in get_args(annotation):
            section = section_of(branch)
            if section:
                return section
    return None


def _item_section(annotation: Any) -> type[Section] | None:
    """Return the section of the items, where a setting may be a list of sections."""
    if get_origin(annotation) is tuple:
        return section_of(get_args(annotation)[0])
    for branch in get_args(annotation):
        section = _item_section(branch)
        if section:
            return section
    return None


def _setting_key(root: type[Section], location: tuple[int | str, ...]) -> str:
    """Return the dotted key of an error location, without list indices and union branches."""
    known = set(_known_keys(root))
    key = str(location[0])
    for part in location[1:]:
        longer_key = f"{key}.{part}"
        if longer_key in known:
            key = longer_key
    return key


def _known_keys(section: type[Section], prefix: str = "") -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        inner = section_of(field.annotation)
        if inner:
            keys += _known_keys(inner, f"{prefix}{name}.")
    return keys


def check_keys(
    root: type[Section],
    settings: Mapping[str, Any],
    *,
    section: type[Section] | None = None,
    prefix: str = "",
) -> None:
    """Raise InputError for a key that the section (default: the config) does not have."""
    section = section or root
    for key, value in settings.items():
        if key not in section.model_fields:
            raise _unknown_setting(root, section, str(key), prefix)
        annotation = section.model_fields[key].annotation
        inner = section_of(annotation)
        if inner and isinstance(value, Mapping):
            check_keys(root, value, section=inner, prefix=f"{prefix}{key}.")
        item_section = _item_section(annotation)
        if item_section and isinstance(value, list | tuple):
            for item in value:
                if isinstance(item, Mapping):
                    check_keys(root, item, section=item_section, prefix=f"{prefix}{key}.")


def _unknown_setting(
    root: type[Section], section: type[Section], key: str, prefix: str
) -> InputError:
    if key in ALIASES:
        return InputError(f"unknown setting '{prefix}{key}'; in nrt it is {ALIASES[key]}")
    if key in ABSENT:
        return InputError(f"unknown setting '{prefix}{key}'; nrt has none: {ABSENT[key]}")
    known = {*_known_keys(root), *_known_keys(section, prefix)}
    hint = did_you_mean(prefix + key, known)
    if not hint and (near := get_close_matches(key, ALIASES, n=1)):
        hint = f"; in nrt {near[0]} is {ALIASES[near[0]]}"
    hint = hint or "; `nrt settings WORD` searches all of them"
    return InputError(f"unknown setting '{prefix}{key:.100}'{hint}")
