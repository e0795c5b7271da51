"""`nrt data …`: what prepares and looks at data files."""

from __future__ import annotations

from dataclasses import asdict
from importlib.util import find_spec
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nrt.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from nrt.data.tulu import Manifest

app = typer.Typer(no_args_is_help=True)


Files = Annotated[
    list[str], typer.Argument(metavar="FILE… [key=value …]", help="Training data: files, folders, globs or datasets names; then settings.")
]
Recipe = Annotated[str, typer.Option(help="The recipe that they are for: its columns, caps and validation data.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")]


@app.command()
def check(
    files: Files,
    recipe: Recipe = "",
    json: Json = False,
    markers: Annotated[bool, typer.Option("--markers", help="Also load the model's weights and show what new markers start from.")] = False,
) -> None:
    """What is read, lost, repeated and too long: nrt data check train.jsonl data.valid=test.jsonl model=FOLDER --recipe gsm8k

    Exit status 1 where training would refuse the data: a row cannot be used and data.on_bad_row is not skip, or none can.
    """
    from nrt.inspecting import as_json, config_for, inspect_all, marker_rows, print_check
    from nrt.terminal import Terminal

    config = config_for(recipe, files)
    found, shared = inspect_all(config)
    rows = marker_rows(config) if markers else []
    if json:
        print(dumps(as_json(found, shared) | ({"markers": [asdict(row) for row in rows]} if markers else {})))
    else:
        print_check(Terminal(), config, found, shared)
        for row in rows:
            Terminal().print(str(row), markup=False, highlight=False, emoji=False, soft_wrap=True)
    if any(not one.kept or (one.bad and config.data.on_bad_row == "error") for one in found):
        raise typer.Exit(1)


@app.command()
def stats(
    files: Files,
    recipe: Recipe = "",
    json: Json = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="The histogram of lengths.")] = Path("lengths.png"),
) -> None:
    """Rows, share and mean lengths by source, as in the paper's Table 4, and a histogram of lengths."""
    from nrt.inspecting import as_json, config_for, inspect_all, plot_lengths, source_table
    from nrt.terminal import Terminal

    found, _ = inspect_all(config_for(recipe, files))
    if json:
        record = as_json(found, None)
        print(dumps({one.kind: {name: record[one.kind][name] for name in ("unit", "rows", "sources")} for one in found}))
        return
    plot_lengths(found, output)
    for one in found:
        Terminal().print(source_table(one))
        if one.bad:
            Terminal().print(f"{one.bad_rows:,} rows cannot be used and are not counted; nrt data check says why", style="red")
    Terminal().print(f"written: {output}", highlight=False, soft_wrap=True)


@app.command()
def tulu(
    size: Annotated[int, typer.Option(min=1, help="Training rows.")] = 204_800,
    seed: Annotated[int, typer.Option(help="The choice is a function of the seed and of the input's rows in their order.")] = 0,
    input: Annotated[
        Path | None, typer.Option("--input", metavar="DIR", help="Folder of the mixture's parquet files; by default from the hub.")
    ] = None,
    valid: Annotated[int, typer.Option(min=0, help="Validation rows, none with the messages of a training row.")] = 1024,
    plain: Annotated[bool, typer.Option("--plain", help="Random over all rows instead of Table 4's counts by source.")] = False,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where the files go; must not exist yet.")] = Path("tulu"),
) -> None:
    """The paper's subset of tulu-3-sft-mixture: train.parquet, valid.parquet and manifest.json."""
    if find_spec("pyarrow") is None:
        raise InputError("parquet needs pyarrow; pip install 'native-reasoning[data]'")
    from nrt.data.mixture import fetch_mixture
    from nrt.data.tulu import Request, check_output, draw_subset
    from nrt.terminal import Terminal

    check_output(output)
    console = Terminal()
    request = Request(size, seed, valid, plain)
    options = f"--size {size} --seed {seed} --valid {valid}{' --plain' if plain else ''}"
    folder, origin = (input, "local files") if input else fetch_mixture()
    if input:
        options += f" --input {input.resolve().name}"  # nobody else has the rest of the path
    with console.status("reading the mixture twice …"):
        manifest = draw_subset(folder, output, request, origin=origin, command=f"nrt data tulu {options}")
    console.print(_composition(manifest))
    for reason, rows in manifest.left_out.items():
        console.print(f"left out: {rows} rows, {reason}", highlight=False)
    console.print(f"written: {output}", highlight=False, soft_wrap=True)


def _composition(manifest: Manifest) -> Table:
    """As the paper's Table 4, with the validation rows beside."""
    from rich.table import Table

    train, valid = manifest.train, dict(manifest.valid.sources) if manifest.valid else {}
    table = Table(box=None)
    table.add_column("source", overflow="fold")
    for name in ("count", "share", *(("validation",) if valid else ())):
        table.add_column(name, justify="right")

    def add(source: str, count: int, drawn: int) -> None:
        table.add_row(source, f"{count:,}", f"{count / train.rows:.2%}", *((f"{drawn:,}",) if valid else ()))

    for source in sorted(train.sources.keys() | valid.keys(), key=lambda name: (-train.sources.get(name, 0), name)):
        add(source, train.sources.get(source, 0), valid.get(source, 0))
    add("total", train.rows, sum(valid.values()))
    return table
