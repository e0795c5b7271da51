"""`python -m tests.reliability.kills FOLDER [--each N] [--log FILE] …`: kills real runs with SIGKILL, N times in each phase,
resumes them, and holds what they leave to what an uninterrupted run left, byte for byte. Exits 1 where anything differs.

This process imports nrt once and forks a child for each attempt, which calls the command (`nrt.cli.main`). A chain is one run folder:
`nrt train RECIPE`, killed, `nrt train resume=RUN`, killed, …, and to its end. After each kill the folder is looked over (`checks.py`).
The log has one line a kill; `--again LOG --seed S --chain C` repeats one chain of it (kills by the clock as closely as the clock allows).
"""

from __future__ import annotations

import argparse
import gc
import importlib
import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any

import plotly.offline
import typer
import yaml

import nrt.analysis.report.data
import nrt.analysis.report.page
import nrt.cli
import nrt.live
import nrt.reporting
import nrt.serving.export
import nrt.training.setup
from nrt.config import Config
from tests.reliability import armed
from tests.reliability.armed import HOW, PHASES, Instant, Usual
from tests.reliability.checks import differences, faults, left_behind, step_of
from tests.reliability.outward import OUTWARD, Outward
from tests.reliability.runs import CHAIN, MOST_ENTRIES, REPORTED, TRAINING, VARIANTS, Kill
from tests.training.conftest import tiny_config, write_model, write_sums


@dataclass(frozen=True)
class Ended:
    status: int
    killed: bool
    spans: list[dict[str, Any]]


class Killer:
    """Chains of kills in a folder, until each phase has had its number."""

    def __init__(self, folder: Path, given: argparse.Namespace) -> None:
        self.folder, self.seed, self.most = folder, given.seed, given.most
        self.outward = [one for one in OUTWARD.values() if given.eval or one.command != "eval"]
        self.variants = {name: VARIANTS[name] for name in given.variants.split(",")}
        self.first = next(iter(self.variants))  # the run that is exported, reported
        self.todo = Counter(dict.fromkeys(PHASES, given.each))
        self.kills: list[Kill] = []
        self.wrong: list[str] = []
        self.log = given.log.open("w", encoding="utf-8") if given.log else None
        self.say("\t".join(field.name for field in fields(Kill)))

    def say(self, line: str) -> None:
        print(line, flush=True)
        if self.log:
            print(line, file=self.log, flush=True)

    def prepare(self) -> None:
        """The recipes, an uninterrupted run of each, and what their phases take."""
        model, pairs = write_model(self.folder / "tiny"), write_sums(self.folder / "pairs.jsonl")
        self.usual: dict[str, dict[str, Usual]] = {}
        self.warm_up(tiny_config(model, pairs, self.folder))
        for name, settings in self.variants.items():
            place = self.folder / name
            place.mkdir()
            values = {"steps": 6, "log_traces": 2, **settings}
            config = tiny_config(model, pairs, place / "run", **values).model_dump(mode="json")
            (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
            self.usual[name] = self.uninterrupted(self.training_command(name, place / "run"), place / "run")
        for one in self.outward:
            one.prepare(self.folder)
            place = self.folder / one.command
            shutil.copytree(self.folder / self.first / "run", place / "run")
            self.usual[one.command] = self.uninterrupted(one.words(place), place / "run")

    def warm_up(self, config: Config) -> None:
        """What is imported, read and compiled here need not be in each child."""
        nrt.training.setup.prepare(config)
        plotly.offline.get_plotlyjs()
        if OUTWARD["eval"] in self.outward:
            importlib.import_module("nrt.evaluating")
        nrt.cli.app = typer.main.get_command(nrt.cli.app)  # pyright: ignore[reportAttributeAccessIssue]
        gc.collect()
        gc.freeze()

    def uninterrupted(self, command: list[str], run: Path) -> dict[str, Usual]:
        ended = self.attempt(command, run, None, {})
        assert ended.status == 0, (run.parent / "log").read_text()
        spans = defaultdict(list)
        for span in ended.spans:
            spans[span["phase"]].append(span)
        return {phase: Usual(*(fmean(span[key] for span in some) for key in ("seconds", "calls"))) for phase, some in spans.items()}

    def attempt(self, command: list[str], run: Path, instant: Instant | None, usual: dict[str, Usual]) -> Ended:
        """`nrt COMMAND` in a child; killed from here where its instant is one by the clock, else by itself."""
        back, out = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(back)
            armed.run(command, instant, usual, run, out, run.parent / "log")
        os.close(out)
        spans = []
        with os.fdopen(back) as pipe:
            for line in pipe:
                message = json.loads(line)
                if "kill" in message:
                    time.sleep(message["kill"])
                    os.kill(pid, signal.SIGKILL)
                else:
                    spans.append(message)
        _, status = os.waitpid(pid, 0)
        return Ended(os.waitstatus_to_exitcode(status), os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, spans)

    def run(self) -> None:
        for chain in range(10_000):
            if not +self.todo or len(self.kills) >= self.most:
                break
            rng = random.Random(f"{self.seed} {chain}")
            outward = [one for one in self.outward if self.todo[one.phase] > 0]
            if chain % 3 == 2 and outward:
                one = outward[chain // 3 % len(outward)]
                self.outward_chain(chain, one, (self.instant(rng, one.command, one.phase, one.entries) for _ in range(CHAIN)))
            else:
                variant = list(self.variants)[chain % len(self.variants)]
                self.training_chain(chain, variant, self.instants(rng, variant))

    def repeat(self, log: Path, chain: int) -> None:
        """A chain of a log, with its instants."""
        names, *lines = (line.split("\t") for line in log.read_text(encoding="utf-8").splitlines())
        rows = [dict(zip(names, line, strict=True)) for line in lines]
        rows = [row for row in rows if (row["seed"], row["chain"]) == (str(self.seed), str(chain))]
        instants = iter([Instant.parse(row["phase"], row["entry"], row["instant"]) for row in rows])
        command = rows[0]["command"].split()[0]
        if command == "train":
            self.training_chain(chain, rows[0]["variant"], instants)
        else:
            self.outward_chain(chain, OUTWARD[command], instants)

    def place(self, chain: int) -> Path:
        """A fresh folder; that of a chain without a fault is not kept."""
        for path in self.folder.glob("chain-*"):
            if not any(wrong.startswith(f"{path.name}, ") for wrong in self.wrong):
                shutil.rmtree(path)
        place = self.folder / f"chain-{chain}"
        place.mkdir()
        return place

    def training_chain(self, chain: int, variant: str, instants: Iterator[Instant]) -> None:
        """One run, killed at each instant and then let be."""
        place = self.place(chain)
        run, waiting = place / "run", None
        for instant in itertools.chain(instants, [None]):
            command = self.training_command(variant, run)
            starts = self.starts(run)
            ended = self.attempt(command, run, instant, self.usual[variant])
            if waiting:
                self.note(*waiting, went_on=str(self.starts(run)[-1]["step"]) if len(self.starts(run)) > len(starts) else "–")
            waiting = None
            if not ended.killed:
                break
            assert instant is not None
            self.check(chain, instant, faults(self.folder / variant / "run", run))
            self.todo[instant.phase] -= 1
            waiting = chain, variant, command, instant, step_of(run), left_behind(run)
        if ended.status:
            self.check(chain, None, [f"status {ended.status}: {(place / 'log').read_text()[-2000:]}"])
            return
        self.check(chain, None, differences(self.folder / variant / "run", run))

    def instants(self, rng: random.Random, variant: str) -> Iterator[Instant]:
        """Phases by how much they still lack; the last save of the model, which ends a run, at the end."""
        phases = [phase for phase in TRAINING if phase in self.usual[variant] or phase == "start"]
        for place in range(CHAIN):
            lacking = [phase for phase in phases if self.todo[phase] > 0]
            if place == CHAIN - 1 and self.todo["export"] > 0:
                yield self.instant(rng, variant, "export", 1)
            elif lacking:
                phase = rng.choices(lacking, [self.todo[phase] for phase in lacking])[0]
                yield self.instant(rng, variant, phase, MOST_ENTRIES.get(phase, 3))

    def instant(self, rng: random.Random, what: str, phase: str, entries: int) -> Instant:
        """Where the phase has no calls to the disk, by the clock, or as it begins or ends."""
        usual = self.usual[what].get(phase)
        hows = {how: weight for how, weight in HOW.items() if how not in ("call", "torn") or (usual and usual.calls)}
        if phase == "logging":
            hows["torn"] = 1.0  # half lines
        return Instant(phase, rng.randint(1, entries), rng.choices(list(hows), list(hows.values()))[0], round(rng.random(), 4))

    def training_command(self, variant: str, run: Path) -> list[str]:
        """As a user would: resume what has begun."""
        begun = (run / "config.yaml").exists()
        given = [f"resume={run}"] if begun else [str(self.folder / f"{variant}.yaml"), f"run={run}"]
        return ["train", *(["--report"] if variant in REPORTED else []), *given]

    def starts(self, run: Path) -> list[dict[str, Any]]:
        file = run / "environment.json"
        return json.loads(file.read_text()) if file.exists() else []

    def outward_chain(self, chain: int, one: Outward, instants: Iterator[Instant]) -> None:
        """A command that reads a finished run, killed at each instant; then it is let be, and does what it would have done."""
        place, whole = self.place(chain), self.folder / one.command
        shutil.copytree(self.folder / self.first / "run", place / "run")
        for instant in instants:
            one.clear(place)
            ended = self.attempt(one.words(place), place / "run", instant, self.usual[one.command])
            if not ended.killed:  # an evaluation that was answered before is not asked again
                continue
            self.todo[one.phase] -= 1
            self.check(chain, instant, one.faults(whole, place))
            self.note(chain, self.first, one.words(place), instant, step_of(place / "run"), left_behind(place), went_on="–")
        one.clear(place)
        ended = self.attempt(one.words(place), place / "run", None, {})
        if ended.status:
            self.check(chain, None, [f"status {ended.status}: {(place / 'log').read_text()[-2000:]}"])
            return
        self.check(chain, None, differences(whole / one.target, place / one.target))
        self.check(chain, None, [f"left: {name}" for name in left_behind(place).split()])

    def check(self, chain: int, instant: Instant | None, found: list[str]) -> None:
        for one in found:
            self.wrong.append(f"chain-{chain}, {f'after {instant.phase} {instant}' if instant else 'at the end'}: {one}")
            print(self.wrong[-1], file=sys.stderr, flush=True)

    def note(self, chain: int, variant: str, command: list[str], instant: Instant, step: str, left: str, *, went_on: str) -> None:
        words = " ".join(word.split("=")[0] for word in command[:3] if "/" not in word.split("=")[0])
        kill = Kill(
            len(self.kills) + 1, self.seed, chain, variant, words, instant.phase, instant.entry, str(instant), step, left or "–", went_on
        )
        self.kills.append(kill)
        self.say(str(kill))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="must not exist yet")
    parser.add_argument("--each", type=int, default=25, help="kills in each phase")
    parser.add_argument("--most", type=int, default=10**6, help="kills in all")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="names of `VARIANTS`")
    parser.add_argument("--eval", action="store_true", help="also `nrt eval`, which takes seconds to import")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--again", type=Path, metavar="LOG", help="with --chain: repeat one")
    parser.add_argument("--chain", type=int)
    given = parser.parse_args()
    folder = given.folder.absolute()
    folder.mkdir(parents=True)
    os.environ["NRT_CACHE"] = str(folder / "cache")
    killer = Killer(folder, given)
    killer.prepare()
    if given.again:
        killer.repeat(given.again, given.chain)
    else:
        killer.run()
    print(dict(Counter(kill.phase for kill in killer.kills)), f"{len(killer.wrong)} faults")
    sys.exit(bool(killer.wrong))


if __name__ == "__main__":
    main()
