"""Export a run's model to a folder with model card and vLLM plugin, and push it to a hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from nrt.config import Config, MarkersConfig
from nrt.errors import InputError, RunError, first_line
from nrt.run import Run, explain_unreadable_files
from nrt.serving.card import model_card
from nrt.serving.layout import write_layout
from nrt.system.files import atomic_folder, copy_plain_files

if TYPE_CHECKING:
    from huggingface_hub import HfApi

VLLM_PLUGIN = "vllm_reasoning.py"


def export_run(run: Run, folder: Path, *, step: int | None = None, repo: str | None = None) -> Path:
    """Copy a run's model to `folder` and add README.md, nrt.json and vLLM's plugin.

    The folder appears only when it is complete. Returns the folder that the model was copied from.

    Raises InputError if `folder` exists, if the run has no such model, or if the model's folder
    contains anything but plain files.

    Args:
        run: the run that trained the model.
        folder: a new folder.
        step: step of the checkpoint to export; None: the final model.
        repo: USER/NAME under which the model will be on the hub, for the card; None: nowhere.
    """
    source = check_export(run, folder, step)
    write_export(run, source, folder, step=step, repo=repo)
    return source


def check_export(run: Run, folder: Path, step: int | None) -> Path:
    """Return the folder of the model; raise InputError as `export_run`, before it writes."""
    source = run.model_of(step)
    if folder.exists():
        raise InputError(f"{folder} exists already; give a new folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}") from error
    return source


def write_export(
    run: Run, source: Path, folder: Path, *, step: int | None, repo: str | None
) -> None:
    """Write the model in `source` as `export_run` does, without checking its hashes."""
    with explain_unreadable_files(run.path):
        card = model_card(run, repo or folder.absolute().name, step)
    with atomic_folder(folder) as new_folder:
        copy_plain_files(source, new_folder)
        (new_folder / "README.md").write_text(card, encoding="utf-8")
        write_layout(new_folder, run.config)
        if _has_vllm_plugin(run.config):
            plugin = _vllm_plugin(run.config.markers)
            (new_folder / VLLM_PLUGIN).write_text(plugin, encoding="utf-8")


def _has_vllm_plugin(config: Config) -> bool:
    """Return whether vLLM's parser can read the traces: not without START."""
    return config.method != "sft" and config.markers.start is not None


def _vllm_plugin(markers: MarkersConfig) -> str:
    """Return the source of the plugin, with these markers as defaults."""
    source = (files("nrt") / "serving" / VLLM_PLUGIN).read_text(encoding="utf-8")
    usual = MarkersConfig()
    start, end = (f'return "{marker}"' for marker in (usual.start, usual.end))
    source = source.replace(start, f"return {markers.start!r}")
    return source.replace(end, f"return {markers.end!r}")


def check_repository(name: str, setting: str) -> None:
    """Raise InputError unless the name is USER/NAME in the form that the hub accepts.

    `setting` is what the error calls the name.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
        valid = name.count("/") == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise InputError(f"{setting}{name}: give USER/NAME, such as me/my-model")


def create_repository(name: str, *, private: bool) -> str:
    """Create a model repository on the Hugging Face hub, unless it exists; return its address.

    The login is that of `hf auth login` or $HF_TOKEN. Raises RunError with the hub's message if the
    hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi

    with _explain_hub_errors(f"the repository {name} cannot be created"):
        return str(HfApi(library_name="nrt").create_repo(name, private=private, exist_ok=True))


def upload_model(
    folder: Path, name: str, message: str, *, tag: str | None = None, retry: str = "try again"
) -> None:
    """Upload a folder to a model repository as one commit, and move the tag to it if there is one.

    Raises RunError as `create_repository` does, with `retry` as what to do; the folder remains.
    """
    from huggingface_hub import HfApi

    api = HfApi(library_name="nrt")
    with _explain_hub_errors(f"the model was not uploaded to {name}", retry):
        commit = api.upload_folder(repo_id=name, folder_path=folder, commit_message=message).oid
        if tag:
            _set_tag(api, name, tag, commit)


def _set_tag(api: HfApi, name: str, tag: str, commit: str) -> None:
    """Tag a commit. The tag may be that of another run's model, from which it is taken."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api.create_tag(name, tag=tag, revision=commit)
    except HfHubHTTPError as error:
        if error.response.status_code != 409:
            raise
        api.delete_tag(name, tag=tag)
        api.create_tag(name, tag=tag, revision=commit)


@contextmanager
def _explain_hub_errors(failure: str, retry: str = "try again") -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the classes are those of whichever HTTP library the hub's uses
        raise RunError(
            f"{failure}: {first_line(error)}; log in with `hf auth login`, or {retry}"
        ) from error
