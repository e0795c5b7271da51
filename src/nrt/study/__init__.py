"""Many runs that differ in one thing each, under one budget: `nrt compare`."""

from nrt.study.launch import Outcome, run_all
from nrt.study.plan import Study, open_study

__all__ = ["Outcome", "Study", "open_study", "run_all"]
