"""`nrt data check` and `nrt data stats`: the inspection of data as tables, JSON and a histogram."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nrt.config import Config, build_config, load_config, parse_overrides
from nrt.data import Chat, ensure_template, load_pairs
from nrt.data.inspect import Faults, Inspection, Leak, Lengths, inspect, leak
from nrt.durable import replaced
from nrt.errors import InputError
from nrt.models import MarkerRow, add_marker_tokens, add_markers, load_model, load_tokenizer, pick_device, settle_marker_rows

Record = dict[str, Any]

MOST_LINES, MOST_NAMES = 4, 8
"""Kinds of faults, and columns or tokens, that are shown: what one has to read of any file fits on a screen or two."""


def config_for(recipe: str, arguments: Sequence[str]) -> Config:
    """The config that FILES and `key=value` settings over a recipe make; the files are the training data."""
    settings = [text for text in arguments if text.partition("=")[0].split(".")[0] in Config.model_fields and "=" in text]
    files = [text for text in arguments if text not in settings]
    config = load_config(recipe, settings) if recipe else build_config(parse_overrides(settings))
    return build_config(config.model_dump(), {"data": {"train": files}}) if files else config


def open_chat(config: Config) -> Chat | None:
    """How the model's tokenizer reads the data; None without a model."""
    if config.model is None:
        return None
    tokenizer = load_tokenizer(config.model, config.trust_remote_code)
    add_marker_tokens(tokenizer, config.markers)
    ensure_template(tokenizer)
    return Chat(tokenizer, config.markers)


def inspect_all(config: Config) -> tuple[list[Inspection], Leak | None]:
    """Training data, validation data where there are any, and what they share."""
    texts = [text for kind in ("train", "valid") for s in config.data.sources(kind) if (text := s.reading(config.data).text)]
    if any(text.at == "entropy" for text in texts):
        raise InputError("cuts by entropy need the model's weights, which a check does not load; look with data.text.at=sentences")
    chat = open_chat(config)
    train = inspect(config, "train", chat)
    if config.data.valid is None:
        return [train], None
    valid = inspect(config, "valid", chat)
    return [train, valid], leak(train, valid)


def marker_rows(config: Config) -> list[MarkerRow]:
    """What new markers would start from, and what that does to the model; loads its weights. Empty if it knows both markers.

    Raises InputError without a model, and for a model or data that cannot be read.
    """
    if config.model is None:
        raise InputError("--markers tries them on a model; set model=FOLDER")
    device, dtype = pick_device(config.device), getattr(torch, config.dtype)
    model, tokenizer = load_model(config.model, dtype=dtype, device=device, trust_remote_code=config.trust_remote_code)
    new = add_markers(model, tokenizer, config.markers)
    ensure_template(tokenizer)
    chat = Chat(tokenizer, config.markers)
    pairs = load_pairs(config, "train", chat).pairs
    return settle_marker_rows(model, tokenizer, config.markers, new, pairs, chat.start_id, chat.end_id)


# --- check ---


def print_check(console: Console, config: Config, found: Sequence[Inspection], shared: Leak | None) -> None:
    """All that `check` has to say, the alarming last."""
    for one in found:
        _print_one(console, one)
    if shared is not None:
        style = "bold red" if shared.rows else "green"
        text = f"{shared.rows:,} validation rows ask what the training data ask too ({shared.questions:,} questions)"
        console.print(f"leakage: {text}" + (f"; the first: {', '.join(shared.first)}" if shared.rows else ""), style=style, highlight=False)
    if config.model is None:
        console.print("Lengths are in characters: set model=FOLDER for tokens, caps and control tokens.", style="dim")


def _print_one(console: Console, one: Inspection) -> None:
    table = Table(title=f"{one.kind}: {_files(one.files)}", title_justify="left", title_style="bold", show_header=False, box=None)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    table.add_row("rows", f"{one.rows:,} usable, {one.bad_rows:,} not")
    read = [f"{what} ← {_short(column)}" for what, column in one.columns.items()]
    table.add_row("read", escape(", ".join(read)) or "nothing")
    if one.other_columns:
        table.add_row("not read", escape(_listed([f"{_short(name)} ({rows:,} rows)" for name, rows in one.other_columns.items()])))
    for fault in one.bad[:MOST_LINES]:
        example = escape(f"{_short(fault.message, 160)} ({_places(one, fault)})")
        table.add_row("[red]unusable[/red]", f"{fault.rows:,} × {example}")
    if rest := one.bad[MOST_LINES:]:
        table.add_row("[red]unusable[/red]", f"{sum(fault.rows for fault in rest):,} more of {len(rest):,} other kinds; --json has all")
    table.add_row("duplicates", f"{one.duplicates:,} rows repeat turns and answer, {one.conflicts:,} repeat turns with another answer")
    if one.unit == "tokens":
        spelled = escape(_listed([f"{token} in {rows:,} rows" for token, rows in one.control.items()]))
        table.add_row("control tokens", f"{spelled}; read as plain text" if spelled else "none is spelled in a text")
        if one.unknown:
            share = _share(one.unknown, round(one.rows * (one.prompt.mean + one.answer.mean)))
            table.add_row("[red]unknown tokens[/red]", f"{one.unknown:,} ({share}): the model's vocabulary has nothing for this text")
        table.add_row("within the caps", f"{one.kept:,} of {one.rows:,} ({_share(one.kept, one.rows)})")
    for part in (table, _length_table(one), source_table(one, most=8)):
        console.print(part)
        console.print()


def _length_table(one: Inspection) -> Table:
    table = Table(box=None, header_style="dim")
    table.add_column(f"{one.unit} a row", style="dim")
    for name in ("mean", *(f"{p} %" for p in one.prompt.percentiles)):
        table.add_column(name, justify="right")
    if one.unit == "tokens":
        table.add_column("cap", justify="right")
        table.add_column("over it", justify="right")
    for name, lengths in (("prompt", one.prompt), ("answer", one.answer)):
        numbers = [f"{lengths.mean:,.1f}", *(f"{value:,}" for value in lengths.percentiles.values())]
        caps = [f"{lengths.cap:,}", _over(lengths, one.rows)] if one.unit == "tokens" else []
        table.add_row(name, *numbers, *caps)
    return table


def _over(lengths: Lengths, rows: int) -> str:
    return f"[yellow]{lengths.over:,} ({_share(lengths.over, rows)})[/yellow]" if lengths.over else "0"


# --- stats ---


def source_table(one: Inspection, most: int | None = None) -> Table:
    """As the paper's Table 4, with mean lengths; the `most` largest sources."""
    table = Table(box=None, header_style="dim")
    table.add_column("source", overflow="fold")
    for name in ("rows", "share", f"mean prompt {one.unit}", f"mean answer {one.unit}"):
        table.add_column(name, justify="right")
    for name, share in islice(one.sources.items(), most):
        means = f"{share.mean_prompt:,.1f}", f"{share.mean_answer:,.1f}"
        table.add_row(escape(_short(name, 40)) or "(none named)", f"{share.rows:,}", f"{share.share:.2%}", *means)
    if most is not None and len(one.sources) > most:
        table.add_row(f"… and {len(one.sources) - most} more")
    if len(one.sources) > 1:
        table.add_section()
        table.add_row("total", f"{one.rows:,}", "100.00%", f"{one.prompt.mean:,.1f}", f"{one.answer.mean:,.1f}")
    return table


def plot_lengths(found: Sequence[Inspection], file: Path) -> None:
    """A histogram of prompt and answer lengths, log-spaced, with the caps. Raises InputError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("the histogram needs matplotlib; pip install 'native-reasoning[plots]'") from None
    figure = Figure(figsize=(7, 2.6 * len(found)), layout="constrained")
    axes = figure.subplots(len(found), 2, squeeze=False)
    for row, one in zip(axes, found, strict=True):
        for axis, name, values, lengths in zip(row, ("prompt", "answer"), one.lengths, (one.prompt, one.answer), strict=True):
            low, top = max(int(values.min(initial=1)), 1), int(values.max(initial=1))
            axis.hist(values, bins=np.unique(np.geomspace(low, top + 1, 50).round()), color="#4c72b0")
            axis.set_xscale("log")
            axis.set_xlabel(f"{name} {one.unit}, {one.kind}")
            axis.set_ylabel("rows")
            if one.unit == "tokens" and lengths.cap < 4 * top:
                axis.axvline(lengths.cap, color="#c44e52", linestyle="--", linewidth=1)
                axis.annotate(f"cap {lengths.cap:,}", (lengths.cap, 0.97), xycoords=("data", "axes fraction"), ha="right", va="top",
                              rotation=90, fontsize=8, color="#c44e52")  # fmt: skip
            axis.spines[["top", "right"]].set_visible(False)
    file.parent.mkdir(parents=True, exist_ok=True)
    with replaced(file, binary=True) as out:
        figure.savefig(out, dpi=150, format=file.suffix.removeprefix(".") or "png")


# --- for machines ---


def as_json(found: Sequence[Inspection], shared: Leak | None) -> Record:
    """Everything but the lengths row by row."""
    record: Record = {one.kind: _plain(one) for one in found}
    return record | {"leakage": asdict(shared) if shared else None}


def _plain(one: Inspection) -> Record:
    record = asdict(replace(one, lengths=(np.empty(0), np.empty(0)), questions={}))
    del record["lengths"], record["questions"]
    return record | {"bad_rows": one.bad_rows}


def _files(files: Sequence[str]) -> str:
    named = ", ".join(files) if len(files) <= 3 else f"{files[0]} … {files[-1]} ({len(files)} files)"
    return escape(_short(named, 160))


def _listed(items: Sequence[str]) -> str:
    more = f" and {len(items) - MOST_NAMES:,} more" if len(items) > MOST_NAMES else ""
    return ", ".join(items[:MOST_NAMES]) + more


def _short(text: str, most: int = 40) -> str:
    """On one line."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def _places(one: Inspection, fault: Faults) -> str:
    """The first few rows; of a single file, without its name."""
    places = [place.rpartition(":")[2] for place in fault.first] if len(one.files) == 1 else fault.first
    word = "row" if len(one.files) == 1 and fault.rows == 1 else "rows" if len(one.files) == 1 else ""
    return f"{word} {', '.join(places)}{', …' if fault.rows > len(places) else ''}".strip()


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "–"
