"""A run's model goes out: a folder with weights, tokenizer, card and what servers need, and from there to a hub."""

from __future__ import annotations

import shutil
from importlib.resources import as_file, files
from pathlib import Path

from nrt.durable import at_once, copy_plain
from nrt.errors import InputError, RunError, first_line
from nrt.run import Run, as_nrt_writes
from nrt.serving.card import model_card

PARSER = "vllm_reasoning.py"


def export_run(run: Run, folder: Path, *, step: int | None = None, name: str | None = None) -> Path:
    """Copies the model of the run, or of a checkpoint, to `folder`, and writes README.md and vLLM's parser beside it.
    The folder appears whole.

    Returns where the model was copied from. Raises InputError when `folder` exists, when the run has no such model, and when something
    else than plain files is in it.
    """
    source = run.model_of(step)
    if folder.exists():
        raise InputError(f"{folder} exists already; give a new folder")
    with as_nrt_writes(run.path):
        card = model_card(run, name or folder.absolute().name, step)
    with at_once(folder) as new:
        copy_plain(source, new)
        (new / "README.md").write_text(card, encoding="utf-8")
        if run.config.method != "sft":
            with as_file(files("nrt") / "serving" / PARSER) as parser:
                shutil.copy(parser, new / PARSER)
    return source


def check_repository(name: str) -> None:
    """Raises InputError unless this is USER/NAME as the hub takes it, before anything is written."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
        known = name.count("/") == 1
    except HFValidationError:
        known = False
    if not known:
        raise InputError(f"--push {name}: give USER/NAME, such as me/my-model")


def push(folder: Path, name: str, *, private: bool = True) -> str:
    """Uploads the folder as a model of the hub, by the login that `hf auth login` or $HF_TOKEN gave; returns its address.

    Raises RunError, with what the hub said, where it cannot be reached or refuses; the folder stays.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    api = HfApi(library_name="nrt")
    try:
        address = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Model trained with nrt")
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError, ValueError) as error:
        said = first_line(error)
        raise RunError(f"{folder} was written but not pushed to {name}: {said}; log in with `hf auth login`, or try again") from error
    return str(address)
