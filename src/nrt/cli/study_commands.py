"""Commands that compare and show runs: `nrt compare`, `nrt report`, `nrt figures`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from nrt.cli.common import (
    Settings,
    SettingsCommand,
    check_single_process,
    console,
    print_line,
    print_next,
    split_recipe,
)
from nrt.errors import InputError

app = typer.Typer()


@app.command(cls=SettingsCommand)
def compare(
    settings: Settings,
    methods: Annotated[
        str,
        typer.Option(help="Methods to compare, separated by commas; either these or --variants."),
    ] = "",
    variants: Annotated[
        str,
        typer.Option(
            help="YAML file of variants, or a packaged set of them: advantage, answer-weight, "
            "clip, controls, engine, sampler, sampling, smollm2, smollm2-pairs, terms."
        ),
    ] = "",
    seeds: Annotated[
        int, typer.Option(help="Runs of each method or variant: seeds 0 to SEEDS − 1.")
    ] = 3,
    baseline: Annotated[
        str,
        typer.Option(
            help="Method or variant that the others are compared with; default: the one that the "
            "variants file names; of methods sft, else the first."
        ),
    ] = "",
    jobs: Annotated[int, typer.Option(min=1, help="Runs at the same time.")] = 1,
    study: Annotated[
        str,
        typer.Option(help="Name or path of the study's folder; default: runs/compare-RECIPE."),
    ] = "",
    measure: Annotated[
        str,
        typer.Option(
            help="Field of the held-out records to compare, such as correct, correct_null or logp."
        ),
    ] = "correct",
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE,VALUE",
            help="Try these values for each method or variant first, and compare with the best. "
            "Repeat it for all combinations of several settings.",
        ),
    ] = None,
    sweep_seeds: Annotated[
        int, typer.Option(min=1, help="Runs of each try, on seeds that the comparison has not.")
    ] = 1,
    finished_only: Annotated[
        bool,
        typer.Option(
            "--finished-only", help="Start no run: write the results of the finished ones."
        ),
    ] = False,
) -> None:
    """Train several methods or variants and compare them, with confidence intervals.

    All runs get the same recipe, data, steps and questions.
    Repeat the command to run or resume what is missing.
    Exit status 1: a run failed.
    """
    from nrt.cli.compare import compare_study, default_study
    from nrt.config.layers import NEUTRAL_RECIPE
    from nrt.run import run_folder

    check_single_process("compare")
    recipe, overrides = split_recipe(settings)
    recipe = recipe or NEUTRAL_RECIPE
    comparison = compare_study(
        console(),
        recipe,
        overrides,
        methods=methods,
        variants=variants,
        seeds=seeds,
        baseline=baseline,
        jobs=jobs,
        study=study,
        measure=measure,
        sweep=sweep or (),
        sweep_seeds=sweep_seeds,
        finished_only=finished_only,
    )
    if comparison.missing and not finished_only:
        sys.exit(1)
    folder = run_folder(study or default_study(recipe))
    print_next("report", str(folder / "runs"), pattern="/*")


@app.command()
def report(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN…", help="Names or folders of runs; several are compared."),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="File of the page; default: RUN/report.html, or ./report.html for several runs.",
        ),
    ] = None,
    text: Annotated[
        bool, typer.Option("--text", help="Print a summary on the terminal; write no page.")
    ] = False,
    serve: Annotated[
        bool,
        typer.Option(
            "--serve", help="Serve the page over HTTP and update it while runs are in progress."
        ),
    ] = False,
    host: Annotated[
        str,
        typer.Option(
            help="Address for --serve. Beyond the loopback interface a request needs the token in "
            "the printed address; $NRT_REPORT_TOKEN sets the token."
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port for --serve; 0: a free port.")
    ] = 8642,
) -> None:
    """Write an HTML page about runs: curves, scores and every trace, token by token.

    The page is a single file that needs no network.
    """
    from nrt.analysis.report.data import build_report
    from nrt.analysis.report.page import write_page
    from nrt.analysis.report.serve import make_server
    from nrt.analysis.report.text import print_report
    from nrt.run import load_run, run_folder

    if output and (text or serve):
        other = "--text" if text else "--serve"
        raise InputError(f"--output is the file of the page, which {other} does not write")
    if text:
        print_report(build_report(runs), console())
    elif serve:
        server = make_server(runs, host=host, port=port)
        print_line(f"{server.url} (Ctrl-C ends it)")
        with server:
            server.serve_forever()
    else:
        file = Path("report.html")
        if output:
            file = output
        elif len(runs) == 1:
            file = run_folder(runs[0]) / "report.html"
        write_page(build_report(runs), file)
        print_line(f"written: {file}")
        if len(runs) == 1 and load_run(run_folder(runs[0])).is_finished:
            print_next("chat", runs[0])
        else:
            print_next("report", *runs, "--serve")


@app.command()
def figures(
    runs: Annotated[list[str], typer.Argument(metavar="RUN…", help="Names or folders of runs.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder for the files; default: RUN/figures, or ./figures for several runs.",
        ),
    ] = None,
    style: Annotated[
        str, typer.Option(help="screen, or paper: small, with serifs, 300 dpi.")
    ] = "screen",
) -> None:
    """Write figures of runs as PNG, SVG and CSV: dynamics, accuracy, token confidence."""
    from nrt.analysis.report.figures import write_figures
    from nrt.run import load_run, run_folder

    if output is None:
        one = load_run(run_folder(runs[0])).path if len(runs) == 1 else Path()
        output = one / "figures"
    for file in write_figures(runs, output, look=style, say=print_line):
        print_line(f"written: {file}")
