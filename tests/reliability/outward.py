"""What is made of finished runs, and killed on the way: `nrt export`, `nrt report`, `nrt eval`, `nrt judge` and `nrt compare`."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.eval.benchmarks import write_benchmarks
from tests.eval.reasoners import save_tiny_model
from tests.reliability.checks import at_work, differences, faults
from tests.reliability.endpoint import Endpoint

OLD = "an old page"


@dataclass
class Outward:
    """A command and what it writes, beside a copy of a finished run in a folder of its own."""

    command: str
    target: str
    entries: dict[str, int]  # phase → how often it is entered
    grouped: bool = False  # it has processes of its own, which a kill may spare or take along

    def prepare(self, folder: Path) -> None:
        """What all of its folders share."""

    def words(self, place: Path) -> list[str]:
        raise NotImplementedError

    def begin(self, place: Path) -> None:
        """Before the first start."""

    def clear(self, place: Path) -> None:
        """Before each start, which comes much later than the one before: what was left half written is nobody's any more."""
        for path in (half for form in ("tmp", "new", "old") for half in place.glob(f".*.{form}")):
            for file in (*path.rglob("*"), path):
                os.utime(file, (0, 0))

    def faults(self, whole: Path, place: Path) -> list[str]:
        """After a start that was killed: the target is as it was before, or whole."""
        target = place / self.target
        return differences(whole / self.target, target) if target.exists() else []

    def at_end(self, whole: Path, place: Path) -> list[str]:
        return differences(whole / self.target, place / self.target)

    def close(self) -> None:
        """What `prepare` opened."""


class Export(Outward):
    """Goes to a new folder."""

    def words(self, place: Path) -> list[str]:
        return ["export", str(place / "run"), str(place / self.target)]

    def clear(self, place: Path) -> None:
        super().clear(place)
        shutil.rmtree(place / self.target, ignore_errors=True)


class Report(Outward):
    """Stands in the place of an old one."""

    def words(self, place: Path) -> list[str]:
        return ["report", str(place / "run"), "-o", str(place / self.target)]

    def clear(self, place: Path) -> None:
        super().clear(place)
        if not (place / self.target).exists():
            (place / self.target).write_text(OLD)

    def faults(self, whole: Path, place: Path) -> list[str]:
        return [] if (place / self.target).read_text() == OLD else super().faults(whole, place)


class Evaluated(Outward):
    """Each file is as before or whole, and replies may be missing."""

    def prepare(self, folder: Path) -> None:
        write_benchmarks(folder / "benchmarks")
        save_tiny_model(folder / "thinker", thinks=True, context=800)

    def words(self, place: Path) -> list[str]:
        data = [
            "--data",
            str(place.parent / "benchmarks"),
            "--benchmarks",
            "gsm8k,truthfulqa",
            "--limit",
            "3",
        ]
        target = ["-o", str(place / self.target)]
        return [
            "eval",
            str(place.parent / "thinker"),
            *data,
            "--max-trace-tokens",
            "8",
            "--batch",
            "1",
            *target,
        ]

    def faults(self, whole: Path, place: Path) -> list[str]:
        return [
            one
            for one in super().faults(whole, place)
            if one.endswith("differs") and not one.startswith("replies")
        ]


class Judged(Outward):
    """Another judge was there before; a verdict that was kept is not asked for again."""

    def prepare(self, folder: Path) -> None:
        self.endpoint = Endpoint(folder / "asked.jsonl")
        self.kept: set[str] = set()

    def words(self, place: Path) -> list[str]:
        return [
            "judge",
            str(place / "run"),
            "--url",
            self.endpoint.url,
            "--model",
            "judge",
            "--samples",
            "4",
            "--jobs",
            "2",
        ]

    def begin(self, place: Path) -> None:
        folder = place / "run" / "judge"
        folder.mkdir()
        (folder / "step-000000.jsonl").write_text("{}\n")
        (folder / "judge.json").write_text(json.dumps({"judge": {"model": "another"}, "steps": []}))

    def clear(self, place: Path) -> None:
        for file in (*place.glob("cache/judge/.*.tmp"), *place.glob("run/judge/.*.tmp")):
            os.utime(file, (0, 0))  # the next start comes much later
        self.kept, self.before = self.verdicts(place), self.endpoint.asked()

    def verdicts(self, place: Path) -> set[str]:
        """Of the questions in this place's cache; the endpoint justifies each by its question."""
        return {
            json.loads(file.read_text())["justification"]
            for file in (place / "cache" / "judge").glob("[!.]*.json")
        }

    def again(self) -> list[str]:
        asked = self.endpoint.asked()[len(self.before) :]
        return [f"asked again: {question}" for question in asked if question in self.kept]

    def faults(self, whole: Path, place: Path) -> list[str]:
        target = place / self.target
        files = [file for file in target.iterdir() if not file.name.startswith(".")]
        if any("another" in file.read_text() for file in files):  # as it was before
            files = []
        wrong = [
            one
            for file in files
            if file.stat().st_size > 3
            for one in differences(whole / self.target / file.name, file)
        ]
        return wrong + self.again()

    def at_end(self, whole: Path, place: Path) -> list[str]:
        return super().at_end(whole, place) + self.again()

    def close(self) -> None:
        self.endpoint.close()


class Compared(Outward):
    """Two runs in processes of their own, then tables and pictures."""

    def words(self, place: Path) -> list[str]:
        recipe = str(place.parent / "compared.yaml")
        return [
            "compare",
            recipe,
            "--methods",
            "sft,nrt-gm",
            "--seeds",
            "1",
            "--study",
            str(place / self.target),
            "--measure",
            "logp",
        ]

    def faults(self, whole: Path, place: Path) -> list[str]:
        study, theirs = place / self.target, whole / self.target
        runs = sorted(path.name for path in (study / "runs").glob("*"))
        found = [
            one
            for name in runs
            if not at_work(study / "runs" / name)
            for one in faults(theirs / "runs" / name, study / "runs" / name)
        ]
        tables = [
            path for path in study.glob("*") if path.is_file() and not path.name.startswith(".")
        ]
        return found + [one for path in tables for one in differences(theirs / path.name, path)]

    def at_end(self, whole: Path, place: Path) -> list[str]:
        """The lock of a dead process may stay in a run that is done; each process has a random state of torch's own, which nothing uses."""
        passed = ("/lock is left over", "/rng.safetensors differs", "/manifest.json differs")
        return [one for one in super().at_end(whole, place) if not one.endswith(passed)]


OUTWARD: dict[str, Outward] = {
    one.command: one
    for one in (
        Export("export", "out", {"export": 1}),
        Report("report", "page.html", {"report": 1}),
        Evaluated("eval", "evaluated", {"evaluation": 3}),  # asking, rows, scores
        Judged("judge", "run/judge", {"judge": 12}),  # asking, verdicts, results
        Compared("compare", "study", {"runs": 2, "tables": 2}, grouped=True),
    )
}
