"""Studies: many runs that differ in one setting each, under one budget (`nrt compare`)."""

from nrt.study.runs import RunOutcome, run_study
from nrt.study.study import Study, open_study

__all__ = ["RunOutcome", "Study", "open_study", "run_study"]
