"""Data sections of the config: which files are read, and how their rows become pairs."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from nrt.config.sections import Positive, Section

DATASET = re.compile(r"([\w.-]+/[\w.-]+)(?::(?:([\w.-]+):)?(.+))?")
"""org/name, org/name:split or org/name:config:split; a split may be a slice: train[:10%]."""


class ColumnsConfig(Section):
    """Columns of a data file; unset ones are inferred from the first row (docs/data.md).

    A text with braces is composed of columns: `{passage}\\n\\n{question}`, `{choices[0]}`, and
    `{answers:, }` joins a list with `, `.
    """

    question: str | None = None
    """Column of the question: one user turn, or all turns before the answer."""
    answer: str | None = None
    """Column of the reference answer y*."""
    messages: str | None = None
    """Column of the chat turns; the last one, the assistant's, is y*."""
    system: str | None = None
    """Column of the system message, used where the turns have none."""
    source: str | None = None
    """Column that names the source of a row; metrics and accuracies are also reported by source."""


class TextConfig(Section):
    """Documents instead of pairs, each cut into prefix → continuation, without a chat template."""

    at: Literal["sentences", "stride", "entropy"] = "sentences"
    """Position of the cuts: after a sentence or line, every `stride` tokens, or before the tokens
    of which the initial model is least certain."""
    column: str = "text"
    """Column of the document. A .txt file is one document."""
    prefix_tokens: Positive = 256
    """Maximum tokens of the document before a cut."""
    continuation_tokens: Positive = 64
    """Maximum tokens after a cut; they are y*."""
    stride: Positive = 64
    """Minimum distance between two cuts, and from the beginning to the first cut, in tokens."""
    most: Positive | None = None
    """Maximum cuts per document: the first ones, with entropy the least certain; unset: all."""
    space: Literal["keep", "prefix", "drop"] = "keep"
    """Treatment of white-space tokens at a cut: they stay in the continuation, are moved to the
    prefix, or are dropped, so that START and END take their place."""


class RowsConfig(Section):
    """How rows of a file become question–answer pairs."""

    columns: ColumnsConfig = ColumnsConfig()
    """Which columns hold question, answer and the rest."""
    rows: str | None = None
    """Key of the list of rows in a JSON file; unset: the only list in the file."""
    answer: str = "whole"
    """Part of the answer column that is y*: `whole`; `after:MARK`, the text after the last MARK
    (GSM8K: `after:####`); `before:MARK`, the text before the first MARK."""
    references: Literal["first", "random", "each"] | None = None
    """If the answer column is a list of right answers: train on the first, on one drawn for each
    row, or on one row for each answer. Such data have no default, because these are different
    objectives."""
    system: str | None = None
    """System message for all examples that have none."""
    text: TextConfig | None = None
    """Set if the files hold documents instead of pairs."""


class SourceConfig(Section):
    """One of several data sources; an unset setting has the value that it has in `data`."""

    path: str
    """File, folder, glob or `datasets` name."""
    weight: Annotated[float, Field(gt=0)] | None = None
    """Relative share of the rows drawn. Set it for all sources or for none; without weights each
    row is drawn once per epoch."""
    name: str | None = None
    """`source` of the rows that name none."""
    columns: ColumnsConfig | None = None
    """Replaces `data.columns` as a whole."""
    rows: str | None = None
    """Same as `data.rows`."""
    answer: str | None = None
    """Same as `data.answer`."""
    references: Literal["first", "random", "each"] | None = None
    """Same as `data.references`."""
    system: str | None = None
    """Same as `data.system`."""
    text: TextConfig | None = None
    """Replaces `data.text` as a whole."""

    def rows_config(self, default: RowsConfig) -> RowsConfig:
        """Return this source's own settings, completed by those of `default`."""
        values = {}
        for name in RowsConfig.model_fields:
            own_value = getattr(self, name)
            values[name] = getattr(default, name) if own_value is None else own_value
        return RowsConfig(**values)


def _paths_to_sources(value: Any) -> Any:
    """Replace each path in a list of sources by a source with that path."""
    if not isinstance(value, list | tuple):
        return value
    return [{"path": item} if isinstance(item, str) else item for item in value]


Sources = Annotated[
    tuple[SourceConfig, ...], Field(min_length=1), BeforeValidator(_paths_to_sources)
]


class DifficultyConfig(Section):
    """Selection of prompts by the probability of their answer after the null trace.

    Either setting costs one forward pass per candidate.
    """

    skip_above: Annotated[float, Field(gt=0, le=1)] | None = None
    """Skip prompts whose answer tokens all have at least this probability: a trace cannot help
    there. Unset: none is skipped."""
    pool: Annotated[float, Field(ge=1)] = 1.0
    """Candidates per trained prompt. Above 1, prompts are drawn from the candidates without
    replacement, with chances that grow with the surprisal of their answer."""
    power: Annotated[float, Field(ge=0)] = 1.0
    """Exponent of the chances: chance of a candidate ∝ (−mean log-prob)^power; 0: equal chances."""


class DataConfig(RowsConfig):
    """Training and validation data: question–answer pairs."""

    train: str | Sources | None = None
    """Training data: a file, folder or glob (JSONL, JSON, CSV, parquet; also .gz, .zst), a
    `datasets` name, or a list of sources with weights."""
    valid: str | Sources | None = None
    """Validation data, in the same forms; unset: no held-out evaluation."""
    on_bad_row: Literal["error", "skip"] = "error"
    """Treatment of unusable rows: end the run before training, or skip, count and list them in
    RUN/skipped/."""
    truncate_answers: bool = False
    """Truncate answers longer than `max_answer_tokens` instead of dropping their rows."""
    shuffle: bool = True
    """Draw the rows in a new random order each epoch."""
    group_by_length: bool = False
    """Build batches of rows of similar length, in random order: less padding, but less mixing."""
    difficulty: DifficultyConfig = DifficultyConfig()
    """Which of the drawn prompts are trained on."""

    def sources(self, kind: Literal["train", "valid"]) -> tuple[SourceConfig, ...]:
        """Return the training or validation data as sources."""
        data = self.train if kind == "train" else self.valid
        sources = (SourceConfig(path=data),) if isinstance(data, str) else data or ()
        if kind == "train":
            return sources
        # a held-out question counts once; any of its references is right
        return tuple(
            source.model_copy(update={"references": "first"})
            if (source.references or self.references) == "each"
            else source
            for source in sources
        )
