"""Property tests: the same examples each time, and no deadline, since speed is not what they test."""

from hypothesis import HealthCheck, settings

settings.register_profile("nrt", deadline=None, derandomize=True, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("nrt")
