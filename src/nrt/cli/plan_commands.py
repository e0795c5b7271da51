"""`nrt plan`: what a run needs, computed before it starts."""

from __future__ import annotations

from json import dumps
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nrt.cli.common import Settings, SettingsCommand, console, print_next, split_recipe
from nrt.errors import InputError

if TYPE_CHECKING:
    from nrt.config import Config

app = typer.Typer()

GPUS_OF_A_NODE = 8
"""With more GPUs a run needs several nodes, which one torchrun does not start."""

GpuCount = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Number of GPUs; default: 1. With engine=verl set nodes and gpus_per_node instead.",
    ),
]
GpuType = Annotated[
    str,
    typer.Option(
        help="GPU type: h100, h200, a100, b200, l40s, l4, a10g, a6000, t4, rtx5090, rtx4090 or "
        "rtx3090; cpu: this machine."
    ),
]
GpuMemory = Annotated[
    float | None,
    typer.Option(
        min=1.0, max=10_000.0, help="Memory of one GPU in GiB; default: the usual of its type."
    ),
]
Parallel = Annotated[
    str | None,
    typer.Option(
        help="ddp: a replica on each GPU; fsdp: sharded over the GPUs. Default: ddp, or fsdp where "
        "a replica would take more than 60 % of a GPU."
    ),
]
PromptLength = Annotated[
    int | None, typer.Option(min=1, help="Mean tokens of a prompt; default: the recipe's cap.")
]
TraceLength = Annotated[
    int | None, typer.Option(min=1, help="Mean tokens of a trace; default: the recipe's cap.")
]
AnswerLength = Annotated[
    int | None, typer.Option(min=1, help="Mean tokens of an answer; default: the recipe's cap.")
]
TrainingRows = Annotated[
    int | None,
    typer.Option(min=1, help="Rows of the training data: one epoch, if the recipe sets no steps."),
]
Price = Annotated[
    float | None,
    typer.Option(min=0.0, help="Price of one GPU hour; without it no cost is computed."),
]
Utilization = Annotated[
    float | None,
    typer.Option(
        min=0.01, max=1.0, help="Share of the GPU's peak FLOP/s that updates reach; default: 0.4."
    ),
]
Bandwidth = Annotated[
    float | None,
    typer.Option(
        min=0.01,
        max=1.0,
        help="Share of the GPU's memory bandwidth that decoding reaches; default: 0.6.",
    ),
]
Network = Annotated[
    float | None,
    typer.Option(
        min=0.1,
        help="GB/s from one GPU to other nodes, one way (engine=verl); default: that of the GPU "
        "type, 50 for h100.",
    ),
]
PlanJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object instead of the tables.")
]


@app.command(cls=SettingsCommand)
def plan(
    settings: Settings,
    gpus: GpuCount = None,
    gpu: GpuType = "h100",
    memory: GpuMemory = None,
    parallel: Parallel = None,
    prompt: PromptLength = None,
    trace: TraceLength = None,
    answer: AnswerLength = None,
    rows: TrainingRows = None,
    price: Price = None,
    mfu: Utilization = None,
    bandwidth: Bandwidth = None,
    network: Network = None,
    json_output: PlanJson = False,
) -> None:
    """Estimate memory, time and cost of a run, and list changes that make it fit.

    Example:  nrt plan llama-3.2-3b --gpu h200 --gpus 8 --trace 500
    No GPU and no weights are needed.
    """
    from nrt.config import load_config
    from nrt.plan import plan_cluster, plan_run
    from nrt.plan.cluster_table import cluster_json, print_cluster
    from nrt.plan.report import plan_json
    from nrt.plan.tables import print_plan

    recipe, overrides = split_recipe(settings)
    config = load_config(recipe or None, overrides)
    options: dict[str, Any] = {
        "gpu": gpu.lower(),
        "memory": memory,
        "means": (prompt, trace, answer),
        "rows": rows,
        "price": price,
        "mfu": mfu,
        "bandwidth": bandwidth,
    }
    if config.engine == "verl":
        if gpus or parallel:
            raise InputError(
                "--gpus and --parallel do not apply to engine=verl: "
                "set nodes and gpus_per_node, and verl's own settings for the layout"
            )
        cluster_report = plan_cluster(config, network=network, **options)
        if json_output:
            print(dumps(cluster_json(cluster_report)))
        else:
            print_cluster(console(), cluster_report)
            if cluster_report.plan.fits:
                print_next("train", *_train_arguments(settings, config))
        return
    report = plan_run(config, gpus=gpus or 1, parallel=parallel, **options)
    if json_output:
        print(dumps(plan_json(report)))
    else:
        print_plan(console(), report)
        changes = [step.change for step in report.advice]
        if parallel:
            changes.insert(0, f"parallel={parallel}")
        fits = report.plan.fits or (report.advice and report.advice[-1].fits)
        if fits and (gpus or 1) <= GPUS_OF_A_NODE:
            print_next("train", *_train_arguments(settings, config), *changes, processes=gpus or 1)


def _train_arguments(settings: list[str], config: Config) -> list[str]:
    """Return the arguments of `nrt train` for a plan's settings, with what a plan does not need."""
    from nrt.lab import RECIPES
    from nrt.plan.meta_model import BUILT_IN

    arguments = list(settings)
    for index, text in enumerate(settings):
        if text.startswith("model=") and text.removeprefix("model=").lower() in BUILT_IN:
            arguments[index] = "model=MODEL"  # a config built into the plan, no model to load
    if config.data.train is None and settings[0] not in RECIPES:
        arguments.append("data.train=FILE")
    return arguments
