"""Search for the settings of a study's variants: equally many tries for each, on its own seeds.

The search is a study in the folder `search` of the study that it is for. Its variants are the
tries, named `<variant>--<i>`, so a search that was killed is resumed like any study. The study's
study.yaml holds the settings that were chosen, and by which measure (`chosen_by`). A choice stays,
whatever is measured or tried later. The scores of all tries are in search/results.json before the
first run of the comparison, so the runs of the search may be deleted then.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import product, takewhile
from pathlib import Path
from statistics import fmean

from pydantic import TypeAdapter

from nrt.analysis.comparison import Search, Try, values_by_family
from nrt.errors import InputError, first_line
from nrt.run import Run
from nrt.study.study import MAX_SEEDS, Study, read_study, run_path
from nrt.system.files import read_bounded, write_file

FIRST_SEED = MAX_SEEDS
"""Seed of the first run of each try. No comparison has it."""

OF_A_RUN = frozenset({"method", "seed", "run", "resume"})
"""Settings that tell variants and runs apart."""

Grid = Mapping[str, Sequence[str]]
"""Setting → values to try. A grid with several settings has all combinations."""

RESULTS_FILE = "results.json"
"""Scores of the tries, in the search's folder."""

_SEARCH = TypeAdapter(Search)


def parse_grid(texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the grid of `KEY=VALUE,VALUE,…` texts. Raises InputError for another form.

    >>> parse_grid(["optimizer.lr=1e-5,3e-5"])
    {'optimizer.lr': ('1e-5', '3e-5')}
    """
    grid: dict[str, tuple[str, ...]] = {}
    for text in texts:
        key, _, values = text.partition("=")
        key, tried = key.strip(), tuple(value.strip() for value in values.split(","))
        if not key or len(tried) < 2 or not all(tried):
            raise InputError(
                f"--sweep {text!r:.200}: give a setting and at least two values, such as "
                "optimizer.lr=1e-5,3e-5"
            )
        if key in grid:
            raise InputError(f"--sweep names {key} twice; give all its values at once")
        if key in OF_A_RUN:
            raise InputError(
                f"--sweep {key} would make a try another variant or run; give settings of training"
            )
        if len(set(map(_number, tried))) < len(tried):
            raise InputError(f"--sweep {text!r:.200} has a value twice; give each once")
        grid[key] = tried
    return grid


def _number(value: str) -> float | str:
    """Return the value as a number if it is one: 1e-3 and 0.001 are the same try."""
    try:
        return float(value)
    except ValueError:
        return value


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


def check_same_tries(existing: Study, search: Study) -> None:
    """Raise InputError unless a search that goes on has as many tries and seeds as before.

    Its variants may be others than those that were searched for.
    """
    if existing.seeds != search.seeds:
        raise InputError(
            f"the search has {existing.seeds} seeds; give --sweep-seeds {existing.seeds}, or "
            "another --study name"
        )
    before, now = ({*map(len, _tries_by_variant(each).values())} for each in (existing, search))
    if before != now:
        raise InputError(
            f"the search has {', '.join(map(str, before))} tries of each variant, not "
            f"{', '.join(map(str, now))}; give the same number, or another --study name"
        )


def tries_of_variants(search: Study, variants: Iterable[str]) -> set[str]:
    """Return the names of the tries of these variants."""
    wanted = set(variants)
    return {name for name in search.variants if _variant_of(name) in wanted}


def recorded_search(folder: Path) -> Search | None:
    """Return the results that `record_search` wrote into the search's folder; None without any.

    Raises InputError for a damaged file.
    """
    file = folder / RESULTS_FILE
    if not file.is_file():
        return None
    try:
        return _SEARCH.validate_json(read_bounded(file))
    except ValueError as error:  # pydantic's too
        raise InputError(
            f"{file} is damaged ({first_line(error)}); restore it from a copy, or move it away, "
            "which loses the scores of tries whose runs were deleted"
        ) from None


def record_search(folder: Path, search: Search) -> None:
    """Write the results into the search's folder."""
    write_file(folder / RESULTS_FILE, [json.dumps(asdict(search), indent=1) + "\n"])


def read_search(
    folder: Path,
    measure: str,
    chosen: Mapping[str, Sequence[str]],
    choose: Iterable[str] = (),
    recorded: Search | None = None,
) -> Search:
    """Return the results of the search in a folder.

    Args:
        measure: field of the held-out records; the higher, the better.
        chosen: variant → all of its settings, where they are chosen already.
        choose: variants whose best try is chosen now, unless it is already.
        recorded: earlier results, for tries whose runs were deleted.

    Raises InputError if a variant of `choose` has no finished try.
    """
    if recorded is None or recorded.measure != measure:
        recorded = Search(measure, (), {})
    search = read_study(folder)
    seeds = tuple(range(search.first_seed, search.first_seed + search.seeds))
    tries: dict[str, tuple[Try, ...]] = {}
    for variant, settings_of_tries in _tries_by_variant(search).items():
        common = _common(settings_of_tries)  # the variant's own settings come first
        results = []
        for i, settings in enumerate(settings_of_tries):
            runs = [run_path(folder, _name(variant, i), seed) for seed in seeds]
            is_chosen = tuple(chosen.get(variant, ())) == settings
            result = _result(settings[common:], runs, measure, chosen=is_chosen)
            if result.score is None:
                before = recorded.tries.get(variant, ())
                same = (each for each in before if each.settings == result.settings)
                result = replace(next(same, result), chosen=is_chosen)
            results.append(result)
        if variant in choose and variant not in chosen:
            finished = [each for each in results if each.score is not None]
            if not finished:
                raise InputError(
                    f"no try of {variant} has {measure} of all its questions; see the logs in "
                    "search/logs"
                )
            # max takes the first of equal ones
            best = results.index(max(finished, key=lambda each: each.score or 0.0))
            results[best] = replace(results[best], chosen=True)
        tries[variant] = tuple(results)
    return Search(measure, seeds, tries)


def _common(settings: Sequence[Sequence[str]]) -> int:
    """Return how many settings all tries begin with."""
    columns = zip(*settings, strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


def _tries_by_variant(search: Study) -> dict[str, list[tuple[str, ...]]]:
    """Return variant → the settings of each of its tries."""
    tries: dict[str, list[tuple[str, ...]]] = {}
    for name, settings in search.variants.items():
        tries.setdefault(_variant_of(name), []).append(tuple(settings))
    return tries


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


def with_chosen(study: Study, search: Search) -> Study:
    """Return the study with the chosen settings of each variant."""
    variants = {}
    for variant, settings in study.variants.items():
        chosen = search.chosen(variant)
        if chosen is None:
            raise InputError(
                f"the study's settings were searched for, and those of {variant} were not; give "
                "--sweep and --sweep-seeds as before to add it"
            )
        variants[variant] = (*settings, *chosen.settings)
    return replace(study, variants=variants, chosen_by=search.measure)


def tries_of(grid: Grid) -> list[tuple[str, ...]]:
    """Return all combinations of a grid, each as `key=value` settings."""
    settings = [[f"{key}={value}" for value in values] for key, values in grid.items()]
    return list(product(*settings))


def _name(variant: str, i: int) -> str:
    return f"{variant}--{i}"


def _variant_of(name: str) -> str:
    """Return the variant of a try's name."""
    return name.rpartition("--")[0]


def _result(settings: tuple[str, ...], paths: Sequence[Path], measure: str, *, chosen: bool) -> Try:
    """Return a try. It has a score if all its runs are finished and all questions have the
    measure: the mean of the questions that a diverged run can still answer says nothing.
    """
    scores, seconds = [], 0.0
    for path in paths:
        if not (path / "config.yaml").is_file():
            continue
        run = Run(path)
        seconds += sum(row.get("time/step", 0.0) for row in run.metrics())
        if run.is_finished and all(row.get(measure) is not None for row in run.heldout()):
            families = values_by_family(run.heldout(), measure).values()
            scores.append(fmean(fmean(values.values()) for values in families))
    score = fmean(scores) if len(scores) == len(paths) else None
    return Try(settings, score, seconds / 60, chosen)
