"""What is compared with what, written down before anything runs.

runs/<study>/  study.yaml   runs/<variant>-seed<k>/ (run folders)   logs/<variant>-seed<k>.log   compare.json   compare.md   *.png
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from nrt.config import load_config, packaged
from nrt.durable import write_file
from nrt.engine.verl.bridge import refuse, rollout_name
from nrt.engine.verl.requirements import check_installed
from nrt.errors import InputError, unknown
from nrt.run import run_folder
from nrt.training.resolve import resolve_names


@dataclass(frozen=True)
class Study:
    """Variants × seeds of one recipe. Each variant is compared with `baseline`, seed by seed and question by question."""

    recipe: str
    settings: tuple[str, ...]  # key=value, for all runs
    variants: Mapping[str, tuple[str, ...]]  # name → its own key=value
    seeds: int  # 0 … seeds − 1
    baseline: str

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise InputError(f"--seeds {self.seeds}: give at least 1")
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
                raise InputError(f"{folder} compares with {key}={old!r}, not {new!r}; give another --study name")
        for variant, settings in before.variants.items():
            if study.variants.get(variant, settings) != settings:
                raise InputError(f"{folder} has {variant} with {list(settings)}; give the variant another name")
        study = Study(study.recipe, study.settings, {**before.variants, **study.variants}, max(before.seeds, study.seeds), study.baseline)
    study.check(folder)
    folder.mkdir(parents=True, exist_ok=True)
    values = {**asdict(study), "settings": list(study.settings), "variants": {k: list(v) for k, v in study.variants.items()}}
    write_file(file, [yaml.safe_dump(values, sort_keys=False)])
    return folder


def read_study(folder: Path) -> Study:
    """The study of a folder. Raises InputError where there is none."""
    file = folder / "study.yaml"
    if not file.is_file():
        raise InputError(f"{folder} is not a study: it has no study.yaml")
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    variants = {name: tuple(settings) for name, settings in values["variants"].items()}
    return Study(values["recipe"], tuple(values["settings"]), variants, values["seeds"], values["baseline"])


def read_variants(name: str) -> tuple[str, dict[str, tuple[str, ...]]]:
    """(baseline, variants) of a packaged set or a YAML file: `baseline: name`, `variants: {name: [key=value, …]}`."""
    known = packaged("ablations")
    file = known.get(name) or Path(name)
    if not file.is_file():
        raise unknown("set of variants", name, known)
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    if not isinstance(values, dict) or not isinstance(values.get("variants"), dict):
        raise InputError(f"{file} must hold `baseline: NAME` and `variants: {{NAME: [key=value, …]}}`")
    variants = {str(name): tuple(settings or ()) for name, settings in values["variants"].items()}
    return str(values.get("baseline", next(iter(variants)))), variants
