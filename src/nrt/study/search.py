"""Search for the settings of a study's variants: equally many tries for each, on its own seeds.

The search is a study in the folder `search` of the study that it is for. Its variants are the
tries, named `<variant>--<i>`, so a search that was killed is resumed like any study.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import fmean

from nrt.analysis.comparison import Search, Try, values_by_family
from nrt.errors import InputError
from nrt.run import Run
from nrt.study.runs import is_finished
from nrt.study.study import MAX_SEEDS, Study, run_path

FIRST_SEED = MAX_SEEDS
"""Seed of the first run of each try. No comparison has it."""

Grid = Mapping[str, Sequence[str]]
"""Setting → values to try. A grid with several settings has all combinations."""


def parse_grid(texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the grid of `KEY=VALUE,VALUE,…` texts. Raises InputError for another form.

    >>> parse_grid(["optimizer.lr=1e-5,3e-5"])
    {'optimizer.lr': ('1e-5', '3e-5')}
    """
    grid: dict[str, tuple[str, ...]] = {}
    for text in texts:
        key, _, values = text.partition("=")
        tried = tuple(value.strip() for value in values.split(","))
        if not key or len(tried) < 2 or not all(tried):
            raise InputError(
                f"--sweep {text!r:.200}: give a setting and at least two values, such as "
                "optimizer.lr=1e-5,3e-5"
            )
        if key.strip() in grid:
            raise InputError(f"--sweep names {key.strip()} twice; give all its values at once")
        grid[key.strip()] = tried
    return grid


def search_study(study: Study, grids: Mapping[str, Grid], seeds: int) -> Study:
    """Return the study of all tries.

    Args:
        grids: variant → its grid.
        seeds: runs of each try.

    Raises InputError unless all variants have equally many tries.
    """
    variants: dict[str, tuple[str, ...]] = {}
    counts = set()
    for variant, settings in study.variants.items():
        tries = tries_of(grids[variant])
        counts.add(len(tries))
        for i, tried in enumerate(tries):
            variants[_name(variant, i)] = (*settings, *tried)
    if len(counts) > 1:
        raise InputError(
            f"the variants would have {', '.join(map(str, sorted(counts)))} tries; give each the "
            "same number, since a longer search finds better settings"
        )
    return replace(
        study,
        variants=variants,
        seeds=seeds,
        first_seed=FIRST_SEED,
        baseline=_name(study.baseline, 0),
    )


def read_search(
    folder: Path, study: Study, grids: Mapping[str, Grid], seeds: int, measure: str
) -> Search:
    """Return the results of the search in a folder.

    Args:
        study: the study that the search is for.
        measure: field of the held-out records; the higher, the better.
    """
    numbers = tuple(range(FIRST_SEED, FIRST_SEED + seeds))
    tries: dict[str, tuple[Try, ...]] = {}
    for variant in study.variants:
        results = []
        for i, settings in enumerate(tries_of(grids[variant])):
            runs = [run_path(folder, _name(variant, i), seed) for seed in numbers]
            results.append(_result(settings, runs, measure))
        tries[variant] = tuple(results)
    return Search(measure, numbers, tries)


def check_chosen(existing: Study, study: Study, grids: Mapping[str, Grid]) -> None:
    """Raise InputError unless an existing study may have come from this search.

    Its variants must have the settings of one of their tries.
    """
    for variant, settings in study.variants.items():
        possible = [(*settings, *tried) for tried in tries_of(grids[variant])]
        if variant in existing.variants and existing.variants[variant] not in possible:
            raise InputError(
                f"the study has {variant} with {list(existing.variants[variant])!r:.200}, which is "
                "none of the tries; give another --study name"
            )


def with_best(study: Study, search: Search) -> Study:
    """Return the study with the best settings of each variant."""
    variants = {}
    for variant, settings in study.variants.items():
        variants[variant] = (*settings, *search.best(variant).settings)
    return replace(study, variants=variants)


def tries_of(grid: Grid) -> list[tuple[str, ...]]:
    """Return all combinations of a grid, each as `key=value` settings."""
    settings = [[f"{key}={value}" for value in values] for key, values in grid.items()]
    return list(product(*settings))


def _name(variant: str, i: int) -> str:
    return f"{variant}--{i}"


def _result(settings: tuple[str, ...], runs: Sequence[Path], measure: str) -> Try:
    scores, seconds = [], 0.0
    for path in runs:
        if not is_finished(path):
            return Try(settings, None, seconds / 60)
        run = Run(path)
        families = values_by_family(run.heldout(), measure)
        if not families:
            raise InputError(
                f"no held-out record of {path} has {measure!r}; set data.valid and "
                "heldout.checker, or choose another --measure"
            )
        scores.append(fmean(fmean(values.values()) for values in families.values()))
        seconds += sum(row.get("time/step", 0.0) for row in run.metrics())
    return Try(settings, fmean(scores), seconds / 60)
