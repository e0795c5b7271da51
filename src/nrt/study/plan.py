"""What is compared with what, written down before anything runs.

runs/<study>/  study.yaml   runs/<variant>-seed<k>/ (run folders)   logs/<variant>-seed<k>.log   compare.json   compare.md   *.png
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from nrt.config import build_config, load_config, packaged, parse_overrides, plain_values, read_text
from nrt.durable import write_file
from nrt.engine.verl.bridge import refuse, rollout_name
from nrt.engine.verl.requirements import check_installed
from nrt.errors import InputError, unknown
from nrt.run import Run, run_folder
from nrt.training.resolve import FREE_ON_RESUME, resolve_names

MOST_SEEDS = 1000


@dataclass(frozen=True)
class Study:
    """Variants × seeds of one recipe. Each variant is compared with `baseline`, seed by seed and question by question."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    recipe: str
    settings: tuple[str, ...]  # key=value, for all runs
    variants: Mapping[str, tuple[str, ...]]  # name → its own key=value
    seeds: Annotated[int, Field(strict=True)]  # 0 … seeds − 1
    baseline: str

    def __post_init__(self) -> None:
        if not 1 <= self.seeds <= MOST_SEEDS:
            raise InputError(f"--seeds {self.seeds!s:.20}: give at least 1 and at most {MOST_SEEDS:,}")
        for name in self.variants:
            if not 0 < len(name) <= 100 or not name.isprintable() or set(name) & set("/\\"):
                raise InputError(f"variant {name!r:.200}: give it a name that a folder can have, of at most 100 characters")
        if self.baseline not in self.variants:
            raise unknown("baseline", self.baseline, self.variants)

    def runs(self) -> list[tuple[str, int]]:
        """(variant, seed), seed by seed: an interrupted study is a smaller study, not half of the variants."""
        return [(variant, seed) for seed in range(self.seeds) for variant in self.variants]

    def arguments(self, variant: str, seed: int, folder: Path) -> list[str]:
        """What `nrt train` gets: later settings win."""
        return [self.recipe, *self.settings, *self.variants[variant], f"seed={seed}", f"run={run_path(folder, variant, seed)}"]

    def check(self, folder: Path) -> None:
        """Resolves every variant's settings and names, so that a misspelt one, or an engine that is not installed, is an error now and not
        hours later."""
        for variant in self.variants:
            recipe, *settings = self.arguments(variant, 0, folder)
            config = load_config(recipe, settings)
            resolve_names(config)
            if config.engine == "verl":
                refuse(config)
                check_installed(rollout_name(config))

    def check_runs(self, folder: Path) -> None:
        """Raises InputError where a run that is there has other settings than the study gives it: another variant's, seed's or study's."""
        for variant, seed in self.runs():
            if not (path := run_path(folder, variant, seed) / "config.yaml").is_file():
                continue
            config = Run(path.parent).config
            given = parse_overrides([*self.settings, *self.variants[variant], f"seed={seed}"])
            asked = build_config(config.model_dump(mode="json"), given).model_dump(exclude=FREE_ON_RESUME - {"steps"})
            if other := [key for key, value in config.model_dump(include=set(asked)).items() if value != asked[key]]:
                had = f"{other[0]}={getattr(config, other[0])!r:.100}"
                raise InputError(
                    f"{path.parent} was trained with {had}, which is not the study's for {variant}, seed {seed}; "
                    "move it away, and the same command trains it anew"
                )


_STUDY = TypeAdapter(Study)


def run_path(folder: Path, variant: str, seed: int) -> Path:
    """The run folder of a variant and seed."""
    return folder / "runs" / f"{variant}-seed{seed}"


def open_study(name: str, study: Study) -> Path:
    """The study's folder, with study.yaml in it. Variants and seeds may be added to a study; anything else that changed is an error."""
    folder = run_folder(name).absolute()
    file = folder / "study.yaml"
    if file.is_file():
        before = read_study(folder)
        for key in ("recipe", "settings", "baseline"):
            old, new = getattr(before, key), getattr(study, key)
            if old != new:
                raise InputError(f"{folder} compares with {key}={old!r:.200}, not {new!r:.200}; give another --study name")
        for variant, settings in before.variants.items():
            if study.variants.get(variant, settings) != settings:
                raise InputError(f"{folder} has {variant} with {list(settings)!r:.200}; give the variant another name")
        study = Study(study.recipe, study.settings, {**before.variants, **study.variants}, max(before.seeds, study.seeds), study.baseline)
    study.check(folder)
    study.check_runs(folder)
    folder.mkdir(parents=True, exist_ok=True)
    values = {**asdict(study), "settings": list(study.settings), "variants": {k: list(v) for k, v in study.variants.items()}}
    write_file(file, [yaml.safe_dump(values, sort_keys=False)])
    return folder


def read_study(folder: Path) -> Study:
    """The study of a folder. Raises InputError where there is none, or where study.yaml is not what `open_study` writes."""
    file = folder / "study.yaml"
    if not file.is_file():
        raise InputError(f"{folder} is not a study: it has no study.yaml")
    try:
        return _STUDY.validate_python(plain_values(read_text(file), str(file)))
    except ValidationError as error:
        fault = error.errors()[0]
        raise InputError(
            f"{file} holds what this nrt does not write there ({'.'.join(map(str, fault['loc'])):.100}: {fault['msg']:.200}); "
            "bring it back from a copy, or install the nrt that wrote it"
        ) from None


def read_variants(name: str) -> tuple[str, dict[str, tuple[str, ...]]]:
    """(baseline, variants) of a packaged set or a YAML file: `baseline: name`, `variants: {name: [key=value, …]}`."""
    known = packaged("ablations")
    file = known.get(name) or Path(name)
    if not file.is_file():
        raise unknown("set of variants", name, known)
    values = plain_values(file.read_text(encoding="utf-8") if name in known else read_text(Path(name)), name)
    variants = values.get("variants") if isinstance(values, dict) else None
    if not isinstance(variants, dict) or not variants or not all(_are_settings(settings or []) for settings in variants.values()):
        raise InputError(f"{name} must hold `baseline: NAME` and `variants: {{NAME: [key=value, …]}}`")
    variants = {str(name): tuple(settings or ()) for name, settings in variants.items()}
    return str(values.get("baseline", next(iter(variants)))), variants


def _are_settings(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)
