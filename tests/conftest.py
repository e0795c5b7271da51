"""No test asks a hub. Property tests: the same examples each time, and no deadline, since speed is not what they test."""

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

os.environ["HF_HUB_OFFLINE"] = (
    "1"  # before transformers is imported; otherwise a name that is no folder costs seconds of retries
)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a background job of a shell
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile(
    "nrt",
    deadline=None,
    derandomize=True,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("nrt")


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory):
    """Caches go to a folder of this session's own, unless NRT_CACHE names one."""
    os.environ.setdefault("NRT_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def gang(tmp_path_factory):
    """Two processes that talk over gloo."""
    from tests.gang import Gang

    gang = Gang(tmp_path_factory.mktemp("gang"))
    yield gang
    gang.close()
