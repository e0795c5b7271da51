"""nrt.json of an exported model: its markers, and whether it writes traces.

The tokenizer does not tell which of its tokens are the markers.
"""

from __future__ import annotations

import json
from pathlib import Path

from nrt.config import Config, MarkersConfig
from nrt.errors import InputError
from nrt.system.files import read_bounded

LAYOUT = "nrt.json"


def write_layout(folder: Path, config: Config) -> None:
    """Write nrt.json for a model that was trained with this config."""
    markers = config.markers
    values = {"start": markers.start, "end": markers.end, "traces": config.method != "sft"}
    text = json.dumps(values, indent=1, ensure_ascii=False) + "\n"
    (folder / LAYOUT).write_text(text, encoding="utf-8")


def read_layout(model: str) -> tuple[MarkersConfig, bool] | None:
    """Return the markers of an exported model, and whether it writes traces.

    None for any other model. Raises InputError if the file holds something else.

    Args:
        model: a folder, or a name on the hub.
    """
    from transformers.utils.hub import cached_file

    file = cached_file(
        model,
        LAYOUT,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if file is None:
        return None
    try:
        values = json.loads(read_bounded(Path(file)))
        return MarkersConfig(start=values["start"], end=values["end"]), bool(values["traces"])
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{file} is not what nrt export writes; export the run again") from None
