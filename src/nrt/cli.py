"""The command `nrt`. Exit status: 0 done, 1 a run failed, 2 bad arguments or input, 130 interrupted with a checkpoint saved."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from nrt import cli_data, cli_eval
from nrt.environment import launched
from nrt.errors import InputError, NrtError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Native Reasoning Training: a language model learns to reason from plain question–answer pairs.",
)
app.add_typer(cli_eval.app)  # without a name: its commands are nrt's own
app.add_typer(cli_data.app, name="data", help="Prepare and look at data files.")

JsonFlag = Annotated[bool, typer.Option("--json", help="JSON lines for machines instead of the live line.")]


def _print_version(asked: bool) -> None:
    if asked:
        from nrt import __version__

        print(f"nrt {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and leave.")
    ] = False,
) -> None: ...


@app.command()
def train(
    settings: Annotated[list[str], typer.Argument(metavar="RECIPE [key=value …]", help="A recipe or YAML path, then settings.")],
    json: JsonFlag = False,
    report: Annotated[
        bool, typer.Option("--report", help="Keep RUN/report.html up to date: after each held-out evaluation and at the end.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the settings and print them (engine=verl: verl's), without a run.")
    ] = False,
) -> None:
    """Train: nrt train gsm8k model=FOLDER data.train=FILE run=NAME; go on with: nrt train resume=RUN. On several GPUs: docs/running.md."""
    from nrt.config import build_config, load_config, parse_overrides
    from nrt.run import load_run, run_folder
    from nrt.training import train as run_training

    recipe, overrides = (None, settings) if "=" in settings[0] else (settings[0], settings[1:])
    if recipe:
        config = load_config(recipe, [*_world(recipe, overrides), *overrides])
    else:
        given = parse_overrides(overrides)
        resume = given.get("resume")
        if not resume:
            raise InputError("no recipe given; write nrt train RECIPE key=value …, or nrt train resume=RUN")
        config = build_config(load_run(run_folder(str(resume))).config.model_dump(mode="json"), given)
    if dry_run:
        from nrt.training.resolve import settings_of

        print(settings_of(config), end="")
        return
    if launched()[0]:  # the main process speaks
        run_training(config)
        return
    listener = _listener(json)
    pages = _reporting(listener) if report else None
    try:
        run = run_training(config, listener=pages or listener)
    except KeyboardInterrupt:  # a second SIGINT; the run folder has been given back
        listener.close()
        sys.stdout.flush()
        os._exit(130)  # without waiting for threads that still sample
    finally:
        listener.close()
    if pages:
        pages.write()
    if not json:
        _console().print(f"done: {run.path}", highlight=False, soft_wrap=True)


@app.command()
def compare(
    settings: Annotated[list[str], typer.Argument(metavar="RECIPE [key=value …]", help="A recipe or YAML path, then settings for all.")],
    methods: Annotated[str, typer.Option(help="Methods, separated by commas.")] = "",
    variants: Annotated[
        str, typer.Option(help="Instead of methods: a YAML file of variants, or terms, advantage, sampling, engine, controls.")
    ] = "",
    seeds: Annotated[int, typer.Option(help="Seeds 0 … N − 1 for each.")] = 3,
    baseline: Annotated[str, typer.Option(help="What the others are paired with; by default sft, else the first.")] = "",
    jobs: Annotated[int, typer.Option(help="Runs at a time.")] = 1,
    study: Annotated[str, typer.Option(help="Name or path of the study's folder.")] = "",
    measure: Annotated[str, typer.Option(help="Field of the held-out records: correct, correct_null, logp, …")] = "correct",
) -> None:
    """Methods or variants under one budget, with honest error bars; the same command again goes on where it stopped."""
    from nrt.comparing import compare_study

    _check_alone("compare")
    given = compare_study(
        _console(), settings[0], settings[1:], methods=methods, variants=variants, seeds=seeds, baseline=baseline,
        jobs=jobs, study=study, measure=measure,
    )  # fmt: skip
    if given.missing:
        sys.exit(1)


@app.command()
def plan(
    settings: Annotated[list[str], typer.Argument(metavar="RECIPE [key=value …]", help="A recipe or YAML path, then settings.")],
    gpus: Annotated[int | None, typer.Option(help="How many GPUs; with engine=verl set nodes and gpus_per_node instead.")] = None,
    gpu: Annotated[str, typer.Option(help="h100, h200, a100, l40s, rtx4090, or cpu: this machine.")] = "h100",
    memory: Annotated[float | None, typer.Option(help="GiB of such a GPU, where it has not the usual.")] = None,
    parallel: Annotated[str | None, typer.Option(help="ddp: a replica on each GPU; fsdp: in shards; by default what fits.")] = None,
    prompt: Annotated[int | None, typer.Option(help="Mean tokens of a prompt; by default the recipe's cap.")] = None,
    trace: Annotated[int | None, typer.Option(help="Mean tokens of a trace; by default the recipe's cap.")] = None,
    answer: Annotated[int | None, typer.Option(help="Mean tokens of an answer; by default the recipe's cap.")] = None,
    rows: Annotated[int | None, typer.Option(help="Rows of the training data: one epoch, where the recipe sets no steps.")] = None,
    price: Annotated[float | None, typer.Option(help="Of a GPU hour; none is assumed.")] = None,
    mfu: Annotated[float | None, typer.Option(help="Share of the GPU's arithmetic that updates are assumed to reach; .4.")] = None,
    bandwidth: Annotated[float | None, typer.Option(help="Share of its bandwidth that decoding is assumed to reach; .6.")] = None,
    network: Annotated[float | None, typer.Option(help="GB/s of a GPU to other nodes, one way (engine=verl); 50 for h100.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object instead of the tables.")] = False,
) -> None:
    """Memory, tokens, arithmetic, hours and cost of a run, on paper: nrt plan llama-3.2-3b --gpu h200 --gpus 8 --trace 500."""
    from json import dumps

    from nrt.config import load_config
    from nrt.plan import ask, ask_cluster
    from nrt.plan.cluster.show import cluster_json, print_cluster
    from nrt.plan.show import as_json, print_plan

    config, console = load_config(settings[0], settings[1:]), _console()
    given: dict[str, Any] = {"gpu": gpu, "memory": memory, "means": (prompt, trace, answer), "rows": rows, "price": price}
    given |= {"mfu": mfu, "bandwidth": bandwidth}
    if config.engine != "verl":
        answered = ask(config, gpus=gpus or 1, parallel=parallel, **given)
        print(dumps(as_json(*answered))) if json else print_plan(console, *answered)
        return
    if gpus or parallel:
        raise InputError("with engine=verl the layout is the config's: set nodes and gpus_per_node, not --gpus and --parallel")
    found = ask_cluster(config, network=network, **given)
    print(dumps(cluster_json(*found))) if json else print_cluster(console, *found)


@app.command()
def demo(
    run: Annotated[str, typer.Option(help="Name or path of the run folder; by default a fresh one in runs/.")] = "",
    seed: Annotated[int, typer.Option(help="Seed of base model and training.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="A few seconds' worth: shows that it runs, not the effect.")] = False,
) -> None:
    """The miniature: a tiny model learns to reason in minutes, from question–answer pairs alone."""
    from nrt.lab.demo import run_demo

    _check_alone("demo")
    console = _console()
    result = run_demo(console, _listener(False), run=run or None, seed=seed, quick=quick)
    try:
        from nrt.analysis.report.data import build_report
        from nrt.analysis.report.page import write_page

        write_page(build_report([result.path]), result.path / "report.html")
        console.print(f"Look at it: {result.path / 'report.html'}", highlight=False, soft_wrap=True)
    except NrtError as error:  # plotly is an extra
        console.print(f"No page: {error}", highlight=False, soft_wrap=True)


@app.command()
def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN…", help="Names or folders of runs; several are compared.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The page; by default RUN/report.html, or ./report.html for several runs.")
    ] = None,
    text: Annotated[bool, typer.Option("--text", help="A summary on the terminal instead of the page.")] = False,
    serve: Annotated[bool, typer.Option("--serve", help="Serve the page, and follow runs that still go on.")] = False,
    host: Annotated[
        str, typer.Option(help="For --serve: any but this machine's own needs the token in the printed address; $NRT_REPORT_TOKEN sets it.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="For --serve; 0: a free one.")] = 8642,
) -> None:
    """What runs have learnt, as one self-contained HTML page: numbers, curves, and every trace token by token."""
    from nrt.analysis.report.data import build_report
    from nrt.analysis.report.page import write_page
    from nrt.analysis.report.serve import make_server
    from nrt.analysis.report.text import print_report
    from nrt.run import run_folder

    if text:
        print_report(build_report(runs), _console())
    elif serve:
        server = make_server(runs, host=host, port=port)
        _console().print(f"{server.url} (Ctrl-C ends it)", highlight=False, soft_wrap=True)
        with server:
            server.serve_forever()
    else:
        file = output or (run_folder(runs[0]) / "report.html" if len(runs) == 1 else Path("report.html"))
        write_page(build_report(runs), file)
        _console().print(f"written: {file}", highlight=False, soft_wrap=True)


@app.command()
def figures(
    runs: Annotated[list[str], typer.Argument(metavar="RUN…", help="Names or folders of runs.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the files.")] = Path("figures"),
    style: Annotated[str, typer.Option(help="screen, or paper: serif, small, 300 dpi.")] = "screen",
) -> None:
    """Dynamics, accuracy and token confidence of runs as PNG, SVG and CSV."""
    from nrt.analysis.report.figures import write_figures

    for file in write_figures(runs, output, look=style):
        _console().print(f"written: {file}", highlight=False, soft_wrap=True)


@app.command()
def chat(
    model: Annotated[str, typer.Argument(help="A run, or the folder of a model (RUN/model, or what `nrt export` wrote).")],
    prompt: Annotated[str, typer.Option(help="Ask this one question and leave.")] = "",
    max_trace_tokens: Annotated[int, typer.Option(help="Cap on the trace.")] = 2048,
    max_answer_tokens: Annotated[int, typer.Option(help="Cap on the answer.")] = 2048,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    no_trace: Annotated[bool, typer.Option("--no-trace", help="Answer after an empty trace.")] = False,
) -> None:
    """Ask a model; its trace streams dimmed, then the answer."""
    from nrt.talk import Settings, Talk

    console = _console()
    talk = Talk(model, Settings(max_trace_tokens, max_answer_tokens, temperature, trace=not no_trace), console)
    if prompt:
        talk.ask(prompt)
        return
    console.print("Ask away; an empty line or Ctrl-D leaves.", style="dim")
    while True:
        try:
            question = console.input("[bold]> [/bold]").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if not question:
            return
        talk.ask(question)


@app.command()
def replay(
    file: Annotated[Path, typer.Argument(help="RUN/skipped/step-….json: the batch of an update that was skipped.")],
    checkpoint: Annotated[
        Path | None, typer.Option(help="A folder RUN/checkpoints/step-…; by default the last one before the update, if it is still there.")
    ] = None,
) -> None:
    """Where a skipped update was not finite: weights, log-probabilities, rewards, loss or gradient."""
    from nrt.training import replay as again

    again(file, checkpoint, say=lambda text: _console().print(text, markup=False, highlight=False, soft_wrap=True))


@app.command(name="rollout-server")
def rollout_server(
    model: Annotated[str, typer.Argument(help="The model that is trained: a folder or hub name. Its weights come from the trainer.")],
    host: Annotated[str, typer.Option(help="Beyond this machine only with $NRT_ROLLOUT_TOKEN, here and at the trainer.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: a free one.")] = 8643,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16; best the trainer's.")] = "bfloat16",
    context: Annotated[int | None, typer.Option(help="Longest sequence in tokens; by default the model's own.")] = None,
    rows: Annotated[int, typer.Option(help="Most sequences decoded together.")] = 256,
    memory: Annotated[float | None, typer.Option(help="As vllm.memory; by default .9 of a GPU's, or .1 of the machine's.")] = None,
    start: Annotated[str, typer.Option(help="markers.start; empty: none.")] = "<|think_start|>",
    end: Annotated[str, typer.Option(help="markers.end.")] = "<|think_end|>",
) -> None:
    """vLLM samples for a trainer elsewhere: nrt train … sampler=vllm vllm.urls=[http://HOST:PORT,…] (docs/running.md)."""
    from nrt.config import MarkersConfig
    from nrt.rollout.server import RolloutServer, open_vllm

    sampler, shapes = open_vllm(model, MarkersConfig(start=start or None, end=end), dtype=dtype, context=context, rows=rows, memory=memory)
    with RolloutServer(sampler, host, port, shapes) as server:
        _console().print(f"{server.root} (Ctrl-C ends it)", highlight=False, soft_wrap=True)
        server.serve_forever()


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="Run name or folder.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the Hugging Face folder goes; must not exist yet.")],
    step: Annotated[int | None, typer.Option(help="A checkpoint's step instead of the final model.")] = None,
    push: Annotated[str, typer.Option(metavar="USER/NAME", help="Upload it to the Hugging Face hub, too.")] = "",
    public: Annotated[bool, typer.Option("--public", help="With --push: for all to see; a new model is private otherwise.")] = False,
) -> None:
    """Copy a run's model out as an ordinary Hugging Face folder, with a model card and what vLLM needs to tell reasoning from answers."""
    from nrt.run import load_run, run_folder
    from nrt.serving import export as out

    if push:
        out.check_repository(push)
    source = out.export_run(load_run(run_folder(run)), folder, step=step, name=push.rpartition("/")[2] or None)
    _console().print(f"{source} → {folder}", highlight=False, soft_wrap=True)
    if push:
        _console().print(out.push(folder, push, private=not public), highlight=False, soft_wrap=True)


def _check_alone(command: str) -> None:
    if launched()[1] > 1:
        raise InputError(f"torchrun started several `nrt {command}`; start one, without torchrun")


def _world(recipe: str, overrides: list[str]) -> list[str]:
    """A recipe of the miniature brings its own model and pairs, unless a model is given."""
    if not recipe.startswith("miniature") or any(text.startswith("model=") for text in overrides):
        return []
    from nrt.config import load_config
    from nrt.lab.settings import BASES, prepare

    return prepare(recipe, load_config(recipe, overrides).seed) if recipe in BASES else []


def _console():
    from nrt.terminal import Terminal

    return Terminal()


def _listener(json: bool):
    from nrt.live import JsonLines, LiveLine
    from nrt.terminal import Undisturbed

    return Undisturbed(JsonLines() if json else LiveLine(_console()))


def _reporting(listener):
    from nrt.reporting import Reporting

    return Reporting(listener)


def main() -> None:
    """Entry point: one line for an error that we raised on purpose, a traceback only for our own mistakes."""
    from nrt.terminal import Output, OutputError, Terminal

    output: Any = Output(sys.stdout)
    try:
        with redirect_stdout(output):
            try:
                app()
            finally:
                output.flush()
    except NrtError as error:
        if isinstance(error, OutputError) and error.closed:
            sys.exit(128 + signal.SIGPIPE)  # as `nrt … | head` ends other programs
        rank, _ = launched()
        kind = f"error in process {rank}" if rank else "interrupted" if error.exit_status == 130 else "error"
        if rank == 0 or error.exit_status != 130:
            Terminal(stderr=True).print(f"{kind}: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
