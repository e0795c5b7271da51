"""Benchmark tasks: lm-eval configurations with their rows, answer extraction and scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Doc = Mapping[str, Any]
"""One row of a benchmark, as lm-eval passes it to a task's functions."""
