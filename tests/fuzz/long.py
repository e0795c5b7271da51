"""Many bad inputs, the same at every call: python -m tests.fuzz.long [--inputs N] [--dear N] [--seed S] [--only TARGET] [--at NUMBER]

Prints inputs and outcomes a target, and each kind of fault once, with the number that makes it again; exits 1 where there is one.
"""

from __future__ import annotations

import argparse
import logging
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from random import Random

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from tests.fuzz.targets import CHEAP, DEARER, Target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000, help="of each cheap target")
    parser.add_argument("--dear", type=int, default=1000, help="of each of the others")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one target")
    parser.add_argument("--at", type=int, help="this input alone, with its traceback")
    given = parser.parse_args()
    logging.getLogger("nrt").setLevel(logging.ERROR)  # warnings of each input
    faults = 0
    for name, target in {**CHEAP, **DEARER}.items():
        if given.only in (None, name):
            count = given.inputs if name in CHEAP else given.dear
            numbers = range(count) if given.at is None else range(given.at, given.at + 1)
            faults += run(name, target, given.seed, numbers, loud=given.at is not None)
    sys.exit(min(faults, 1))


def run(name: str, target: Target, seed: int, numbers: range, *, loud: bool = False) -> int:
    """Kinds of faults."""
    counts: Counter[str] = Counter()
    kinds: dict[str, tuple[int, str]] = {}
    slowest = 0.0
    with tempfile.TemporaryDirectory() as root:
        os.environ["NRT_CACHE"] = str(Path(root) / "cache")
        folder = Path(root) / "input"
        for number in numbers:
            folder.mkdir()
            started = time.perf_counter()
            try:
                counts[
                    "taken"
                    if target(Random(f"{name} {seed} {number}"), folder) == "taken"
                    else "refused"
                ] += 1
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                counts["faults"] += 1
                place = traceback.extract_tb(error.__traceback__)[-1]
                ours = next(
                    (
                        f
                        for f in reversed(traceback.extract_tb(error.__traceback__))
                        if "/nrt/" in f.filename
                    ),
                    place,
                )
                kind = f"{type(error).__name__} in {ours.filename.rpartition('/src/')[2]}:{ours.lineno}"
                kinds.setdefault(kind, (number, str(error)[:200]))
                if loud:
                    traceback.print_exc()
            slowest = max(slowest, time.perf_counter() - started)
            shutil.rmtree(folder)
    results = "\t".join(f"{counts[word]} {word}" for word in ("taken", "refused", "faults"))
    peak = (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    )  # of this process so far; in KiB on Linux
    print(
        f"{name}\t{sum(counts.values())} inputs\t{results}\tat most {slowest:.2f} s\t{peak} MiB",
        flush=True,
    )
    for kind, (number, said) in kinds.items():
        print(f"  --only '{name}' --seed {seed} --at {number}: {kind}: {said!r}", flush=True)
    return len(kinds)


if __name__ == "__main__":
    main()
