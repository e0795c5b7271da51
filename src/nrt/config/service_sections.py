"""Sections of the config for services that receive a run's results: trackers and the hub."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from nrt.config.sections import Count, Names, Section

TrackerId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
"""An id that each of the trackers accepts."""


class TrackingConfig(Section):
    """How a run appears in the trackers that `trackers` names (docs/trackers.md)."""

    project: str = "nrt"
    """Project of the run in wandb and Trackio."""
    group: str | None = None
    """Group of the run in wandb and Trackio."""
    tags: Names = ()
    """Tags of the run in wandb."""
    id: TrackerId | None = None
    """Id of the run in wandb; Trackio has it in the run's name. Unset: a random one, which the run
    folder keeps for resumes."""
    samples: Count = 0
    """Steps between tables of the traces that traces.jsonl holds; 0: none. They show prompts and
    answers to everyone who can see the project."""


class HubConfig(Section):
    """Upload of the model to the Hugging Face hub during training (docs/serving.md)."""

    repo: str | None = None
    """Repository that receives the model, USER/NAME; unset: no upload."""
    when: Literal["save", "end"] = "save"
    """Upload the model of each checkpoint and the trained one, or the trained one alone."""
    private: bool = True
    """Create a private repository, if it does not exist yet."""
