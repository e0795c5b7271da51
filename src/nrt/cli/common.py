"""Helpers and argument types that several command files share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from nrt.errors import InputError
from nrt.system.environment import rank_and_world_size

if TYPE_CHECKING:
    from nrt.system.terminal import Terminal

Settings = Annotated[
    list[str],
    typer.Argument(
        metavar="RECIPE [key=value …]",
        help="Recipe name or YAML file, then settings that override those of the recipe.",
    ),
]


def console() -> Terminal:
    """Return a console that writes to standard output."""
    from nrt.system.terminal import Terminal

    return Terminal()


def print_line(text: str) -> None:
    """Print a line that is never wrapped, so that paths in it can be copied."""
    console().print(text, highlight=False, soft_wrap=True)


def check_single_process(command: str) -> None:
    """Raise InputError if torchrun started several processes of this command."""
    _, world_size = rank_and_world_size()
    if world_size > 1:
        raise InputError(
            f"torchrun started several `nrt {command}` processes. Run `nrt {command}` once, "
            "without torchrun."
        )
