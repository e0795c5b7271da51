"""`nrt compare`: plan, run what is missing, write compare.json, compare.md and the plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from nrt.analysis.comparison import Comparison, as_json, compare, markdown
from nrt.analysis.confidence import confidence
from nrt.analysis.plots import need_matplotlib, plot_accuracy, plot_confidence, plot_dynamics
from nrt.durable import write_file
from nrt.errors import InputError
from nrt.lab.settings import BASES, prepare
from nrt.run import Run
from nrt.study import Outcome, Study, open_study, run_all
from nrt.study.plan import read_study, read_variants, run_path


def compare_study(
    console: Console,
    recipe: str,
    settings: Sequence[str],
    *,
    methods: str = "",
    variants: str = "",
    seeds: int = 3,
    baseline: str = "",
    jobs: int = 1,
    study: str = "",
    measure: str = "correct",
) -> Comparison:
    """Runs a study and writes its results into its folder. Raises InputError for names that are unknown, before anything runs."""
    need_matplotlib()
    plan = make_plan(recipe, settings, methods=methods, variants=variants, seeds=seeds, baseline=baseline)
    folder = open_study(study or f"compare-{Path(recipe).stem}", plan)

    def world(seed: int) -> list[str]:
        if recipe not in BASES or any(text.startswith("model=") for text in settings):
            return []
        with console.status(f"base model of seed {seed} (built once, then cached)"):
            return prepare(recipe, seed)

    outcomes = run_all(folder, jobs=jobs, report=lambda line: console.print(line, highlight=False, soft_wrap=True), prepare=world)
    comparison = write_results(folder, outcomes, measure=measure)
    console.print(Markdown(markdown(comparison)))
    console.print(f"written to {folder}: compare.md, compare.json, accuracy.png, dynamics.png, confidence.png", soft_wrap=True)
    return comparison


def make_plan(recipe: str, settings: Sequence[str], *, methods: str, variants: str, seeds: int, baseline: str) -> Study:
    """The study that the command line asks for."""
    if bool(methods) == bool(variants):
        raise InputError("give either --methods a,b,c or --variants FILE")
    if variants:
        first, table = read_variants(variants)
    else:
        table = {name: (f"method={name}",) for name in methods.split(",")}
        first = "sft" if "sft" in table else next(iter(table))
    return Study(recipe, tuple(settings), table, seeds, baseline or first)


def write_results(folder: Path, outcomes: Sequence[Outcome], *, measure: str = "correct") -> Comparison:
    """Table and plots of the runs that are done."""
    study = read_study(folder)
    missing = {f"{o.variant}, seed {o.seed}": o.error for o in outcomes if o.status}
    done = {(o.variant, o.seed) for o in outcomes if not o.status}
    runs = {v: {s: run_path(folder, v, s) for s in range(study.seeds) if (v, s) in done} for v in study.variants}
    comparison = compare(runs, study.baseline, measure=measure, missing=missing)
    write_file(folder / "compare.json", [as_json(comparison)])
    write_file(folder / "compare.md", [markdown(comparison)])
    plot_accuracy(comparison, folder / "accuracy.png")
    plot_dynamics(runs, folder / "dynamics.png")
    bins = {}
    for variant, paths in runs.items():
        seeds = [seed for seed in paths if seed in runs[study.baseline]]
        if variant != study.baseline and seeds:
            records = [[Run(runs[name][seed]).heldout() for seed in seeds] for name in (variant, study.baseline)]
            bins[variant] = confidence(*records)
    if bins:
        plot_confidence(bins, study.baseline, folder / "confidence.png")
    return comparison
