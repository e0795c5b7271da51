"""`nrt.train` and `nrt.resume`: training from Python, with objects where a config has names."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nrt.api.display import Progress, check_progress, open_display
from nrt.api.names import checker_name, method_name
from nrt.api.stored import store_model, store_rows
from nrt.config import Config, load_config, merge_settings, nest_settings
from nrt.data.checkers import Checker
from nrt.distributed import ProcessGroup, process_group
from nrt.errors import InputError
from nrt.models import pick_device
from nrt.objective import Method
from nrt.run import Run, check_free, run_folder
from nrt.run.layout import DATA_FOLDER, MODEL_FOLDER
from nrt.system.disk_errors import explain_disk_errors
from nrt.trainer import Callback, Listener
from nrt.trainer import train as run_training
from nrt.trainer.resolve import check_method_known, resolve_names
from nrt.trainer.start import with_run_name


def train(
    model: Any = None,
    train_dataset: Any = None,
    eval_dataset: Any = None,
    *,
    recipe: str | Path | None = None,
    processing_class: Any = None,
    method: str | Method | None = None,
    checker: str | Checker | None = None,
    callbacks: Iterable[Callback] = (),
    run: str | Path | None = None,
    progress: Progress = "auto",
    listener: Listener | None = None,
    **settings: Any,
) -> Run:
    """Train a model on question–answer pairs and return the run.

    `run = nrt.train("path/to/model", "train.jsonl", "valid.jsonl", steps=100)`. A loaded model is
    not changed: `run.load()` gives the trained one.

    Args:
        model: folder or hub name of a causal language model, or a loaded one of transformers; or a
            `Config`, which takes the place of a recipe. None: the recipe's model.
        train_dataset: path or `datasets` name, or rows: a `datasets` split, a pandas DataFrame, an
            iterable of dicts. Rows are stored in the run folder.
        eval_dataset: held-out rows, in the same forms; None: those of the recipe or Config, if any.
        recipe: name or YAML file of a recipe; None: `pairs`.
        processing_class: tokenizer of a loaded model.
        method: name of a method, or a `Method` record, which is then entered in METHODS.
        checker: name of a checker of held-out answers, or a function at the top level of a module.
        callbacks: called with the results of the run; see `Callback`.
        run: name of the run, a folder in runs/, or path of its folder; None: a free name.
        progress: `auto` shows the progress in a notebook and on a terminal, True also in a log.
        listener: display of the progress in place of nrt's own.
        settings: settings by name, such as `steps=100` and `optimizer={"lr": 1e-5}`.

    Raises:
        InputError: config, data or model cannot be used. No run was made.
        Interrupted: SIGINT or SIGTERM came, and a checkpoint was saved: see `resume`.
    """
    values = _settings_of(settings, method=method, checker=checker, run=run)
    is_config = isinstance(model, Config)
    paths, objects = _split(
        {
            "model": None if is_config else model,
            "data.train": train_dataset,
            "data.valid": eval_dataset,
        }
    )
    values = merge_settings(values, nest_settings(paths))
    if is_config and (recipe is not None or processing_class is not None):
        raise InputError("recipe and processing_class do not go with a Config; leave them out")
    if processing_class is not None and "model" not in objects:
        raise InputError(
            "processing_class is the tokenizer of a loaded model, and model is a name; save the "
            "tokenizer into the model's folder"
        )
    config = _changed(model, values) if is_config else load_config(recipe, **values)
    if not objects:
        return _run(config, callbacks, progress, listener)
    if config.resume:
        raise InputError("a run that is resumed has its model and data; pass neither")
    resolve_names(config)  # before anything is written
    check_progress(progress)
    with (
        process_group(pick_device(config.device)) as processes,
        _stored(config, objects, processing_class, processes) as stored,
    ):
        return _run(stored, callbacks, progress, listener)


def resume(
    run: str | Path | Run,
    *,
    steps: int | None = None,
    callbacks: Iterable[Callback] = (),
    progress: Progress = "auto",
    listener: Listener | None = None,
    **settings: Any,
) -> Run:
    """Continue a run from its last undamaged checkpoint, and return it.

    A run that was interrupted becomes the run that was not. A run whose method was passed as a
    record needs it again: `nrt.resume(run, method=METHOD)`.

    Args:
        run: the run, its name or its folder.
        steps: steps that the run has when it ends; None: as before.
        callbacks: called with the results of the run; the run does not store those that it had.
        progress: as in `train`.
        listener: as in `train`.
        settings: settings to change. Most belong to the run and cannot change.

    Raises InputError if there is no such run, and for a setting that cannot change.
    """
    earlier = run if isinstance(run, Run) else Run(run)
    values = _settings_of(settings, steps=steps)
    folder = os.path.join(os.curdir, earlier.path)  # a path, not a name; absolute ones stay
    config = _changed(earlier.config, values | {"resume": folder})
    if "method" not in settings:
        check_method_known(earlier)
    return _run(config, callbacks, progress, listener)


def _run(
    config: Config, callbacks: Iterable[Callback], progress: Progress, listener: Listener | None
) -> Run:
    if listener is not None:
        return run_training(config, callbacks=callbacks, listener=listener)
    display = open_display(progress)
    try:
        return run_training(config, callbacks=callbacks, listener=display)
    finally:
        if display:
            display.close()


def _settings_of(
    settings: Mapping[str, Any],
    *,
    method: str | Method | None = None,
    checker: str | Checker | None = None,
    **others: Any,
) -> dict[str, Any]:
    """Return nested settings, with names in place of a method and a checker, without None."""
    values = nest_settings(settings)
    method = values.pop("method", None) if method is None else method
    checker = values.pop("checker", None) if checker is None else checker
    if method is not None:
        values["method"] = method_name(method)
    if checker is not None:
        values = merge_settings(values, {"heldout": {"checker": checker_name(checker)}})
    given = {name: value for name, value in others.items() if value is not None}
    return merge_settings(values, nest_settings(given))


def _changed(config: Config, settings: Mapping[str, Any]) -> Config:
    return config.model_copy(update=merge_settings(config.model_dump(), settings))


def _split(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what was passed by setting: paths and names, and objects."""
    paths, objects = {}, {}
    for setting, value in given.items():
        if isinstance(value, str | os.PathLike):
            paths[setting] = value
        elif value is not None:
            objects[setting] = value
    return paths, objects


@contextmanager
def _stored(
    config: Config, objects: Mapping[str, Any], processing_class: Any, processes: ProcessGroup
) -> Iterator[Config]:
    """Context with the config in which paths stand for the objects.

    Rank 0 writes the objects into the run folder. If training ends before it has made a run there,
    what this call has written is removed.
    """
    config = with_run_name(config, processes)
    folder = run_folder(str(config.run)).absolute()
    parts = [folder / DATA_FOLDER, folder / MODEL_FOLDER]
    before = {file for part in parts for file in (part, *part.glob("*")) if file.exists()}
    try:
        stored = processes.on_main(lambda: _store(config, objects, processing_class, folder))
        with _naming_arguments(stored, objects):
            yield stored
    finally:
        if processes.is_main and not (folder / "config.yaml").exists():
            _remove_new(parts, before)
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


@contextmanager
def _naming_arguments(stored: Config, objects: Mapping[str, Any]) -> Iterator[None]:
    """Name the argument in errors about rows, in place of the file that holds them."""
    try:
        yield
    except InputError as error:
        message = str(error)
        for key, argument, file in (
            ("data.train", "train_dataset", stored.data.train),
            ("data.valid", "eval_dataset", stored.data.valid),
        ):
            if key in objects:
                message = message.replace(f"{file}:", f"{argument}, row ")
        if message == str(error):
            raise
        raise InputError(message) from error


def _remove_new(parts: Iterable[Path], before: Set[Path]) -> None:
    """Remove the folders `parts` as far as their content was not there before."""
    for part in parts:
        for file in part.glob("*"):
            if file not in before and file.is_dir():
                shutil.rmtree(file)
            elif file not in before:
                file.unlink()
        if part not in before and part.is_dir():
            part.rmdir()


def _store(
    config: Config, objects: Mapping[str, Any], processing_class: Any, folder: Path
) -> Config:
    check_free(folder)
    if "model" in objects and (folder / MODEL_FOLDER).exists():
        raise InputError(
            f"{folder / MODEL_FOLDER} exists, where nrt would save the loaded model; choose "
            "another name with run=NAME, or move the folder away"
        )
    settings: dict[str, Any] = {}
    with explain_disk_errors(folder, "start the run again"):
        if "data.train" in objects:
            settings["data.train"] = store_rows(objects["data.train"], folder, "train_dataset")
        if "data.valid" in objects:
            settings["data.valid"] = store_rows(objects["data.valid"], folder, "eval_dataset")
        if "model" in objects:
            settings["model"] = store_model(objects["model"], processing_class, folder)
    return _changed(config, nest_settings(settings))
