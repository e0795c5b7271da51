from __future__ import annotations

import pytest

from tests.data.cases import TEMPLATES, TOKENIZERS, Case, build_case


@pytest.fixture(
    params=[(tokenizer, template) for tokenizer in TOKENIZERS for template in TEMPLATES],
    ids="-".join,
)
def case(request: pytest.FixtureRequest) -> Case:
    """Every tokenizer under every template."""
    return build_case(*request.param)
