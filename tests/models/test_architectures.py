"""Every architecture of the table is scored and sampled as the table says, and the numbers of all ways agree to 1e-5 nats."""

from pathlib import Path

import pytest

from tests.models.architectures import outcome

TABLE = dict(line.split("\t") for line in Path(__file__).with_name("architectures.tsv").read_text(encoding="utf-8").splitlines())
TRIED = [kind for kind, how in TABLE.items() if how != "not built"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", TRIED)
def test_it_is_trained_as_the_table_says(kind):
    found = outcome(kind)
    assert found.how == TABLE[kind], found.why
    assert found.gap <= 1e-5


def test_the_table_has_enough_of_them():
    assert sum(how.startswith(("shared", "padded")) for how in TABLE.values()) >= 75
