"""What is made of a finished run, and killed on the way: `nrt export`, `nrt report` and `nrt eval`."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.eval.benchmarks import write_benchmarks
from tests.eval.reasoners import save_tiny_model
from tests.reliability.checks import differences

OLD = "an old page"


@dataclass(frozen=True)
class Outward:
    """A command and what it writes, beside a copy of a finished run in a folder of its own."""

    command: str
    phase: str
    target: str
    entries: int = 1  # how often the phase is entered

    def prepare(self, folder: Path) -> None:
        """What all of its folders share."""
        if self.command == "eval":
            write_benchmarks(folder / "benchmarks")
            save_tiny_model(folder / "thinker", thinks=True, context=800)

    def words(self, place: Path) -> list[str]:
        run, target = str(place / "run"), str(place / self.target)
        if self.command == "eval":
            data = ["--data", str(place.parent / "benchmarks"), "--benchmarks", "gsm8k,truthfulqa", "--limit", "3"]
            return ["eval", str(place.parent / "thinker"), *data, "--max-trace-tokens", "8", "--batch", "1", "-o", target]
        return [self.command, run, *([target] if self.command == "export" else ["-o", target])]

    def clear(self, place: Path) -> None:
        """Before each start: an export goes to a new folder; a report stands in the place of an old one."""
        target = place / self.target
        if self.command == "export" and target.exists():
            shutil.rmtree(target)
        if self.command == "report" and not target.exists():
            target.write_text(OLD)

    def faults(self, whole: Path, place: Path) -> list[str]:
        """After a kill: the target is as before, or whole; of an evaluation that holds for each file, and replies may be missing."""
        target = place / self.target
        found = differences(whole / self.target, target) if target.exists() else []
        if self.command == "eval":
            return [one for one in found if one.endswith("differs") and not one.startswith("replies")]
        return [] if self.command == "report" and target.read_text() == OLD else found


OUTWARD = {
    one.command: one
    for one in (
        Outward("export", "export", "out"),
        Outward("report", "report", "page.html"),
        Outward("eval", "evaluation", "evaluated", entries=3),  # asking, rows, scores
    )
}
