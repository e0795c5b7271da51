"""Commands that question trained models: `nrt eval`, `nrt confidence`, `nrt judge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nrt.cli.common import console

app = typer.Typer()


EvalModels = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL…", help="Runs, model folders or hub names, with or without traces."
    ),
]
Suite = Annotated[
    str,
    typer.Option(
        help="Benchmarks to run; paper: the nine of the paper's Table 3, and TruthfulQA after the "
        "null trace."
    ),
]
Benchmarks = Annotated[
    str,
    typer.Option(
        help="Benchmarks instead of a suite, separated by commas, such as gsm8k,ifeval-pass10."
    ),
]
DataFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Folder of data files (layout: docs/eval.md); default: the hub's datasets.",
    ),
]
RowLimit = Annotated[
    int,
    typer.Option(
        min=0,
        help="Rows of each benchmark, the same for every model; 0: all. "
        "The paper seems to use 300.",
    ),
]
ReplyCount = Annotated[
    int,
    typer.Option(min=1, help="Sampled replies to each question; greedy replies are made once."),
]
BackendName = Annotated[str, typer.Option(help="Inference backend: hf or vllm.")]
Device = Annotated[str, typer.Option(help="Device: auto, cpu, cuda, …")]
ProcessCount = Annotated[
    int, typer.Option(min=1, help="Copies of the model that share the questions, one on each GPU.")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Sequences that are decoded together.")]
EvalTraceTokens = Annotated[
    int,
    typer.Option(min=1, help="Longest trace, in tokens; a task's own limit is for answers only."),
]
EvalAnswerTokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Longest answer, in tokens, if a task allows more; for trials only: the scores "
        "no longer follow the protocol. Default: the task's limit.",
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        min=0, help="Sampling temperature of traces and answers in greedy tasks; default: greedy."
    ),
]
FirstSeed = Annotated[int, typer.Option(help="First sampling seed.")]
ResultsFolder = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        help="Folder of the results of one model; default: RUN/eval, or evals/MODEL.",
    ),
]


@app.command("eval")
def evaluate(
    models: EvalModels,
    suite: Suite = "paper",
    benchmarks: Benchmarks = "",
    data: DataFolder = None,
    limit: RowLimit = 0,
    seeds: ReplyCount = 1,
    backend: BackendName = "hf",
    device: Device = "auto",
    processes: ProcessCount = 1,
    batch: BatchSize = 64,
    max_trace_tokens: EvalTraceTokens = 2048,
    max_answer_tokens: EvalAnswerTokens = None,
    temperature: Temperature = None,
    seed: FirstSeed = 0,
    output: ResultsFolder = None,
) -> None:
    """Evaluate models on the paper's nine benchmarks (Table 3).

    A model that thinks answers each question after its own trace.
    Repeat the command to do only what is missing.
    """
    from nrt.cli.evaluate import evaluate_models
    from nrt.eval.asking import Backend
    from nrt.eval.harness import Decoding

    evaluate_models(
        console(),
        models,
        suite=suite,
        benchmarks=benchmarks,
        data=data,
        limit=limit,
        seeds=seeds,
        output=output,
        decoding=Decoding(max_trace_tokens, max_answer_tokens, temperature, seed),
        backend=Backend(backend, device, batch, processes),
    )


@app.command()
def confidence(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL…", help="Runs or model folders, with or without traces."),
    ],
    question: Annotated[str, typer.Option(help="Question, as the user's turn.")],
    answer: Annotated[
        str,
        typer.Option(help="Reference answer y*; default: only print traces and answers."),
    ] = "",
    samples: Annotated[
        int, typer.Option(min=0, help="Sampled traces of each model; 0: one greedy trace.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the sampled traces.")] = 0,
    max_trace_tokens: Annotated[int, typer.Option(min=1, help="Longest trace, in tokens.")] = 2048,
    max_answer_tokens: Annotated[
        int, typer.Option(min=1, help="Longest answer, in tokens.")
    ] = 2048,
    json_lines: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a model instead of the table.")
    ] = False,
) -> None:
    """Measure how likely models find an answer, with and without a trace (Table 9).

    Also prints each model's traces and own answers (Table 10).
    """
    from dataclasses import asdict
    from json import dumps

    from nrt.eval.confidence import measure_confidence, print_confidences
    from nrt.eval.reasoner import open_reasoner

    results = []
    for model in models:  # one in memory at a time
        reasoner = open_reasoner(
            model, max_trace_tokens=max_trace_tokens, max_answer_tokens=max_answer_tokens
        )
        results.append(
            measure_confidence(reasoner, question, answer or None, samples=samples, seed=seed)
        )
    if not json_lines:
        print_confidences(console(), results)
        return
    for result in results:
        means = {
            "probability": result.probability,
            "probability_ended": result.probability_ended,
        }
        print(dumps(asdict(result) | means))


JudgedRuns = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN…", help="Names or folders of runs; all are judged on the same questions."
    ),
]
JudgeName = Annotated[
    str,
    typer.Option(
        help="Name of the judge at --url; without --url a run or model folder on this machine."
    ),
]
JudgeUrl = Annotated[
    str, typer.Option(help="Chat-completions server, such as http://127.0.0.1:8000/v1.")
]
JudgedSteps = Annotated[
    str,
    typer.Option(help="Steps whose held-out evaluation is judged, such as 0,50,100; default: all."),
]
JudgedRows = Annotated[int, typer.Option(min=1, help="Rows of each evaluation that are judged.")]
RowSeed = Annotated[int, typer.Option(help="Seed of the choice of rows.")]
JobCount = Annotated[int, typer.Option(min=1, help="Requests at the same time.")]
TokenPrices = Annotated[
    str,
    typer.Option(
        metavar="IN,OUT",
        help="Dollars per million prompt tokens and completion tokens; default: no cost is "
        "computed.",
    ),
]
KeyVariable = Annotated[
    str,
    typer.Option(
        help="Environment variable that holds the API key; a local server usually needs none."
    ),
]
Retries = Annotated[
    int,
    typer.Option(
        min=0, help="Further attempts after an invalid verdict or a temporary HTTP error."
    ),
]
ReplyTokens = Annotated[
    int, typer.Option(min=1, help="Longest reply, in tokens; a judge that thinks needs more.")
]


@app.command()
def judge(
    runs: JudgedRuns,
    model: JudgeName,
    url: JudgeUrl = "",
    steps: JudgedSteps = "",
    samples: JudgedRows = 100,
    seed: RowSeed = 0,
    jobs: JobCount = 8,
    price: TokenPrices = "",
    key_env: KeyVariable = "OPENAI_API_KEY",
    retries: Retries = 3,
    max_tokens: ReplyTokens = 1024,
) -> None:
    """Score the traces of held-out questions with a language model (Table 8).

    `nrt report`, `nrt figures` and `nrt compare` plot the mean scores (Figure 2 e, f).
    """
    from nrt.eval.judge import judge_runs

    judge_runs(
        console(),
        runs,
        model=model,
        url=url,
        steps=steps,
        samples=samples,
        seed=seed,
        jobs=jobs,
        price=price,
        key_env=key_env,
        retries=retries,
        max_tokens=max_tokens,
    )
