"""Upload a run's models to the Hugging Face hub while the run trains on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from nrt.config import Config
from nrt.errors import InputError, RunError
from nrt.run import Run, step_name
from nrt.run.layout import UPLOAD_FOLDER
from nrt.serving.export import check_repository, create_repository, upload_model, write_export
from nrt.system.files import remove_leftovers


class HubUploads:
    """Uploads of one run, one at a time, each from a copy; a context manager that waits for them.

    A KeyboardInterrupt, before the wait or during it, gives up the upload.

    `warn` receives a message when an upload fails or is left out; the run goes on. The thread that
    trains calls all methods: it is the one that writes the run folder.
    """

    def __init__(self, folder: Path, repo: str) -> None:
        self._run, self._repo = Run(folder), repo
        self._copy = folder / UPLOAD_FOLDER
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hub")
        self._upload: Future[None] | None = None
        self.warn: Callable[[str], None] = lambda message: None

    def push(self, model: Path, step: int, *, final: bool = False) -> None:
        """Upload a model with its card as one commit, whose tag names the step.

        The model is left out if an earlier one is still on its way, unless it is the `final` one,
        which waits.
        """
        if self._upload and not self._upload.done() and not final:
            self.warn(f"hub: an upload is still going on, so the model of step {step} is left out")
            return
        self._finish()
        try:
            write_export(
                self._run, model, self._copy, step=None if final else step, repo=self._repo
            )
        except (InputError, OSError) as error:
            # a half-written copy may have filled the disk
            remove_leftovers(self._run.path, name=UPLOAD_FOLDER, older_than=0)
            self.warn(f"hub: the model of step {step} cannot be copied for its upload: {error}")
            return
        self._upload = self._thread.submit(
            upload_model, self._copy, self._repo, f"Step {step}, by nrt", tag=step_name(step)
        )

    def __enter__(self) -> HubUploads:
        shutil.rmtree(self._copy, ignore_errors=True)  # a killed process may have left it
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        interrupted = error_type is not None and issubclass(error_type, KeyboardInterrupt)
        try:
            if not interrupted:
                self._finish()
        finally:  # unless interrupted, the upload is done
            self._thread.shutdown(wait=False, cancel_futures=True)
            shutil.rmtree(self._copy, ignore_errors=True)

    def _finish(self) -> None:
        """Wait for the upload in progress, if any, and remove its copy."""
        if self._upload:
            try:
                self._upload.result()
            except RunError as error:
                self.warn(f"hub: {error}")
            self._upload = None
        shutil.rmtree(self._copy, ignore_errors=True)


def check_hub(config: Config) -> None:
    """Raise InputError for a repository's name that the hub does not accept."""
    if config.hub.repo is not None:
        check_repository(config.hub.repo, "hub.repo=")


def open_hub(config: Config, folder: Path) -> HubUploads | None:
    """Create the repository that `hub.repo` names, if it is set. Only rank 0 may call it.

    Raises InputError if the hub cannot be reached or refuses, before the first step is trained.
    """
    if config.hub.repo is None:
        return None
    try:
        create_repository(config.hub.repo, private=config.hub.private)
    except RunError as error:
        raise InputError(f"hub.repo={config.hub.repo}: {error}") from error
    return HubUploads(folder, config.hub.repo)
