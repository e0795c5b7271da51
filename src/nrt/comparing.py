"""`nrt compare`: plan, run what is missing, write compare.json, compare.md and the plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from nrt.analysis.comparison import Comparison, as_json, compare, markdown
from nrt.analysis.confidence import Bin
from nrt.analysis.plots import need_matplotlib, plot_accuracy, plot_confidence, plot_dynamics, read_dynamics
from nrt.analysis.report.compared import matched_confidence
from nrt.durable import told_of_disk, write_file
from nrt.errors import InputError
from nrt.lab.settings import BASES, prepare
from nrt.run import Run, as_nrt_writes, run_folder
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
    name = study or f"compare-{Path(recipe).stem}"

    def world(seed: int) -> list[str]:
        if recipe not in BASES or any(text.startswith("model=") for text in settings):
            return []
        with console.status(f"base model of seed {seed} (built once, then cached)"):
            return prepare(recipe, seed)

    with told_of_disk(run_folder(name), "give the same command again"):
        folder = open_study(name, plan)
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
    study = read_study(folder)  # and all else is read before anything is written
    missing = {f"{o.variant}, seed {o.seed}": o.error for o in outcomes if o.status}
    done = {(o.variant, o.seed) for o in outcomes if not o.status}
    runs = {v: {s: run_path(folder, v, s) for s in range(study.seeds) if (v, s) in done} for v in study.variants}
    comparison = compare(runs, study.baseline, measure=measure, missing=missing)
    dynamics, bins = read_dynamics(runs), _confidence(runs, study.baseline)
    write_file(folder / "compare.json", [as_json(comparison)])
    write_file(folder / "compare.md", [markdown(comparison)])
    plot_accuracy(comparison, folder / "accuracy.png")
    plot_dynamics(dynamics, folder / "dynamics.png")
    if bins:
        plot_confidence(bins, study.baseline, folder / "confidence.png")
    return comparison


def _confidence(runs: Mapping[str, Mapping[int, Path]], baseline: str) -> dict[str, list[Bin]]:
    """Of each variant against the baseline, over the seeds that both have."""
    base = runs[baseline]
    found = {}
    for variant, paths in runs.items():
        with as_nrt_writes(*paths.values(), *base.values()):
            pairs = [(Run(path).heldout(), Run(base[seed]).heldout()) for seed, path in paths.items() if seed in base]
            found[variant] = matched_confidence(pairs) if variant != baseline else []
    return {variant: bins for variant, bins in found.items() if bins}
