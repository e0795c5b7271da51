import pytest

from tests.gang import Gang
from tests.training.conftest import make_config, model_dir, pairs_file  # noqa: F401


@pytest.fixture(scope="session")
def gang(tmp_path_factory):
    """Two processes."""
    gang = Gang(tmp_path_factory.mktemp("gang"))
    yield gang
    gang.close()
