"""The miniature's settings for the recipes of its name: which base model, which pairs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from nrt.environment import cache_folder
from nrt.lab.base import BaseSettings, Progress, Stage, build_base
from nrt.lab.world import ADD_WEIGHTS, write_documents, write_pairs

TRAIN_PAIRS = 4000
TEST_PAIRS = 300  # a family; recall has fewer

BASES: dict[str, BaseSettings] = {
    "miniature": BaseSettings(),
    "miniature-hard": BaseSettings(stages=(Stage("open", 2200, 2e-3), Stage("rare", 350, 7e-4))),
    "miniature-weak": BaseSettings(stages=(Stage("open", 300, 2e-3),), weights=tuple(ADD_WEIGHTS.items())),
    "miniature-text": BaseSettings(),
}
"""Recipe → its base model, but for the seed: reasoning is latent; rarer still; common, but badly read; latent again, for raw text."""


def prepare(recipe: str, seed: int, progress: Progress | None = None) -> list[str]:
    """`key=value` settings of one seed of a miniature recipe: its base model is built, or found, and the pairs are written."""
    settings = replace(BASES[recipe], seed=seed)
    return [f"model={build_base(settings, progress=progress)}", *pairs(settings, as_text=recipe == "miniature-text")]


def pairs(settings: BaseSettings, *, as_text: bool = False) -> list[str]:
    """Settings that name the training and test files of a base's world, which are written beside the cached base models.

    `as_text`: the same problems as documents.
    """
    weights, write = dict(settings.weights), write_documents if as_text else write_pairs
    folder = cache_folder() / "lab" / f"{'text' if as_text else 'pairs'}-{'-'.join(weights)}-{settings.seed}"
    files = Path(folder / "train.jsonl"), Path(folder / "test.jsonl")
    write(files[0], "train", TRAIN_PAIRS, seed=settings.seed, weights=weights)
    rows = write(files[1], "test", TEST_PAIRS, seed=settings.seed, weights=weights)  # whole: a run to resume may read it too
    return [f"data.train={files[0]}", f"data.valid={files[1]}", f"heldout.rows={rows}"]
