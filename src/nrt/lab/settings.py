"""Model and data of the recipes that bring them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

from nrt.lab.arithmetic import FAMILIES, draw_problems, messages, worked_examples
from nrt.lab.base import BaseSettings, Progress, Stage, build_base
from nrt.lab.dataset import write_documents, write_jsonl, write_pairs
from nrt.lab.pretrained import smollm2_folder
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


@dataclass(frozen=True)
class ArithmeticData:
    """Questions of `lab.arithmetic` for one recipe."""

    families: tuple[str, ...]
    examples: bool = True  # two worked examples before each question; else a system message

    @property
    def name(self) -> str:
        """Name of the folder that the data are written to, without the seed."""
        name = f"arithmetic-{'-'.join(self.families)}"
        return name if self.examples else f"{name}-zero-shot"


ARITHMETIC: dict[str, ArithmeticData] = {
    "smollm2": ArithmeticData(("count3", "add2")),
    "smollm2-zero-shot": ArithmeticData(("count3", "add2"), examples=False),
    "smollm2-addsub": ArithmeticData(("addsub2",)),
    "smollm2-hard": ArithmeticData(("count4", "add3")),
    "smollm2-five": ArithmeticData(("count5", "add4")),
}
"""Recipe → its questions."""

PRETRAINED = (*ARITHMETIC, "smollm2-pairs")
"""Recipes whose model is SmolLM2-135M-Instruct; the data of the last are the user's."""

ARITHMETIC_PAIRS = 400  # per family; some have fewer
ARITHMETIC_TESTS = 32


def prepare(recipe: str, seed: int, overrides: Sequence[str] = ()) -> list[str]:
    """Return the `key=value` settings that name model and data of a recipe, and make both.

    What is cached is not made again. What `overrides` name is neither made nor returned: with
    `model=FOLDER` the recipe's data are for that model. Raises InputError if a pretrained model
    cannot be fetched.

    Args:
        recipe: one of `nrt.lab.RECIPES`.
        seed: of the data and, in the miniature, of the base model.
        overrides: `key=value` settings of the user.
    """
    keys = {text.split("=", 1)[0] for text in overrides}
    settings = []
    if "model" not in keys:
        model = smollm2_folder(plain=True) if recipe in PRETRAINED else _build_base(recipe, seed)
        settings.append(f"model={model}")
    if "data.train" not in keys:
        settings += _data_settings(recipe, seed)
    return settings


def prepare_miniature(recipe: str, seed: int, progress: Progress | None = None) -> list[str]:
    """Build the base model unless it is cached, write the data, and return `key=value` settings.

    Args:
        recipe: a key of BASES.
        seed: seed of base model and data.
        progress: called after each training step of the base model.
    """
    return [f"model={_build_base(recipe, seed, progress)}", *_data_settings(recipe, seed)]


def _build_base(recipe: str, seed: int, progress: Progress | None = None) -> Path:
    return build_base(replace(BASES[recipe], seed=seed), progress=progress)


def _data_settings(recipe: str, seed: int) -> list[str]:
    if recipe in ARITHMETIC:
        return arithmetic_settings(ARITHMETIC[recipe], seed)
    if recipe in PRETRAINED:
        return []
    settings = replace(BASES[recipe], seed=seed)
    return data_settings(settings, as_text=recipe == "miniature-text")


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
    write(test, "test", TEST_PAIRS, seed=settings.seed, weights=weights)
    return [f"data.train={train}", f"data.valid={test}"]


def arithmetic_settings(data: ArithmeticData, seed: int) -> list[str]:
    """Write questions of `lab.arithmetic` and return the settings that name them.

    The test questions are the same for every seed. The first of them are a fair sample: the
    families take turns.
    """
    kinds = [FAMILIES[name] for name in data.families]
    examples = worked_examples(kinds) if data.examples else []
    folder = cache_folder() / "lab" / f"{data.name}-{seed}"
    for split, n in (("train", ARITHMETIC_PAIRS), ("test", ARITHMETIC_TESTS)):
        test = split == "test"
        drawn = [draw_problems(kind, test=test, n=n, seed=0 if test else seed) for kind in kinds]
        rows = [
            {"messages": messages(problem, examples), "source": problem.family}
            for problems in zip_longest(*drawn)
            for problem in problems
            if problem
        ]
        write_jsonl(folder / f"{split}.jsonl", rows)
    return [f"data.train={folder / 'train.jsonl'}", f"data.valid={folder / 'test.jsonl'}"]
