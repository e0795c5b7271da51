"""Commands that list what there is: `nrt settings`, `recipes`, `methods` and `runs`."""

from __future__ import annotations

import json
from itertools import takewhile
from pathlib import Path
from typing import Annotated

import typer

from nrt.cli.common import console, print_line
from nrt.errors import InputError

app = typer.Typer()


@app.command()
def settings(
    word: Annotated[
        str, typer.Argument(help="Show the settings with this word in their name or meaning.")
    ] = "",
    schema: Annotated[
        bool, typer.Option("--schema", help="Print all settings as a JSON schema, for editors.")
    ] = False,
) -> None:
    """List settings with their values, defaults and meanings (docs/settings.md)."""
    from rich.padding import Padding
    from rich.text import Text

    from nrt.config import Config
    from nrt.config.reference import find_settings

    if schema:
        print(json.dumps(Config.model_json_schema(), indent=1))
        return
    terminal = console()
    for setting in find_settings(word):
        heading = Text(setting.key, style="bold")
        heading.append(f": {setting.values}", style="not bold")
        if setting.default:
            heading.append(f" (default: {setting.default})", style="not bold")
        terminal.print(heading, soft_wrap=True)
        terminal.print(Padding(Text(setting.meaning, style="dim"), (0, 0, 0, 4)))


@app.command()
def recipes() -> None:
    """List the packaged recipes, each with the first sentence of its header."""
    from nrt.config import packaged_recipes

    def is_comment(line: str) -> bool:
        return line.startswith("#")

    recipes_by_name = packaged_recipes()
    width = max(map(len, recipes_by_name))
    for name in sorted(recipes_by_name):
        lines = recipes_by_name[name].read_text(encoding="utf-8").splitlines()
        header = " ".join(line.lstrip("# ") for line in takewhile(is_comment, lines))
        sentence = header.partition(". ")[0].rstrip(".")
        print_line(f"{name:<{width}}  {sentence}")


@app.command()
def methods() -> None:
    """List the methods (docs/methods.md), each with what rewards a trace."""
    from nrt.objective import METHODS
    from nrt.objective.rewards import REWARDS

    names = {reward: name for name, reward in REWARDS.items()}
    width = max(map(len, METHODS))
    for name, method in METHODS.items():
        if method.reward is None:
            rule = "no traces"
        elif method.checks_answers:
            rule = "a checker's verdict on a sampled answer"
        elif method.token_advantages:
            rule = "no reward: tokens move towards the model with the answer in its context"
        else:
            rule = f"the reward {names.get(method.reward, 'of its own')}"
            if method.own_rules:
                rule += ", with its own authors' rules"
        print_line(f"{name:<{width}}  {rule}")


@app.command()
def runs(
    folder: Annotated[Path, typer.Argument(help="Folder of the runs.")] = Path("runs"),
) -> None:
    """List the runs in a folder: method, steps, state, and the last held-out accuracy."""
    from rich.table import Table

    from nrt.run import Run

    table = Table(box=None)
    for name in ("run", "method", "step", "state", "held-out accuracy"):
        table.add_column(name, overflow="fold")  # whole names, to copy
    if (folder / "study.yaml").is_file():  # of nrt compare
        folder /= "runs"
    for path in sorted(folder.glob("*/config.yaml")):
        try:
            run = Run(path.parent)
            records, method = run.metrics(), run.config.method
        except InputError as error:
            table.add_row(path.parent.name, "", "", f"cannot be read: {error}", "")
            continue
        accuracies = [record.get("heldout/accuracy") for record in records]
        accuracies = [f"{value:.1%}" for value in accuracies if value is not None]
        step = str(records[-1]["step"]) if records else "0"
        table.add_row(
            path.parent.name, method, step, run.state, accuracies[-1] if accuracies else ""
        )
    if not table.row_count:
        raise InputError(f"{folder} has no runs; start one with nrt train, or give another folder")
    console().print(table, highlight=False)
