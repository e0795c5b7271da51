"""Base model and data of each recipe of the miniature."""

from __future__ import annotations

from dataclasses import replace

from nrt.lab.base import BaseSettings, Progress, Stage, build_base
from nrt.lab.dataset import write_documents, write_pairs
from nrt.lab.world import ADD_WEIGHTS
from nrt.system.environment import cache_folder

TRAIN_PAIRS = 4000
TEST_PAIRS = 300  # per family; recall has fewer

BASES: dict[str, BaseSettings] = {
    # reasoning is latent
    "miniature": BaseSettings(),
    # reasoning is rarer still
    "miniature-hard": BaseSettings(stages=(Stage("open", 2200, 2e-3), Stage("rare", 350, 7e-4))),
    # reasoning is common, but the model reads it badly
    "miniature-weak": BaseSettings(
        stages=(Stage("open", 300, 2e-3),), weights=tuple(ADD_WEIGHTS.items())
    ),
    # the base model of miniature, with documents instead of pairs
    "miniature-text": BaseSettings(),
}
"""Recipe → settings of its base model; the seed is that of the run."""


def prepare_miniature(recipe: str, seed: int, progress: Progress | None = None) -> list[str]:
    """Build the base model unless it is cached, write the data, and return `key=value` settings.

    Args:
        recipe: a key of BASES.
        seed: seed of base model and data.
        progress: called after each training step of the base model.
    """
    settings = replace(BASES[recipe], seed=seed)
    base = build_base(settings, progress=progress)
    return [f"model={base}", *data_settings(settings, as_text=recipe == "miniature-text")]


def data_settings(settings: BaseSettings, *, as_text: bool = False) -> list[str]:
    """Write the data of a base model's world and return the `key=value` settings that name them.

    The files are in the cache folder, beside the base models. With `as_text` the problems are
    written as documents.
    """
    weights = dict(settings.weights)
    kind = "text" if as_text else "pairs"
    write = write_documents if as_text else write_pairs
    folder = cache_folder() / "lab" / f"{kind}-{'-'.join(weights)}-{settings.seed}"
    train, test = folder / "train.jsonl", folder / "test.jsonl"
    write(train, "train", TRAIN_PAIRS, seed=settings.seed, weights=weights)
    rows = write(test, "test", TEST_PAIRS, seed=settings.seed, weights=weights)
    return [f"data.train={train}", f"data.valid={test}", f"heldout.rows={rows}"]
