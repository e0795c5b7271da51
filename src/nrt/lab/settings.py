"""The miniature's settings for the recipes of its name: which base model, which pairs."""

from __future__ import annotations

from pathlib import Path

from nrt.lab.base import BaseSettings, Progress, Stage, build_base, cache_folder
from nrt.lab.world import write_pairs

TRAIN_PAIRS = 4000
TEST_PAIRS = 300  # a family; recall has fewer

STAGES: dict[str, tuple[Stage, ...]] = {"miniature": BaseSettings().stages}
"""Recipe → how its base model is trained."""


def prepare(recipe: str, seed: int, progress: Progress | None = None) -> list[str]:
    """`key=value` settings of one seed of a miniature recipe: its base model is built, or found, and the pairs are written."""
    base = build_base(BaseSettings(seed=seed, stages=STAGES[recipe]), progress=progress)
    return [f"model={base}", *pairs(seed)]


def pairs(seed: int) -> list[str]:
    """Settings that name the training and test files, which are written beside the cached base models."""
    folder = cache_folder() / "lab" / f"pairs-{seed}"
    files = Path(folder / "train.jsonl"), Path(folder / "test.jsonl")
    write_pairs(files[0], "train", TRAIN_PAIRS, seed=seed)
    rows = write_pairs(files[1], "test", TEST_PAIRS, seed=seed)  # always whole: a run to resume may read it too
    return [f"data.train={files[0]}", f"data.valid={files[1]}", f"heldout.rows={rows}"]
