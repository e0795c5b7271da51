"""Commands that put questions to trained models: `nrt eval`, `nrt confidence`, `nrt judge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command("eval")
def evaluate(
    models: Annotated[list[str], typer.Argument(metavar="MODEL…", help="Runs, folders of models or hub names; thinking or not.")],
    suite: Annotated[str, typer.Option(help="The benchmarks to run: paper, the nine of its Table 3.")] = "paper",
    benchmarks: Annotated[str, typer.Option(help="Instead of a suite: names separated by commas, such as gsm8k,bbh,ifeval-pass10.")] = "",
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Plain files instead of the hub's datasets (layout: docs/eval.md).")
    ] = None,
    limit: Annotated[int, typer.Option(help="So many rows of each benchmark, the same for every model; the paper's 300. 0: all.")] = 0,
    seeds: Annotated[int, typer.Option(help="Replies that are sampled, so many times; greedy ones once.")] = 1,
    backend: Annotated[str, typer.Option(help="hf or vllm.")] = "hf",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, …")] = "auto",
    processes: Annotated[int, typer.Option(help="So many copies of the model, one a GPU, share the questions.")] = 1,
    batch: Annotated[int, typer.Option(help="Sequences at a time.")] = 64,
    max_trace_tokens: Annotated[int, typer.Option(help="Cap on a trace; a task's own cap is the answer's alone.")] = 2048,
    max_answer_tokens: Annotated[
        int | None, typer.Option(min=1, help="Cap on an answer below a task's own, for a trial: such scores are not the protocol's.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Of traces and answers where a task is greedy; by default they are greedy then.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The first of the seeds.")] = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Of one model; by default RUN/eval, or evals/MODEL.")] = None,
) -> None:
    """The paper's Table 3: nine benchmarks, each after the model's own trace; the same command again does only what is missing."""
    from nrt.eval.asking import Machine
    from nrt.eval.harness import Decoding
    from nrt.evaluating import evaluate_models

    evaluate_models(
        _console(), models, suite=suite, benchmarks=benchmarks, data=data, limit=limit, seeds=seeds, output=output,
        how=Decoding(max_trace_tokens, max_answer_tokens, temperature, seed), machine=Machine(backend, device, batch, processes),
    )  # fmt: skip


@app.command()
def confidence(
    models: Annotated[list[str], typer.Argument(metavar="MODEL…", help="Runs, or folders of models; with a trace or without.")],
    question: Annotated[str, typer.Option(help="What is asked, as the user's turn.")],
    answer: Annotated[str, typer.Option(help="The reference answer y*; without one, traces and answers alone.")] = "",
    samples: Annotated[int, typer.Option(help="Sampled traces a model; 0: one greedy trace.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the sampled traces.")] = 0,
    max_trace_tokens: Annotated[int, typer.Option(help="Cap on a trace.")] = 2048,
    max_answer_tokens: Annotated[int, typer.Option(help="Cap on an answer.")] = 2048,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a model instead of the table.")] = False,
) -> None:
    """How sure models are of an answer after their own trace and without one (Table 9), and what each of them writes (Table 10)."""
    from dataclasses import asdict
    from json import dumps

    from nrt.eval.confidence import ask, print_confidences
    from nrt.eval.reasoner import open_reasoner

    found = []
    for model in models:  # one in memory at a time
        reasoner = open_reasoner(model, max_trace_tokens=max_trace_tokens, max_answer_tokens=max_answer_tokens)
        found.append(ask(reasoner, question, answer or None, samples=samples, seed=seed))
    if not json:
        print_confidences(_console(), found)
        return
    for one in found:
        means = {"probability": one.probability, "probability_ended": one.probability_ended}
        print(dumps(asdict(one) | means))


@app.command()
def judge(
    runs: Annotated[list[str], typer.Argument(metavar="RUN…", help="Names or folders of runs; all are judged by the same questions.")],
    model: Annotated[str, typer.Option(help="The judge's name at --url; without one, a run or the folder of a model on this machine.")],
    url: Annotated[str, typer.Option(help="A chat-completions server, such as http://127.0.0.1:8000/v1.")] = "",
    steps: Annotated[str, typer.Option(help="Held-out evaluations to judge, such as 0,50,100; by default all.")] = "",
    samples: Annotated[int, typer.Option(help="Rows of each.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the choice of rows.")] = 0,
    jobs: Annotated[int, typer.Option(help="Requests at a time.")] = 8,
    price: Annotated[str, typer.Option(metavar="IN,OUT", help="Dollars per million tokens of prompt and of completion.")] = "",
    key_env: Annotated[str, typer.Option(help="The variable that holds the key; a local server mostly wants none.")] = "OPENAI_API_KEY",
    retries: Annotated[int, typer.Option(help="Further attempts after a reply that is no verdict, or an HTTP error that may pass.")] = 3,
    max_tokens: Annotated[int, typer.Option(help="Cap on a reply; a judge that thinks needs more.")] = 1024,
) -> None:
    """A language model scores the traces of held-out questions (Table 8); report, figures and compare draw the means (Figure 2 e, f)."""
    from nrt.eval.judge import judge_runs

    judge_runs(
        _console(), runs, model=model, url=url, steps=steps, samples=samples, seed=seed, jobs=jobs, price=price,
        key_env=key_env, retries=retries, max_tokens=max_tokens,
    )  # fmt: skip


def _console():
    from nrt.terminal import Terminal

    return Terminal()
