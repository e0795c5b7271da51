"""Commands that check and prepare data files: `nrt data check`, `stats`, `split` and `tulu`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nrt.cli.common import SettingsCommand, console, print_line, print_next
from nrt.errors import InputError, install_hint

if TYPE_CHECKING:
    from rich.table import Table

    from nrt.config import Config
    from nrt.data.stats import Inspection
    from nrt.data.tulu import Manifest

app = typer.Typer(no_args_is_help=True)

Files = Annotated[
    list[str],
    typer.Argument(
        metavar="FILE… [key=value …]",
        help="Training data (files, folders, globs or names of datasets), then settings.",
    ),
]
Recipe = Annotated[
    str,
    typer.Option(help="Recipe whose columns, caps and validation data are used; default: pairs."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]


@app.command(cls=SettingsCommand)
def check(
    files: Files,
    recipe: Recipe = "",
    json_output: Json = False,
    markers: Annotated[
        bool,
        typer.Option(
            "--markers",
            help="Also load the model's weights and show which tokens new markers start from.",
        ),
    ] = False,
) -> None:
    """Report unusable, repeated and overlong rows of training data, and leakage.

    Example:  nrt data check train.jsonl data.valid=test.jsonl model=FOLDER --recipe gsm8k
    Exit status 1: training would refuse the data.
    It does if a row cannot be used and data.on_bad_row is not skip, if no row can be used, or if
    rows may be longer than the model's context.
    """
    from nrt.cli.inspection import (
        as_json,
        config_for,
        context_fault,
        inspect_all,
        marker_rows,
        train_arguments,
    )
    from nrt.cli.inspection_view import print_check

    config = config_for(recipe, files)
    inspections, overlap = inspect_all(config)
    fault = context_fault(config, inspections)
    rows = marker_rows(config) if markers else []
    terminal = console()
    if json_output:
        record = as_json(inspections, overlap)
        if markers:
            record["markers"] = [asdict(row) for row in rows]
        if fault:
            record["context"] = fault
        print(dumps(record))
    else:
        print_check(terminal, config, inspections, overlap)
        for row in rows:
            terminal.print(str(row), highlight=False, soft_wrap=True)
        if markers and not rows:
            terminal.print("the model has the markers already: no row is made", highlight=False)
    reason = _refusal(config, inspections) or fault
    if reason:
        if not json_output:
            terminal.print(reason, style="red", highlight=False, soft_wrap=True)
        raise typer.Exit(1)
    if not json_output:
        print_next("train", *train_arguments(recipe, files, config.model))


def _refusal(config: Config, inspections: Sequence[Inspection]) -> str:
    """Return why training would refuse the rows; empty if it would not."""
    for inspection in inspections:
        refused = f"training would refuse the {inspection.kind} data: "
        if not inspection.kept:
            return f"{refused}no row is usable and within the caps"
        if inspection.bad and config.data.on_bad_row == "error":
            return (
                f"{refused}{inspection.bad_rows:,} unusable rows; correct them, or leave them out "
                "with data.on_bad_row=skip"
            )
    return ""


@app.command(cls=SettingsCommand)
def stats(
    files: Files,
    recipe: Recipe = "",
    json_output: Json = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Also plot a histogram of lengths into this file."),
    ] = None,
) -> None:
    """Count rows and mean lengths by source, and plot a histogram of lengths with -o FILE.

    The table has the form of the paper's Table 4.
    """
    from nrt.cli.inspection import as_json, config_for, inspect_all
    from nrt.cli.inspection_view import plot_lengths, source_table

    inspections, _ = inspect_all(config_for(recipe, files))
    if output:
        plot_lengths(inspections, output)
    if json_output:
        record = as_json(inspections, None)
        keys = ("unit", "rows", "sources")
        kinds = [inspection.kind for inspection in inspections]
        print(dumps({kind: {key: record[kind][key] for key in keys} for kind in kinds}))
        return
    terminal = console()
    for inspection in inspections:
        terminal.print(source_table(inspection))
        if inspection.bad:
            terminal.print(
                f"{inspection.bad_rows:,} rows cannot be used and are not counted; "
                "nrt data check lists the reasons",
                style="red",
            )
    if output:
        print_line(f"written: {output}")


@app.command(cls=SettingsCommand)
def split(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A file, folder, pattern or name of a dataset.")
    ],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[key=value …]", help="Settings, such as data.columns.question=q."),
    ] = None,
    valid: Annotated[
        int, typer.Option(min=1, help="Validation rows; no question is in both files.")
    ] = 200,
    seed: Annotated[int, typer.Option(help="Seed of the draw.")] = 0,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to write the files into.")
    ] = Path("data"),
) -> None:
    """Split rows into train.jsonl and valid.jsonl, which share no question.

    Example:  nrt data split all.jsonl --valid 200 -o data
    """
    from nrt.cli.inspection import config_for
    from nrt.data.split import split_rows

    settings = settings or []
    config = config_for("", [file, *settings])
    sources = config.data.sources("train")
    if len(sources) != 1:
        raise InputError(
            "nrt data split splits one FILE; run it for each, with a folder of its own"
        )
    source = sources[0]
    reading = source.rows_config(config.data)
    result = split_rows(source.path, reading, output, valid=valid, seed=seed)
    if result.bad:
        print_line(f"{len(result.bad):,} rows cannot be used and are in neither file, such as")
        print_line(str(result.bad[0]))
    train_file, valid_file = output / "train.jsonl", output / "valid.jsonl"
    print_line(f"written: {train_file} ({result.train:,} rows), {valid_file} ({result.valid:,})")
    print_next("data", "check", str(train_file), f"data.valid={valid_file}", *settings)


@app.command()
def tulu(
    size: Annotated[int, typer.Option(min=1, help="Training rows.")] = 204_800,
    seed: Annotated[
        int,
        typer.Option(help="Seed of the draw; the same seed and input give the same rows."),
    ] = 0,
    mixture: Annotated[
        Path | None,
        typer.Option(
            "--input",
            metavar="DIR",
            help="Folder of the mixture's parquet files; default: download them from the hub.",
        ),
    ] = None,
    valid: Annotated[
        int,
        typer.Option(min=0, help="Validation rows; none has the messages of a training row."),
    ] = 1024,
    plain: Annotated[
        bool,
        typer.Option(
            "--plain", help="Draw uniformly from all rows, not by Table 4's source counts."
        ),
    ] = False,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="DIR", help="Folder to write; must not exist yet."),
    ] = Path("tulu"),
) -> None:
    """Draw the paper's training set from tulu-3-sft-mixture.

    Writes train.parquet, valid.parquet and manifest.json; see docs/tulu.md.
    """
    if find_spec("pyarrow") is None:
        raise InputError(f"parquet files need pyarrow; {install_hint('data')}")
    from nrt.data.mixture import fetch_mixture
    from nrt.data.tulu import DrawRequest, check_output, draw_subset

    check_output(output)
    terminal = console()
    request = DrawRequest(size, seed, valid, plain)
    command = f"nrt data tulu --size {size} --seed {seed} --valid {valid}"
    if plain:
        command += " --plain"
    if mixture:
        folder, origin = mixture, "local files"
        command += f" --input {mixture.resolve().name}"  # the rest of the path is private
    else:
        folder, origin = fetch_mixture()
    with terminal.status("reading the mixture (two passes) …"):
        manifest = draw_subset(folder, output, request, origin=origin, command=command)
    terminal.print(_composition_table(manifest))
    for reason, rows in manifest.left_out.items():
        terminal.print(f"left out: {rows} rows, {reason}", highlight=False)
    print_line(f"written: {output}")
    data = [f"data.train={output / 'train.parquet'}"]
    if valid:
        data.append(f"data.valid={output / 'valid.parquet'}")
    print_next("train", "paper", "model=MODEL", *data)


def _composition_table(manifest: Manifest) -> Table:
    """Return a table like the paper's Table 4, with a column of validation rows if there are any.

    Sources are ordered by their number of training rows, then by name.
    """
    from rich.table import Table

    train = manifest.train
    valid = dict(manifest.valid.sources) if manifest.valid else {}
    table = Table(box=None)
    table.add_column("source", overflow="fold")
    table.add_column("count", justify="right")
    table.add_column("share", justify="right")
    if valid:
        table.add_column("validation", justify="right")

    def add(source: str, count: int, valid_count: int) -> None:
        cells = [source, f"{count:,}", f"{count / train.rows:.2%}"]
        if valid:
            cells.append(f"{valid_count:,}")
        table.add_row(*cells)

    def order(source: str) -> tuple[int, str]:
        return -train.sources.get(source, 0), source

    for source in sorted(train.sources.keys() | valid.keys(), key=order):
        add(source, train.sources.get(source, 0), valid.get(source, 0))
    add("total", train.rows, sum(valid.values()))
    return table
