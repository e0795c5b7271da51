"""The page of commands, generated from the command line itself."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


def _cell(text: str) -> str:
    """Return text for a table cell: one line, with links to the pages that it names."""
    line = " ".join(text.split()).replace("|", r"\|")
    return PAGE.sub(r"[\1.md](../\1.md)", line)
