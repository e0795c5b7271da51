"""The pages of commands and settings, generated from the command line and the config themselves."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

ROOT = Path(__file__).parents[2]
PAGE = re.compile(r"\bdocs/([\w-]+)\.md")


def commands_page() -> str:
    """Return the page of all commands with their arguments and options."""
    sys.path.insert(0, str(ROOT / "src"))
    import typer.main

    from nrt.cli.app import app

    group: Any = typer.main.get_command(app)
    text = [
        "# Commands",
        "This page lists every command of `nrt` with its options, for readers who know what they "
        "want to do. `nrt COMMAND --help` prints the same.",
        "```bash\nnrt train gsm8k model=MODEL data.train=FILE run=NAME\n```",
        "Exit status: 0 success, 1 a run failed, 2 bad arguments or input, 130 interrupted with a "
        "checkpoint saved.",
    ]
    for name, command in group.commands.items():
        for title, leaf in _leaves(f"nrt {name}", command):
            text += _command_section(title, leaf)
    return "\n\n".join(text) + "\n"


def settings_page() -> str:
    """Return the page of all settings with their types, defaults and meanings."""
    sys.path.insert(0, str(ROOT / "src"))
    from nrt.config import Config
    from nrt.config.data_sections import SourceConfig

    text = [
        "# Settings",
        "This page lists every setting of a run, for readers who write recipes or `key=value` on "
        "the command line. `nrt train RECIPE … --dry-run` prints the values that a run would have.",
        "```bash\nnrt train gsm8k model=MODEL data.train=FILE optimizer.lr=2e-6 "
        "heldout.checker=contains\n```",
        "A recipe may also have the key `over`: the recipe that it builds on. B, K, N, R, c and y* "
        "are those of the [glossary](../glossary.md) and the [paper](../paper-index.md). The "
        "defaults are those of the schema; profile and recipe set others.",
    ]
    for prefix, section in _sections(Config, ""):
        text += [f"## {prefix or 'Top level'}", _settings_table(section, prefix)]
    text += ["## Items of data.train and data.valid", _settings_table(SourceConfig, "")]
    return "\n\n".join(text) + "\n"


def _leaves(title: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Yield (title, command) of a command, or of all commands of a group."""
    subcommands = getattr(command, "commands", None)
    if subcommands is None:
        yield title, command
        return
    for name, subcommand in subcommands.items():
        yield from _leaves(f"{title} {name}", subcommand)


def _command_section(title: str, command: Any) -> list[str]:
    summary, _, rest = (command.help or "").partition("\n\n")
    section = [f"## {title}", _cell(summary)]
    if rest.strip():
        section.append(f"```text\n{rest.strip()}\n```")
    rows = ["| argument or option | default | meaning |", "|---|---|---|"]
    for parameter in command.params:
        if parameter.name == "help":
            continue
        rows.append(_parameter_row(parameter))
    return [*section, "\n".join(rows)]


def _parameter_row(parameter: Any) -> str:
    option = any(name.startswith("-") for name in parameter.opts)
    names = ", ".join(f"`{name}`" for name in parameter.opts)
    if not option:
        names = f"`{parameter.metavar or parameter.name}`"
    elif parameter.metavar:
        names += f" `{parameter.metavar}`"
    default = parameter.default
    if parameter.required:
        shown = "required"
    elif default is None or default is False or default == "" or callable(default):
        shown = ""
    else:
        shown = f"`{default}`"
    return f"| {names} | {shown} | {_cell(parameter.help or '')} |"


def _sections(section: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield (prefix, section) of a section and of the sections in it."""
    yield prefix, section
    for name, field in section.model_fields.items():
        if inner := _section_of(field.annotation):
            yield from _sections(inner, f"{prefix}.{name}" if prefix else name)


def _section_of(annotation: Any) -> Any:
    """Return the section that a setting is, or may be besides null; otherwise None."""
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return next((part for part in parts if hasattr(part, "model_fields")), None)


def _settings_table(section: Any, prefix: str) -> str:
    rows = ["| setting | type | default | meaning |", "|---|---|---|---|"]
    for name, field in section.model_fields.items():
        if hasattr(field.annotation, "model_fields"):
            continue  # a table of its own
        key = f"{prefix}.{name}" if prefix else name
        default = "" if field.is_required() else _default(field.default)
        kind = _cell(_type_name(field.annotation))
        rows.append(f"| `{key}` | {kind} | {default} | {_cell(field.description or '')} |")
    return "\n".join(rows)


def _default(value: Any) -> str:
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple | dict):
        return f"`{', '.join(map(str, value))}`" if value else "none"
    return f"`{value!r}`" if isinstance(value, str) and not value.strip() else f"`{value}`"


def _type_name(annotation: Any) -> str:
    """Return a type as a reader of a recipe sees it, such as `int` or `ddp | fsdp`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_name(arguments[0])
    if origin is Literal:
        return " | ".join(f"`{value}`" for value in arguments)
    if origin in (Union, UnionType):
        parts = [_type_name(part) for part in arguments if part is not type(None)]
        return " | ".join(dict.fromkeys(parts))
    if origin is tuple:
        return "list"
    if origin is dict or annotation is dict:
        return "mapping"
    if hasattr(annotation, "model_fields"):
        return "section"
    return {"str": "text", "bool": "true or false"}.get(annotation.__name__, annotation.__name__)


def _cell(text: str) -> str:
    """Return text for a table cell: one line, with links to the pages that it names."""
    line = " ".join(text.split()).replace("|", r"\|")
    return PAGE.sub(r"[\1.md](../\1.md)", line)
