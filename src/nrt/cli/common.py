"""Helpers and argument types that several command files share."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from nrt.errors import InputError, did_you_mean
from nrt.system.environment import rank_and_world_size

if TYPE_CHECKING:
    from nrt.system.terminal import Terminal

Settings = Annotated[
    list[str],
    typer.Argument(
        metavar="RECIPE [key=value …]",
        help="Recipe name or YAML file (default: pairs), then settings over those of the recipe.",
    ),
]


class SettingsCommand(TyperCommand):
    """A command with `key=value` arguments, which explains `--key VALUE` in nrt's own terms."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Raise InputError for an option that the command does not have."""
        command = "nrt" + ctx.command_path.removeprefix(ctx.find_root().command_path)
        known: dict[str, bool] = {}  # option → whether it takes a value
        for parameter in self.get_params(ctx):
            takes_value = not getattr(parameter, "is_flag", False)
            known.update(dict.fromkeys((*parameter.opts, *parameter.secondary_opts), takes_value))
        previous = ""
        for i, argument in enumerate(args):
            if argument == "--" or ctx.resilient_parsing:
                break
            name = argument.partition("=")[0]
            is_option = argument.startswith("-") and argument != "-" and not known.get(previous)
            if is_option and not {name, name[:2]} & known.keys():
                raise InputError(_explain_option(argument, args[i + 1 : i + 2], command))
            previous = argument
        return super().parse_args(ctx, args)


def _explain_option(argument: str, following: list[str], command: str) -> str:
    """Return the error for an option that is not the command's; `following` may hold its value."""
    from nrt.config import Config
    from nrt.config.aliases import ABSENT, ALIASES

    name, _, value = argument.lstrip("-").partition("=")
    value = value or "".join(text for text in following if text[:1] != "-" and "=" not in text)
    setting = name.replace("-", "_")
    known = setting in ALIASES or setting.partition(".")[0] in Config.model_fields
    if len(name) > 1 and not known:
        hint = did_you_mean(setting, Config.model_fields)
        reason = f": {ABSENT[setting]}" if setting in ABSENT else hint.removesuffix("?")
        return (
            f"{argument:.100} is no option of {command}, and nrt has no setting {setting:.100}"
            f"{reason}. {command} --help lists the options, nrt settings the settings"
        )
    setting = ALIASES.get(setting, setting)
    example = f"write {setting:.100}={value or 'VALUE':.100}"
    if len(name) == 1:
        example = "write model=FOLDER, for example"
    elif not setting.replace(".", "").replace("_", "").isalnum():
        example = f"{name:.100} is {setting}"  # no single setting
    return (
        f"{argument:.100} is no option of {command}; settings have no dashes: {example}. "
        f"{command} --help lists the options"
    )


def split_recipe(settings: list[str]) -> tuple[str, list[str]]:
    """Return the recipe of `RECIPE key=value …`, empty if there is none, and the settings.

    >>> split_recipe(["gsm8k", "steps=3"]), split_recipe(["steps=3"])
    (('gsm8k', ['steps=3']), ('', ['steps=3']))
    """
    if "=" in settings[0]:
        return "", settings
    return settings[0], settings[1:]


def console() -> Terminal:
    """Return a console that writes to standard output."""
    from nrt.system.terminal import Terminal

    return Terminal()


def print_line(text: str) -> None:
    """Print a line that is never wrapped, so that paths in it can be copied."""
    console().print(text, highlight=False, soft_wrap=True)


def print_next(*arguments: str, pattern: str = "", processes: int = 1) -> None:
    """Print `next: nrt …`, the command that usually follows, quoted for a shell.

    Args:
        pattern: appended unquoted, for the shell to expand.
        processes: more than one: the command starts them with torchrun.
    """
    called = Path(sys.argv[0])
    # `make demo` calls .venv/bin/nrt, and a shell without that environment finds no `nrt`.
    program = str(called) if called.name == "nrt" and not shutil.which("nrt") else "nrt"
    launcher = [program]
    if processes > 1:
        launcher = f"torchrun --standalone --nproc_per_node {processes} -m nrt".split()
    print_line(f"next: {shlex.join([*launcher, *arguments])}{pattern}")


def run_argument(folder: Path) -> str:
    """Return what names a run on the command line: its bare name if it is in ./runs/.

    >>> run_argument(Path("runs/first")), run_argument(Path("first"))
    ('first', './first')
    """
    if folder.parent == Path("runs"):
        return folder.name
    return str(folder) if os.sep in str(folder) else f"./{folder}"


def check_single_process(command: str) -> None:
    """Raise InputError if torchrun started several processes of this command."""
    _, world_size = rank_and_world_size()
    if world_size > 1:
        raise InputError(
            f"torchrun started several `nrt {command}` processes. Run `nrt {command}` once, "
            "without torchrun."
        )
