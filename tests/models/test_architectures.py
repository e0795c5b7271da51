"""Every architecture is scored and sampled as the table says, and all log-probabilities agree."""

from pathlib import Path

import pytest
import transformers
from packaging.version import Version

from nrt.scoring.choice import PACKED_MODEL_TYPES
from tests.models.architectures import try_model_type

LINES = Path(__file__).with_name("architectures.tsv").read_text(encoding="utf-8").splitlines()
TABLE = dict(line.split("\t") for line in LINES)
"""Model type → how nrt trains it (`Outcome.treatment`)."""

OF_THE_TABLE = Version(transformers.__version__) >= Version("5.23")
"""Earlier releases lack some types, and treat others differently; their numbers must agree too."""

BUILT = [kind for kind, treatment in TABLE.items() if treatment != "not built"]
QUICK = {
    *PACKED_MODEL_TYPES, "bert", "bloom", "deepseek_v3", "falcon", "gpt2", "jamba", "lfm2",
    "mamba2", "opt", "phi", "afmoe", "bailing_hybrid",
}  # fmt: skip
"""Model types of the default suite; all others together are slow."""

TOLERANCE = 1e-5
"""Largest difference of log-probabilities, in nats."""

TOLERANCES = {"hrm_text": 1e-3, "minicpm3": 1e-4}
"""Tolerance of models that round more than the others."""

KINDS = [pytest.param(kind, marks=() if kind in QUICK else pytest.mark.slow) for kind in BUILT]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_trained_as_the_table_says(kind):
    outcome = try_model_type(kind)
    if OF_THE_TABLE:
        assert outcome.treatment == TABLE[kind], outcome.reason
    elif outcome.treatment == "not built":
        pytest.skip(outcome.reason)
    assert outcome.gap <= TOLERANCES.get(kind, TOLERANCE)


def test_known_families_share_prompts():
    assert {TABLE[kind] for kind in PACKED_MODEL_TYPES} == {"shared"}


def test_the_table_has_enough_model_types():
    trained = [text for text in TABLE.values() if text.startswith(("shared", "padded"))]
    assert len(trained) >= 75
