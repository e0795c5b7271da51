"""`python -m tests.reliability.kills FOLDER [--each N] [--log FILE] …`: kills real runs with SIGKILL, N times in each phase,
resumes them, and holds what they leave to what an uninterrupted run left, byte for byte. Exits 1 where anything differs.

This process imports nrt once and forks a child for each attempt, which calls the command (`nrt.cli.app.main`). A chain is one run folder:
`nrt train RECIPE`, killed, `nrt resume RUN`, killed, …, and to its end. After each kill the folder is looked over (`checks.py`).
With `--processes 2` it is two processes under torchrun, of which one is killed, or both with torchrun.
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
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from statistics import fmean
from typing import Any

import plotly.offline
import typer
import yaml

import nrt.analysis.report.data
import nrt.analysis.report.page
import nrt.api.live
import nrt.cli.app
import nrt.cli.live_report
import nrt.serving.export
import nrt.trainer.setup
from nrt.config import Config
from tests.reliability.armed import TOGETHER, Instant, Usual
from tests.reliability.attempts import Ended, attempt
from tests.reliability.checks import differences, faults, left_behind, step_of
from tests.reliability.draw import Draw, read_chain
from tests.reliability.outward import OUTWARD, Outward
from tests.reliability.runs import GROUPS, REPORTED, TRAINING, VARIANTS, GroupKill, Kill
from tests.trainer.conftest import tiny_config, write_model, write_sums

IMPORTED = {
    "eval": ("nrt.cli.evaluate",),
    "judge": ("nrt.eval.judge", "openai"),
    "compare": ("nrt.cli.compare", "matplotlib.pyplot"),
}
"""Modules that only these commands import."""


class Killer:
    """Chains of kills in a folder, until each phase has had its number."""

    def __init__(
        self, folder: Path, given: argparse.Namespace, again: list[dict[str, str]]
    ) -> None:
        """`again`: only what these lines of a log need is prepared."""
        self.folder, self.seed, self.most = folder, given.seed, given.most
        self.processes, several = given.processes, given.processes > 1
        if again and "statuses" in again[0]:
            self.processes, several = len(again[0]["statuses"].split()), True
        wanted = {again[0]["command"].split()[0]} if again else {"export", "report"}
        wanted |= ({"eval", "judge"} if given.eval else set()) | (
            {"compare"} if given.compare else set()
        )
        self.outward = [] if several else [one for one in OUTWARD.values() if one.command in wanted]
        known = GROUPS if several else VARIANTS
        names = (
            [again[0]["variant"]]
            if again
            else given.variants.split(",")
            if given.variants
            else list(known)
        )
        self.variants = {name: known[name] for name in names}
        self.first = names[0]  # the run that is exported, reported
        phases = [*TRAINING, "export", *(phase for one in self.outward for phase in one.entries)]
        chosen = given.phases.split(",") if given.phases else phases
        self.todo = Counter(
            {
                phase: given.each
                for phase in phases
                if phase in chosen and not (several and phase == "report")
            }
        )
        self.usual: dict[str, dict[str, Usual]] = {}
        self.draw = Draw(self.todo, self.usual, several)
        self.kills: list[Kill] = []
        self.wrong: list[str] = []
        self.log = given.log.open("w", encoding="utf-8") if given.log else None
        self.say("\t".join(field.name for field in fields(GroupKill if several else Kill)))

    def say(self, line: str) -> None:
        print(line, flush=True)
        if self.log:
            print(line, file=self.log, flush=True)

    def prepare(self) -> None:
        """The recipes, an uninterrupted run of each, and what their phases take."""
        model, pairs = write_model(self.folder / "tiny"), write_sums(self.folder / "pairs.jsonl")
        self.warm_up(tiny_config(model, pairs, self.folder))
        for name, settings in self.variants.items():
            place = self.folder / name
            place.mkdir()
            values = {"steps": 6, "log_traces": 2, **settings}
            config = tiny_config(model, pairs, place / "run", **values).model_dump(mode="json")
            (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
            if name == self.first:
                recipe = {
                    key: value
                    for key, value in config.items()
                    if key not in ("run", "seed", "resume", "method")
                }
                (self.folder / "compared.yaml").write_text(
                    yaml.safe_dump(recipe | {"steps": 3}), encoding="utf-8"
                )
            self.usual[name] = self.uninterrupted(
                self.training_command(name, place / "run"), place / "run"
            )
        for one in self.outward:
            one.prepare(self.folder)
            place = self.folder / one.command
            self.begin(one, place)
            self.usual[one.command] = self.uninterrupted(one.words(place), place / "run")
            os.environ["NRT_CACHE"] = str(self.folder / "cache")

    def begin(self, one: Outward, place: Path) -> None:
        """A copy of the first run, and a cache of its own."""
        shutil.copytree(self.folder / self.first / "run", place / "run")
        os.environ["NRT_CACHE"] = str(place / "cache")
        one.begin(place)
        one.clear(place)

    def warm_up(self, config: Config) -> None:
        """What is imported, read and compiled here need not be in each child."""
        nrt.trainer.setup.prepare(config)
        plotly.offline.get_plotlyjs()
        for one in self.outward:
            for module in IMPORTED.get(one.command, ()):
                importlib.import_module(module)
        nrt.cli.app.app = typer.main.get_command(nrt.cli.app.app)  # pyright: ignore[reportAttributeAccessIssue]
        gc.collect()
        gc.freeze()

    def uninterrupted(self, command: list[str], run: Path) -> dict[str, Usual]:
        ended = attempt(command, run, None, {}, self.processes)
        assert ended.status == 0, (run.parent / "log").read_text()
        spans = defaultdict(list)
        for span in ended.messages:
            if "phase" in span:
                spans[span["phase"]].append(span)
        return {
            phase: Usual(*(fmean(span[key] for span in some) for key in ("seconds", "calls")))
            for phase, some in spans.items()
        }

    def run(self) -> None:
        for chain in range(10_000):
            if not +self.todo or len(self.kills) >= self.most:
                break
            rng = random.Random(f"{self.seed} {chain}")
            outward = [
                one for one in self.outward if any(self.todo[phase] > 0 for phase in one.entries)
            ]
            training = any(self.todo[phase] > 0 for phase in (*TRAINING, "export"))
            if outward and (chain % 3 == 2 or not training):
                one = outward[chain // (3 if training else 1) % len(outward)]
                self.outward_chain(chain, one, self.draw.instants_of(rng, one))
            else:
                variant = list(self.variants)[chain % len(self.variants)]
                self.training_chain(chain, variant, self.draw.instants(rng, variant))

    def repeat(self, rows: list[dict[str, str]]) -> None:
        """A chain of a log, with its instants."""
        chain, instants = int(rows[0]["chain"]), iter([Instant.parse(row) for row in rows])
        if self.outward:
            self.outward_chain(chain, self.outward[0], instants)
        else:
            self.training_chain(chain, rows[0]["variant"], instants)

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
            ended = attempt(command, run, instant, self.usual[variant], self.processes)
            if waiting:
                self.note(
                    *waiting,
                    str(self.starts(run)[-1]["step"])
                    if len(self.starts(run)) > len(starts)
                    else "–",
                )
            waiting = None
            if not ended.killed:
                break
            assert instant is not None
            self.check(chain, instant, faults(self.folder / variant / "run", run))
            self.check(chain, instant, ended.faults)
            self.todo[instant.phase] -= 1
            waiting = chain, variant, command, instant, step_of(run), left_behind(run), ended
        if ended.status:
            self.check(
                chain, None, [f"status {ended.status}: {(place / 'log').read_text()[-2000:]}"]
            )
            return
        self.check(chain, None, differences(self.folder / variant / "run", run))

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
        self.begin(one, place)
        for instant in instants:
            one.clear(place)
            ended = attempt(one.words(place), place / "run", instant, self.usual[one.command])
            if not ended.killed:  # an evaluation that was answered before is not asked again
                continue
            self.todo[instant.phase] -= 1
            self.check(chain, instant, one.faults(whole, place))
            words = one.words(place)[:1] + (
                [TOGETHER if instant.victim == "all" else "alone"] if one.grouped else []
            )
            self.note(
                chain,
                self.first,
                words,
                instant,
                step_of(place / "run"),
                left_behind(place),
                ended,
                "–",
            )
        one.clear(place)
        ended = attempt(one.words(place), place / "run", None, {})
        os.environ["NRT_CACHE"] = str(self.folder / "cache")
        if ended.status:
            self.check(
                chain, None, [f"status {ended.status}: {(place / 'log').read_text()[-2000:]}"]
            )
            return
        self.check(chain, None, one.at_end(whole, place))
        self.check(
            chain,
            None,
            [
                f"left: {name}"
                for name in left_behind(place).split()
                if not (one.grouped and name == "lock")
            ],
        )

    def check(self, chain: int, instant: Instant | None, found: list[str]) -> None:
        for one in found:
            self.wrong.append(
                f"chain-{chain}, {f'after {instant.phase} {instant}' if instant else 'at the end'}: {one}"
            )
            print(self.wrong[-1], file=sys.stderr, flush=True)

    def note(
        self,
        chain: int,
        variant: str,
        command: list[str],
        instant: Instant,
        step: str,
        left: str,
        ended: Ended,
        went_on: str,
    ) -> None:
        words = " ".join(
            word.split("=")[0] for word in command[:3] if "/" not in word.split("=")[0]
        )
        row = (
            len(self.kills) + 1,
            self.seed,
            chain,
            variant,
            words,
            instant.phase,
            instant.entry,
            str(instant),
            step,
            left or "–",
            went_on,
        )
        if self.processes > 1:
            statuses = " ".join(ended.statuses.get(rank, "–") for rank in range(self.processes))
            seconds = "–" if instant.victim == "all" else f"{ended.seconds:.1f}"
            kill = GroupKill(*row, instant.victim, statuses, seconds)
        else:
            kill = Kill(*row)
        self.kills.append(kill)
        self.say(str(kill))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="must not exist yet")
    parser.add_argument("--each", type=int, default=25, help="kills in each phase")
    parser.add_argument("--most", type=int, default=10**6, help="kills in all")
    parser.add_argument("--variants", help="names of `VARIANTS`, or of `GROUPS`; unset: all")
    parser.add_argument("--processes", type=int, default=1, help="so many, under torchrun")
    parser.add_argument(
        "--eval",
        action="store_true",
        help="also `nrt eval` and `nrt judge`, which take seconds to import",
    )
    parser.add_argument(
        "--compare", action="store_true", help="also `nrt compare`, whose runs import anew"
    )
    parser.add_argument("--phases", help="to kill in; unset: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--again", type=Path, metavar="LOG", help="with --chain: repeat one")
    parser.add_argument("--chain", type=int)
    given = parser.parse_args()
    folder = given.folder.absolute()
    folder.mkdir(parents=True)
    os.environ["NRT_CACHE"] = str(folder / "cache")
    again = read_chain(given.again, given.seed, given.chain) if given.again else []
    killer = Killer(folder, given, again)
    try:
        killer.prepare()
        if again:
            killer.repeat(again)
        else:
            killer.run()
    finally:
        for one in killer.outward:
            one.close()
    print(dict(Counter(kill.phase for kill in killer.kills)), f"{len(killer.wrong)} faults")
    sys.exit(bool(killer.wrong))


if __name__ == "__main__":
    main()
