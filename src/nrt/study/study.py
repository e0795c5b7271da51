"""The variants, seeds and baseline of a study, written to study.yaml before any run starts.

runs/<study>/  study.yaml   runs/<variant>-seed<k>/ (run folders)   logs/<variant>-seed<k>.log
               compare.json   compare.md   *.png   search/ (a study: see `nrt.study.search`)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from nrt.backends.verl.bridge import check_supported, rollout_name
from nrt.backends.verl.requirements import check_installed
from nrt.config import (
    Config,
    flat_settings,
    load_config,
    packaged_recipes,
    parse_plain_yaml,
    read_yaml_file,
)
from nrt.errors import InputError, unknown_name
from nrt.run import Run, run_folder
from nrt.system.files import write_file
from nrt.trainer.resolve import FREE_ON_RESUME, resolve_names

MAX_SEEDS = 1000


@dataclass(frozen=True)
class Study:
    """Variants × seeds of one recipe.

    Each variant is compared with `baseline`, seed by seed and question by question.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    recipe: str
    settings: tuple[str, ...]  # key=value, for all runs
    variants: Mapping[str, tuple[str, ...]]  # name → its own key=value settings
    seeds: Annotated[int, Field(strict=True)]  # number of runs of each variant
    baseline: str
    first_seed: Annotated[int, Field(strict=True, ge=0)] = 0  # of `seeds` successive ones
    # measure by which a search chose the variants' own settings; None: there was no search
    chosen_by: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.seeds <= MAX_SEEDS:
            raise InputError(
                f"--seeds {self.seeds!s:.20}: give at least 1 and at most {MAX_SEEDS:,}"
            )
        for name in self.variants:
            if not 0 < len(name) <= 100 or not name.isprintable() or set(name) & set("/\\"):
                raise InputError(
                    f"variant {name!r:.200}: give it a name that a folder can have, "
                    "of at most 100 characters"
                )
        if self.baseline not in self.variants:
            raise unknown_name("baseline", self.baseline, self.variants)

    def runs(self) -> list[tuple[str, int]]:
        """Return (variant, seed) of every run, all variants of seed 0 first.

        An interrupted study then has all variants with fewer seeds, not half of the variants.
        """
        seeds = range(self.first_seed, self.first_seed + self.seeds)
        return [(variant, seed) for seed in seeds for variant in self.variants]

    def train_arguments(self, variant: str, seed: int, folder: Path) -> list[str]:
        """Return the arguments of `nrt train` for one run. Later settings override earlier ones."""
        run = run_path(folder, variant, seed)
        return [
            self.recipe, *self.settings, *self.variants[variant], f"seed={seed}", f"run={run}"
        ]  # fmt: skip

    def check_settings(self, folder: Path) -> None:
        """Raise InputError unless all settings and names of every variant resolve.

        A misspelt name, or an engine that is not installed, is then an error before the first run
        and not hours later.
        """
        for variant in self.variants:
            recipe, *settings = self.train_arguments(variant, 0, folder)
            config = load_config(recipe, settings)
            resolve_names(config)
            if config.tracking.id or config.hub.repo:
                raise InputError(
                    f"variant {variant} sets tracking.id or hub.repo, which belong to one run; "
                    "leave them out: tracking.group shows runs together, and nrt export --push "
                    "uploads one of them"
                )
            if config.engine == "verl":
                check_supported(config)
                check_installed(rollout_name(config))

    def check_existing_runs(self, folder: Path) -> None:
        """Raise InputError if a run in the folder has other settings than the study gives it.

        Such a run is another variant's, another seed's or another study's, or the recipe has been
        edited since.
        """
        for variant, seed in self.runs():
            run = run_path(folder, variant, seed)
            if not (run / "config.yaml").is_file():
                continue
            recipe, *settings = self.train_arguments(variant, seed, folder)
            of_study, of_run = map(
                _settings_of_runs, (load_config(recipe, settings), Run(run).config)
            )
            for key in _prepared(of_study):
                del of_run[key]
            for key, value in of_run.items():
                if value != of_study.get(key):
                    raise InputError(
                        f"{run} was trained with {key}={value!r:.100}, which is not the study's "
                        f"for {variant}, seed {seed} ({of_study.get(key)!r:.100}); if the recipe "
                        "was edited, restore it; else move the folder away, and the same command "
                        "trains the run again"
                    )


def _settings_of_runs(config: Config) -> dict[str, Any]:
    """Return the settings, by their full names, that runs of a variant and seed have in common."""
    return flat_settings(config.model_dump(exclude=FREE_ON_RESUME - {"steps"}))


def _prepared(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the settings that `Prepare` adds for recipes that bring their model or data."""
    model = () if settings["model"] else ("model",)
    return model if settings["data.train"] else (*model, "data.train", "data.valid")


_STUDY = TypeAdapter(Study)


def run_path(folder: Path, variant: str, seed: int) -> Path:
    """Return the run folder of a variant and seed."""
    return folder / "runs" / f"{variant}-seed{seed}"


def open_study(name: str, study: Study) -> Path:
    """Create the study's folder with its study.yaml, or extend an existing one, and return it.

    Variants and seeds can be added to an existing study. Raises InputError if anything else
    differs from it.
    """
    folder = run_folder(name).absolute()
    file = folder / "study.yaml"
    if file.is_file():
        study = _extend(folder, read_study(folder), study)
    study.check_settings(folder)
    study.check_existing_runs(folder)
    folder.mkdir(parents=True, exist_ok=True)
    values = asdict(study)
    values["settings"] = list(study.settings)
    values["variants"] = {name: list(settings) for name, settings in study.variants.items()}
    write_file(file, [yaml.safe_dump(values, sort_keys=False)])
    return folder


def _extend(folder: Path, existing: Study, study: Study) -> Study:
    """Return the existing study with the variants and seeds of `study` added."""
    for key in ("recipe", "settings", "baseline", "first_seed"):
        old, new = getattr(existing, key), getattr(study, key)
        if key == "settings" and set(old) != set(new):
            there = " ".join(text for text in old if text not in new) or "nothing"
            here = " ".join(text for text in new if text not in old) or "nothing"
            raise InputError(
                f"{folder} is a study with other settings: there {there:.200}, here {here:.200}; "
                "give another --study name"
            )
        if old != new:
            raise InputError(
                f"{folder} is a study with {key}={old!r:.200}, not {new!r:.200}; "
                "give another --study name"
            )
    for variant, settings in existing.variants.items():
        if study.variants.get(variant, settings) != settings:
            raise InputError(
                f"{folder} has {variant} with {list(settings)!r:.200}; "
                "give the variant or the study another name"
            )
    return replace(
        study,
        variants={**existing.variants, **study.variants},
        seeds=max(existing.seeds, study.seeds),
    )


def read_study(folder: Path) -> Study:
    """Return the study of a folder.

    Raises InputError if there is none, or if study.yaml is not what `open_study` writes.
    """
    file = folder / "study.yaml"
    if not file.is_file():
        raise InputError(f"{folder} is not a study: it has no study.yaml")
    try:
        return _STUDY.validate_python(parse_plain_yaml(read_yaml_file(file), str(file)))
    except ValidationError as error:
        details = error.errors()[0]
        key = ".".join(map(str, details["loc"]))
        raise InputError(
            f"{file} holds what this nrt does not write there ({key:.100}: "
            f"{details['msg']:.200}); restore it from a copy, or install the nrt that wrote it"
        ) from None


@dataclass(frozen=True)
class VariantSet:
    """Variants to compare, from a file."""

    baseline: str
    variants: dict[str, tuple[str, ...]]  # name → its own key=value settings
    sweep: dict[str, dict[str, tuple[str, ...]]]  # name → setting → values to try first


def read_variants(name: str) -> VariantSet:
    """Return a packaged set of variants, or that of a YAML file.

    The file holds `baseline: NAME` and `variants: {NAME: [key=value, …]}`. Without `baseline` the
    first variant is it. `sweep: {NAME: {KEY: [value, …]}}` is for `nrt compare --sweep`.
    """
    packaged = packaged_recipes("ablations")
    if name in packaged:
        text = packaged[name].read_text(encoding="utf-8")
    elif Path(name).is_file():
        text = read_yaml_file(Path(name))
    else:
        raise unknown_name("set of variants", name, packaged)
    values = parse_plain_yaml(text, name)
    variants = values.get("variants") if isinstance(values, dict) else None
    if (
        not isinstance(variants, dict)
        or not variants
        or not all(_are_settings(settings or []) for settings in variants.values())
    ):
        raise InputError(
            f"{name} must hold `baseline: NAME` and `variants: {{NAME: [key=value, …]}}`"
        )
    variants = {str(variant): tuple(settings or ()) for variant, settings in variants.items()}
    sweep = values.get("sweep") or {}
    if not isinstance(sweep, dict) or not all(_is_grid(grid) for grid in sweep.values()):
        raise InputError(f"{name}: sweep must hold {{NAME: {{KEY: [value, value, …]}}}}")
    unknown = set(sweep) - set(variants)
    if unknown:
        raise unknown_name("variant in sweep", sorted(unknown)[0], variants)
    grids = {}
    for variant, grid in sweep.items():
        grids[variant] = {key: tuple(map(_as_text, tried)) for key, tried in grid.items()}
    return VariantSet(str(values.get("baseline", next(iter(variants)))), variants, grids)


def _as_text(value: object) -> str:
    """Return a YAML value as `key=value` settings write it."""
    if isinstance(value, str):
        return value
    return yaml.safe_dump(value, default_flow_style=True, width=float("inf")).splitlines()[0]


def _is_grid(values: object) -> bool:
    return isinstance(values, dict) and all(
        isinstance(tried, list) and len(set(map(str, tried))) == len(tried) > 1
        for tried in values.values()
    )


def _are_settings(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)
