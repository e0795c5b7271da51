"""Export a run's model to a folder with model card and vLLM plugin, and push it to a hub."""

from __future__ import annotations

import shutil
from importlib.resources import as_file, files
from pathlib import Path

from nrt.errors import InputError, RunError, first_line
from nrt.run import Run, explain_unreadable_files
from nrt.serving.card import model_card
from nrt.system.files import atomic_folder, copy_plain_files

VLLM_PLUGIN = "vllm_reasoning.py"


def export_run(run: Run, folder: Path, *, step: int | None = None, name: str | None = None) -> Path:
    """Copy a run's model to `folder` and add README.md and vLLM's plugin.

    The folder appears only when it is complete. Returns the folder that the model was copied from.

    Raises InputError if `folder` exists, if the run has no such model, or if the model's folder
    contains anything but plain files.

    Args:
        run: the run that trained the model.
        folder: a new folder.
        step: step of the checkpoint to export; None: the final model.
        name: title of the model card; None: the name of the folder.
    """
    source = run.model_of(step)
    if folder.exists():
        raise InputError(f"{folder} exists already; give a new folder")
    with explain_unreadable_files(run.path):
        card = model_card(run, name or folder.absolute().name, step)
    with atomic_folder(folder) as new_folder:
        copy_plain_files(source, new_folder)
        (new_folder / "README.md").write_text(card, encoding="utf-8")
        if run.config.method != "sft":
            with as_file(files("nrt") / "serving" / VLLM_PLUGIN) as plugin:
                shutil.copy(plugin, new_folder / VLLM_PLUGIN)
    return source


def check_repository(name: str) -> None:
    """Raise InputError unless the name is USER/NAME in the form that the hub accepts."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
        valid = name.count("/") == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise InputError(f"--push {name}: give USER/NAME, such as me/my-model")


def push_to_hub(folder: Path, name: str, *, private: bool = True) -> str:
    """Upload the folder as a model of the Hugging Face hub and return its address.

    The login is that of `hf auth login` or $HF_TOKEN. Raises RunError with the hub's message if the
    hub cannot be reached or refuses; the folder remains.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    api = HfApi(library_name="nrt")
    try:
        address = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Model trained with nrt")
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError, ValueError) as error:
        raise RunError(
            f"{folder} was written but not pushed to {name}: {first_line(error)}; "
            "log in with `hf auth login`, or try again"
        ) from error
    return str(address)
