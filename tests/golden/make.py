"""A small run folder of this version, for later ones to read: python -m tests.golden.make [NAME | verl]

At each release: `python -m tests.golden.make 0.2.0`, commit tests/golden/folders/0.2.0, and give test_folders.py its numbers. What tells
of the machine is left out, and so is the model at the end; the checkpoint before it is there, with 60 kB.

`python tests/verl/ours.py tests.golden.make verl`, where verl is installed, makes tests/golden/verl: a run of two workers of engine=verl,
for what reads such a folder without verl.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from nrt.system.manifest import write_manifest
from nrt.trainer import train
from tests.trainer.conftest import tiny_config, write_model, write_sums

FOLDER = Path(__file__).parent / "folders"
VERL = Path(__file__).parent / "verl"
PAIRS = "pairs.jsonl"


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else version("native-reasoning")
    target = VERL / "run" if name == "verl" else FOLDER / name
    if target.exists():
        sys.exit(f"{target} exists; what is golden is never made again")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # paths in config.yaml are relative, and lead nowhere later
        os.environ["NRT_CACHE"] = f"{folder}/cache"
        settings = {"steps": 3, "log_traces": 2, "initial_reference": False}
        if target.is_relative_to(VERL):
            settings |= {"engine": "verl", "gpus_per_node": 2, "device": "cpu"}
        config = tiny_config(
            write_model(Path("base"), width=8), write_sums(Path(PAIRS)), "./run", **settings
        )
        train(config)
        run = Path("run")
        _forget_the_machine(run)
        shutil.copytree(run, target)
        shutil.copy(PAIRS, target.parent / f"{name}-{PAIRS}")
    print(
        f"{target}: {sum(file.stat().st_size for file in target.rglob('*') if file.is_file()):,} bytes"
    )


def _forget_the_machine(run: Path) -> None:
    """Keeps the checkpoint after step 2 alone."""
    file = run / "environment.json"
    (entry,) = json.loads(file.read_text())
    plain = {"command": "nrt train", "git": None, "platform": "", "cpus": 1, "gpus": []}
    file.write_text(json.dumps([entry | plain], indent=1) + "\n")
    shutil.rmtree(run / "model")
    shutil.rmtree(run / "checkpoints" / "step-000003")
    (run / "checkpoints" / "latest").write_text("step-000002\n")
    write_manifest(run / "checkpoints" / "step-000002")


if __name__ == "__main__":
    main()
