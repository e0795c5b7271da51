"""`nrt compare`: make the study, run what is missing, write compare.json, compare.md and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console

from nrt.analysis.comparison import (
    Comparison,
    Search,
    compare,
    comparison_json,
    comparison_markdown,
    judges_answers,
)
from nrt.analysis.confidence import EntropyBin
from nrt.analysis.plots import (
    has_matplotlib,
    plot_accuracy,
    plot_confidence,
    plot_dynamics,
    read_dynamics,
)
from nrt.analysis.report.variants import matched_confidence
from nrt.config import load_config
from nrt.errors import InputError, RunError, install_hint, unknown_name
from nrt.lab import RECIPES
from nrt.lab.settings import prepare
from nrt.run import Run, explain_unreadable_files, run_folder
from nrt.study import RunOutcome, Study, open_study, run_study
from nrt.study.runs import is_finished
from nrt.study.search import (
    Grid,
    check_chosen,
    check_same_tries,
    parse_grid,
    read_search,
    record_search,
    recorded_search,
    search_study,
    tries_of_variants,
    with_chosen,
)
from nrt.study.study import read_study, read_variants, run_path
from nrt.system.disk_errors import explain_disk_errors
from nrt.system.files import write_file
from nrt.system.terminal import print_markdown
from nrt.trainer.heldout import MEASURES

MEASURES_OF_SFT = frozenset({"correct", "logp"})
"""Measures that held-out records without a trace have."""


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
    sweep: Sequence[str] = (),
    sweep_seeds: int = 1,
    finished_only: bool = False,
) -> Comparison:
    """Run a study and write its results into its folder.

    With `sweep`, the settings of each variant are searched for first (`nrt.study.search`). With
    `finished_only` nothing is run: the results are those of the finished runs.

    Raises InputError for unknown names, before anything runs.
    """
    if not has_matplotlib():
        console.print(f"without plots: they need matplotlib; {install_hint('plots')}")
    plan = make_study(
        recipe, settings, methods=methods, variants=variants, seeds=seeds, baseline=baseline
    )
    name = study or default_study(recipe)
    folder = run_folder(name).absolute()
    existing = read_study(folder) if (folder / "study.yaml").is_file() else None
    grids = make_grids(plan, variants, sweep)
    tries = search_study(plan, grids, sweep_seeds) if grids else None
    if tries and (folder / "search" / "study.yaml").is_file():
        check_same_tries(read_study(folder / "search"), tries)
    if tries and existing:
        check_chosen(existing, plan, grids)
    if tries and not existing and finished_only:
        raise InputError("no settings are chosen yet; leave out --finished-only")
    recorded = recorded_search(folder / "search")
    makes_data = recipe in RECIPES and not any(text.startswith("data.train=") for text in settings)
    chosen_by = existing.chosen_by if existing else None
    searches = bool(tries) and not chosen_by
    _check_measurable(plan, folder, measure, makes_data=makes_data, searches=searches)

    def own_settings(seed: int) -> list[str]:
        if recipe not in RECIPES:
            return []
        with console.status(f"model and data of seed {seed} (made once, then cached)"):
            return prepare(recipe, seed, settings)

    def report(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True)

    run = partial(
        run_study, jobs=jobs, report=report, prepare=own_settings, start=not finished_only
    )
    with explain_disk_errors(folder, "run the same command again"):
        failed_tries = []
        chosen = existing.variants if existing else {}
        if tries and not finished_only:
            searched = open_study(str(folder / "search"), tries)
            new = tries_of_variants(tries, set(plan.variants) - set(chosen))
            if new:
                failed_tries = [each for each in run(searched, variants=new) if each.status]
        if finished_only and existing:
            plan = _with_finished_only(plan, existing, folder)
        search = None
        if tries or chosen_by:
            choose = plan.variants if tries else ()  # else the search may not be complete
            search = read_search(folder / "search", chosen_by or measure, chosen, choose, recorded)
            record_search(folder / "search", search)
            plan = with_chosen(plan, search)
        open_study(str(folder), plan)
        failed = [outcome for outcome in run(folder) if outcome.status]
        comparison = write_results(
            folder, failed, measure=measure, search=search, failed_tries=failed_tries
        )
    print_markdown(console, comparison_markdown(comparison))
    files = ["compare.md", "compare.json", *sorted(file.name for file in folder.glob("*.png"))]
    console.print(f"written to {folder}: {', '.join(files)}", soft_wrap=True)
    return comparison


def _with_finished_only(plan: Study, existing: Study, folder: Path) -> Study:
    """Return the plan without variants and seeds that would add only unfinished runs to a study."""
    done = [run for run in plan.runs() if is_finished(run_path(folder, *run))]
    seeds = max([existing.seeds, *(seed + 1 for _, seed in done)])
    known = {*existing.variants, *(variant for variant, _ in done)}
    variants = {name: own for name, own in plan.variants.items() if name in known}
    return replace(plan, seeds=seeds, variants=variants)


def default_study(recipe: str) -> str:
    """Return the name of a study that the command line does not name."""
    return f"compare-{Path(recipe).stem}"


def make_study(
    recipe: str,
    settings: Sequence[str],
    *,
    methods: str,
    variants: str,
    seeds: int,
    baseline: str,
) -> Study:
    """Return the study that the options of `nrt compare` describe."""
    if bool(methods) == bool(variants):
        raise InputError(
            "give a recipe and either --methods a,b,c or --variants FILE; nrt report RUN RUN puts "
            "runs side by side"
        )
    if variants:
        variant_set = read_variants(variants)
        default_baseline, settings_of_variants = variant_set.baseline, variant_set.variants
    else:
        settings_of_variants = {name: (f"method={name}",) for name in methods.split(",")}
        has_sft = "sft" in settings_of_variants
        default_baseline = "sft" if has_sft else next(iter(settings_of_variants))
    return Study(recipe, tuple(settings), settings_of_variants, seeds, baseline or default_baseline)


def make_grids(study: Study, variants: str, sweep: Sequence[str]) -> dict[str, Grid]:
    """Return the grid of each variant: that of `--sweep`, and that of the variants file over it.

    Empty without `--sweep`: a file's grid alone starts no search.
    """
    if not sweep:
        return {}
    grid = parse_grid(sweep)
    own = read_variants(variants).sweep if variants else {}
    return {variant: {**grid, **own.get(variant, {})} for variant in study.variants}


def _check_measurable(
    study: Study, folder: Path, measure: str, *, makes_data: bool, searches: bool
) -> None:
    """Raise InputError if no run of the study would have held-out records with the measure.

    Args:
        makes_data: the recipe's own data will be made, with held-out questions and a checker.
        searches: settings of every variant are chosen by the measure.
    """
    if measure not in MEASURES:
        raise unknown_name("measure", measure, MEASURES)
    for variant in study.variants:
        recipe, *settings = study.train_arguments(variant, 0, folder)
        config = load_config(recipe, settings)
        if searches and config.method == "sft" and measure not in MEASURES_OF_SFT:
            raise InputError(
                f"settings of {variant} cannot be chosen by {measure}, since sft has no traces; "
                "choose by correct or logp, and give --measure again without --sweep afterwards"
            )
        if measure.endswith("_swapped") and not config.heldout.swapped:
            raise InputError(f"--measure {measure} needs heldout.swapped=true")
        if makes_data:
            continue
        if not config.data.valid:
            raise InputError("nrt compare scores held-out questions; set data.valid=FILE")
        if judges_answers(measure) and not config.heldout.checker:
            raise InputError(
                f"--measure {measure} needs a checker of answers; set heldout.checker=exact, "
                "last-number or contains, or give --measure logp"
            )


def write_results(
    folder: Path,
    failed: Sequence[RunOutcome],
    *,
    measure: str = "correct",
    search: Search | None = None,
    failed_tries: Sequence[RunOutcome] = (),
) -> Comparison:
    """Write the tables and plots of the runs that are done, also by another command.

    Raises RunError if none is.
    """
    # Everything is read before anything is written: a damaged file leaves the old results alone.
    study = read_study(folder)
    missing = {f"search: {each.variant}, seed {each.seed}": each.error for each in failed_tries}
    missing |= {f"{each.variant}, seed {each.seed}": each.error for each in failed}
    runs: dict[str, dict[int, Path]] = {variant: {} for variant in study.variants}
    unfinished: dict[str, list[int]] = {variant: [] for variant in study.variants}
    for variant, seed in study.runs():
        path = run_path(folder, variant, seed)
        if is_finished(path):
            runs[variant][seed] = path
        elif f"{variant}, seed {seed}" not in missing:
            unfinished[variant].append(seed)
    for variant, seeds in unfinished.items():
        if seeds:
            noun = "seeds" if len(seeds) > 1 else "seed"
            missing[f"{variant}, {noun} {', '.join(map(str, seeds))}"] = "not finished"
    if not any(runs.values()):
        reasons = "; ".join(f"{run}: {reason}" for run, reason in list(missing.items())[:3])
        raise RunError(f"no run of {folder} is finished ({reasons:.500})")
    comparison = compare(runs, study.baseline, measure=measure, missing=missing, search=search)
    dynamics = read_dynamics(runs)
    bins = _token_confidence(runs, study.baseline)
    write_file(folder / "compare.json", [comparison_json(comparison)])
    write_file(folder / "compare.md", [comparison_markdown(comparison)])
    if has_matplotlib():
        plot_accuracy(comparison, folder / "accuracy.png")
        plot_dynamics(dynamics, folder / "dynamics.png")
        if bins:
            plot_confidence(bins, study.baseline, folder / "confidence.png")
    return comparison


def _token_confidence(
    runs: Mapping[str, Mapping[int, Path]], baseline: str
) -> dict[str, list[EntropyBin]]:
    """Compare each variant with the baseline over the seeds that both have; omit empty results."""
    baseline_runs = runs[baseline]
    bins_of_variants = {}
    for variant, paths in runs.items():
        if variant == baseline:
            continue
        with explain_unreadable_files(*paths.values(), *baseline_runs.values()):
            pairs = [
                (Run(path).heldout(), Run(baseline_runs[seed]).heldout())
                for seed, path in paths.items()
                if seed in baseline_runs
            ]
            bins = matched_confidence(pairs)
        if bins:
            bins_of_variants[variant] = bins
    return bins_of_variants
