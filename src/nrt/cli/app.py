"""The `nrt` command line.

Exit status: 0 success, 1 a run failed, 2 bad arguments or input, 130 interrupted (`nrt train` has
saved a checkpoint).
"""

from __future__ import annotations

import signal
import sys
from contextlib import redirect_stdout
from typing import Annotated, Any

import typer

from nrt.cli import (
    data_commands,
    eval_commands,
    list_commands,
    plan_commands,
    serve_commands,
    study_commands,
    train_commands,
)
from nrt.errors import NrtError
from nrt.system.environment import rank_and_world_size

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Teach language models to reason from plain question–answer pairs (Native Reasoning "
    "Training).",
)
# Commands of a group that is added without a name are commands of `nrt` itself.
app.add_typer(train_commands.app)
app.add_typer(plan_commands.app)
app.add_typer(study_commands.app)
app.add_typer(eval_commands.app)
app.add_typer(serve_commands.app)
app.add_typer(list_commands.app)
app.add_typer(data_commands.app, name="data", help="Prepare and check data files.")


def _print_version(requested: bool) -> None:
    if requested:
        from nrt import __version__

        print(f"nrt {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version and exit."
        ),
    ] = False,
) -> None: ...


def main() -> None:
    """Run the command line. An NrtError is printed as one line; any other error is a bug in nrt
    and keeps its traceback.
    """
    from nrt.system.terminal import OutputError, StandardOutput

    output: Any = StandardOutput(sys.stdout)
    try:
        with redirect_stdout(output):
            try:
                app()
            finally:
                output.flush()
    except NrtError as error:
        if isinstance(error, OutputError) and error.closed:
            # The status of other programs in `nrt … | head`.
            sys.exit(128 + signal.SIGPIPE)
        _print_error(error)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        sys.exit(130)


def _print_error(error: NrtError) -> None:
    """Print the error on standard error. Only rank 0 reports an interruption, which stops all."""
    from nrt.system.terminal import Terminal

    rank, _ = rank_and_world_size()
    interrupted = error.exit_status == 130
    if rank and interrupted:
        return
    if rank:
        label = f"error on rank {rank}"
    elif interrupted:
        label = "interrupted"
    else:
        label = "error"
    line = f"{label}: {error}"
    Terminal(stderr=True).print(line, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
