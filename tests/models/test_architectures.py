"""Every architecture of the table is scored and sampled as the table says, and the numbers of all ways agree to 1e-5 nats."""

from pathlib import Path

import pytest

from nrt.scoring.packed import FAMILIES
from tests.models.architectures import outcome

TABLE = dict(line.split("\t") for line in Path(__file__).with_name("architectures.tsv").read_text(encoding="utf-8").splitlines())
BUILT = [kind for kind, how in TABLE.items() if how != "not built"]
QUICK = {*FAMILIES, "bert", "bloom", "deepseek_v3", "falcon", "gpt2", "jamba", "lfm2", "mamba2", "opt", "phi", "afmoe", "bailing_hybrid"}
"""Model types of the default suite; the others are slow together."""
ROUNDING = {"hrm_text": 1e-3, "minicpm3": 1e-4}
"""Nats, of models that round more than the others."""

KINDS = [pytest.param(kind, marks=() if kind in QUICK else pytest.mark.slow) for kind in BUILT]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_trained_as_the_table_says(kind):
    found = outcome(kind)
    assert found.how == TABLE[kind], found.why
    assert found.gap <= ROUNDING.get(kind, 1e-5)


def test_families_that_are_expected_to_share_do():
    assert {TABLE[kind] for kind in FAMILIES} == {"shared"}


def test_the_table_has_enough_of_them():
    assert sum(how.startswith(("shared", "padded")) for how in TABLE.values()) >= 75
