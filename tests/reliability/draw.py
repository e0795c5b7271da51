"""When to kill: instants drawn with a seed, or read from a log."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tests.reliability.armed import HOW, Instant, Usual
from tests.reliability.outward import Outward
from tests.reliability.runs import CHAIN, MOST_ENTRIES, TRAINING, VICTIMS


def read_chain(log: Path, seed: int, chain: int) -> list[dict[str, str]]:
    """Its kills, by column. Raises ValueError where the log has no such chain."""
    names, *lines = (line.split("\t") for line in log.read_text(encoding="utf-8").splitlines())
    rows = [dict(zip(names, line, strict=True)) for line in lines]
    found = [row for row in rows if (row["seed"], row["chain"]) == (str(seed), str(chain))]
    if not found:
        raise ValueError(f"{log} has no chain {chain} of seed {seed}")
    return found


@dataclass(frozen=True)
class Draw:
    """`todo` are the kills that each phase still lacks, `usual` what phases take, by run or command."""

    todo: Counter[str]
    usual: Mapping[str, Mapping[str, Usual]]
    several: bool  # processes

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

    def instants_of(self, rng: random.Random, one: Outward) -> Iterator[Instant]:
        for _ in range(CHAIN):
            phases = [phase for phase in one.entries if self.todo[phase] > 0] or list(one.entries)
            phase = (
                rng.choices(phases, [max(1, self.todo[phase]) for phase in phases])[0]
                if len(phases) > 1
                else phases[0]
            )
            chosen = self.instant(rng, one.command, phase, one.entries[phase])
            yield replace(chosen, victim=rng.choice(("0", "all"))) if one.grouped else chosen

    def instant(self, rng: random.Random, what: str, phase: str, entries: int) -> Instant:
        """Where the phase has no calls to the disk, by the clock, or as it begins or ends."""
        usual = self.usual[what].get(phase)
        hows = {
            how: weight
            for how, weight in HOW.items()
            if how not in ("call", "torn") or (usual and usual.calls)
        }
        if phase == "logging":
            hows["torn"] = 1.0  # half lines
        chosen = Instant(
            phase,
            rng.randint(1, entries),
            rng.choices(list(hows), list(hows.values()))[0],
            round(rng.random(), 4),
        )
        return chosen if not self.several else replace(chosen, victim=rng.choice(VICTIMS))
