"""Commands that train: `nrt train`, `nrt resume`, `nrt demo`; `nrt replay` of a skipped update."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nrt.cli.common import (
    Settings,
    SettingsCommand,
    check_single_process,
    console,
    print_line,
    print_next,
    run_argument,
    split_recipe,
)
from nrt.errors import InputError, NrtError
from nrt.system.environment import rank_and_world_size

if TYPE_CHECKING:
    from nrt.config import Config
    from nrt.system.terminal import ResilientDisplay

app = typer.Typer()

JsonLines = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print JSON lines instead of a live line: the run folder, then each step's metrics.",
    ),
]
Report = Annotated[
    bool,
    typer.Option(
        "--report", help="Write RUN/report.html after each held-out evaluation and at the end."
    ),
]


@app.command(cls=SettingsCommand)
def train(
    settings: Settings,
    json_lines: JsonLines = False,
    report: Report = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check the settings, print them and exit; with engine=verl print verl's settings.",
        ),
    ] = False,
) -> None:
    """Train a model.

    nrt train gsm8k model=FOLDER data.train=FILE run=NAME
    With the recipe `pairs`, for any columns: nrt train model=FOLDER data.train=FILE
    For several GPUs see docs/several-gpus.md. To continue a run: nrt resume NAME.
    """
    config = _training_config(settings, prepare_lab=not dry_run)
    from nrt.trainer import train as run_training  # takes seconds: wrong settings are told before

    if dry_run:
        from nrt.trainer.resolve import settings_of

        print(settings_of(config), end="")
        return
    rank, _ = rank_and_world_size()
    if rank > 0:  # only rank 0 prints progress and writes files
        run_training(config)
        return
    display = _open_display(json_lines)
    report_listener = None
    if report:
        from nrt.cli.live_report import ReportListener

        report_listener = ReportListener(display)
    try:
        run = run_training(config, listener=report_listener or display)
    except KeyboardInterrupt:  # a second SIGINT; the run folder's lock has been released
        display.close()
        sys.stdout.flush()
        os._exit(130)  # do not wait for threads that are still sampling
    finally:
        display.close()
    if report_listener:
        report_listener.write()
    if not json_lines:
        print_line(f"done: {run.path}")
        print_next("chat" if report else "report", run_argument(run.path))


@app.command(cls=SettingsCommand)
def resume(
    run: Annotated[str, typer.Argument(help="Name or path of the run folder.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[key=value …]", help="Changed settings, such as steps=200."),
    ] = None,
    json_lines: JsonLines = False,
    report: Report = False,
) -> None:
    """Continue a run from its last checkpoint: nrt resume NAME.

    `nrt train resume=NAME` is the same.
    """
    train([f"resume={run}", *(settings or [])], json_lines, report)


def _training_config(settings: list[str], *, prepare_lab: bool) -> Config:
    """Return the config of [RECIPE] key=value …, or that of the run to resume with overrides.

    With `prepare_lab`, a recipe that brings model and data has them made.
    """
    from nrt.config import build_config, load_config, parse_overrides
    from nrt.run import load_run, run_folder

    recipe, overrides = split_recipe(settings)
    values = parse_overrides(overrides)
    resume = values.get("resume")
    if recipe and resume:
        raise InputError(
            f"a resumed run keeps its own recipe; leave out {recipe}: nrt resume {resume}"
        )
    if resume and "run" in values:
        raise InputError("a resumed run stays in its folder; leave out run=")
    if recipe:
        own = _own_settings(recipe, overrides) if prepare_lab else []
        return load_config(recipe, [*own, *overrides])
    if not resume:
        return load_config(None, overrides)
    from nrt.trainer.resolve import check_method_known

    run = load_run(run_folder(str(resume)))
    check_method_known(run)
    return build_config(run.config.model_dump(mode="json"), values)


def _own_settings(recipe: str, overrides: list[str]) -> list[str]:
    """Return the model and data settings of a recipe that brings them, but for those given."""
    from nrt.lab import RECIPES

    if recipe not in RECIPES:
        return []
    from nrt.config import load_config
    from nrt.lab.settings import prepare
    from nrt.system.terminal import Terminal
    from nrt.trainer.resolve import resolve_names

    config = load_config(recipe, overrides)
    resolve_names(config)  # before minutes of work
    terminal = Terminal(stderr=True, quiet=rank_and_world_size()[0] > 0)
    with terminal.status("model and data of the recipe (made once, then cached)"):
        return prepare(recipe, config.seed, overrides)


def _open_display(json_lines: bool) -> ResilientDisplay:
    """Return the progress display; training continues if standard output fails."""
    from nrt.api.live import JsonLines, LiveLine
    from nrt.system.terminal import ResilientDisplay

    return ResilientDisplay(JsonLines() if json_lines else LiveLine(console()))


@app.command()
def replay(
    file: Annotated[
        Path,
        typer.Argument(help="RUN/skipped/step-….json, the batch of the skipped update."),
    ],
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="Checkpoint folder RUN/checkpoints/step-… to compute it with; default: the last "
            "one before the update or, if that was deleted, the oldest one left."
        ),
    ] = None,
) -> None:
    """Recompute a skipped update and print where it is not finite.

    Checks the weights, log-probabilities, rewards, loss and gradient, in this order.
    """
    from nrt.trainer import replay as replay_update

    terminal = console()
    replay_update(
        file,
        checkpoint,
        say=lambda text: terminal.print(text, highlight=False, soft_wrap=True),
    )


@app.command()
def demo(
    model: Annotated[
        str,
        typer.Option(
            help="miniature: a tiny model, in minutes. smollm2: a pretrained model of 135 M "
            "parameters, in about half an hour on two cores."
        ),
    ] = "miniature",
    run: Annotated[str, typer.Option(help="Name or path of the run folder; default: demo, …")] = "",
    seed: Annotated[int, typer.Option(help="Seed of the base model and of training.")] = 0,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="A few steps: shows that everything runs, not that the model learns."
        ),
    ] = False,
) -> None:
    """Train a model that learns to reason from question–answer pairs alone, on a CPU.

    Run the same command again to continue a run that was interrupted. See docs/miniature.md and
    docs/real-model.md.
    """
    from nrt.lab.demo import run_demo

    check_single_process("demo")
    terminal = console()
    display = _open_display(False)
    result = run_demo(terminal, display, model=model, run=run or None, seed=seed, quick=quick)
    page = result.path / "report.html"
    try:
        from nrt.analysis.report.data import build_report
        from nrt.analysis.report.page import write_page

        write_page(build_report([result.path]), page)
        print_line(f"written: {page}")
    except NrtError as error:  # plotly is an extra
        print_line(f"no report: {error}")
    print_next("chat", run_argument(result.path))
