"""Commands that use a model: `nrt chat`, `nrt export`, `nrt rollout-server`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from nrt.cli.common import console, print_line, print_next

app = typer.Typer()


@app.command()
def chat(
    model: Annotated[
        str, typer.Argument(help="Run, or model folder: RUN/model or what `nrt export` wrote.")
    ],
    prompt: Annotated[
        str,
        typer.Option(
            "--prompt",
            "--question",
            help="Ask this one question and exit; default: read questions.",
        ),
    ] = "",
    system: Annotated[
        str | None, typer.Option(help="System message; default: the run's data.system, if any.")
    ] = None,
    max_trace_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Longest trace, in tokens; default: the run's cap, or 2048."),
    ] = None,
    max_answer_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Longest answer, in tokens; default: the run's cap, or 2048."),
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0, help="Sampling temperature; 0: greedy.")
    ] = 0.0,
    no_trace: Annotated[
        bool, typer.Option("--no-trace", help="Answer without reasoning, after an empty trace.")
    ] = False,
) -> None:
    """Chat with a model: it prints its trace (dimmed), then its answer."""
    from rich.text import Text

    from nrt.cli.chat import ChatSession, ChatSettings

    terminal = console()
    settings = ChatSettings(
        max_trace_tokens, max_answer_tokens, temperature, trace=not no_trace, system=system
    )
    session = ChatSession(model, settings, terminal)
    if prompt:
        session.ask(prompt)
        return
    terminal.print("Ask a question. An empty line or Ctrl-D ends the session.", style="dim")
    while True:
        try:
            question = terminal.input(
                Text("> " if sys.stdin.isatty() else "", style="bold")
            ).strip()
        except (EOFError, KeyboardInterrupt):
            return
        if not question:
            return
        session.ask(question)


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="Name or folder of a run.")],
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder to write; must not exist yet.")
    ],
    step: Annotated[
        int | None,
        typer.Option(min=0, help="Step of the checkpoint to export; default: the final model."),
    ] = None,
    push: Annotated[
        str,
        typer.Option(
            metavar="USER/NAME", help="Also upload the folder to this Hugging Face hub repository."
        ),
    ] = "",
    public: Annotated[
        bool,
        typer.Option(
            "--public", help="With --push: create a public repository; default: a private one."
        ),
    ] = False,
) -> None:
    """Copy a run's model to an ordinary Hugging Face folder, with a model card.

    For vLLM the folder has a plugin that separates the trace from the answer (docs/serving.md).
    """
    from nrt.run import load_run, run_folder
    from nrt.serving.export import (
        check_export,
        check_repository,
        create_repository,
        upload_model,
        write_export,
    )

    if push:
        check_repository(push, "--push ")
    trained = load_run(run_folder(run))
    source = check_export(trained, folder, step)
    address = ""
    if push:  # before the folder is written: the same command then works after a login
        address = create_repository(push, private=not public)
    write_export(trained, source, folder, step=step, repo=push or None)
    print_line(f"{source} → {folder}")
    if push:
        command = f"`hf upload {push} {shlex.quote(str(folder))}`"
        retry = f"upload the folder, which is complete, with {command}"
        upload_model(folder, push, "Model trained with nrt", retry=retry)
        print_line(address)
    print_next("chat", str(folder))


@app.command(name="rollout-server")
def rollout_server(
    model: Annotated[
        str,
        typer.Argument(
            help="Model that is trained, a folder or hub name; the trainer sends its weights."
        ),
    ],
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on. Beyond the loopback interface set $NRT_ROLLOUT_TOKEN, for "
            "the server and for the trainer."
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0: a free port.")
    ] = 8643,
    dtype: Annotated[
        str, typer.Option(help="Type of the weights, float32 or bfloat16: take the trainer's.")
    ] = "bfloat16",
    context: Annotated[
        int | None,
        typer.Option(min=1, help="Longest sequence in tokens; default: the model's own limit."),
    ] = None,
    rows: Annotated[
        int, typer.Option(min=1, help="Most sequences that are decoded together.")
    ] = 256,
    memory: Annotated[
        float | None,
        typer.Option(
            help="Share of memory for vLLM, as vllm.memory; default: 0.9 of the GPU's, or 0.1 of "
            "the machine's on a CPU."
        ),
    ] = None,
    start: Annotated[
        str, typer.Option(help="Marker before the trace, as markers.start; empty: no marker.")
    ] = "<|think_start|>",
    end: Annotated[
        str, typer.Option(help="Marker after the trace, as markers.end.")
    ] = "<|think_end|>",
) -> None:
    """Serve vLLM rollouts to a trainer in another process or on another machine.

    Start the trainer with sampler=vllm and with this server's address in vllm.urls.
    See docs/vllm.md.
    """
    from nrt.config import build_config
    from nrt.rollout.server import RolloutServer, open_vllm

    markers = build_config({"markers": {"start": start or None, "end": end}}).markers
    sampler, shapes = open_vllm(
        model, markers, dtype=dtype, context=context, rows=rows, memory=memory
    )
    with RolloutServer(sampler, host, port, shapes) as server:
        print_line(f"{server.base_url} (Ctrl-C ends it)")
        server.serve_forever()
