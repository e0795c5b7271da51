"""Tasks over test rows, and the chats that lm-eval builds from them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
from lm_eval.api.task import ConfigurableTask


def task_of(config: Mapping[str, Any], rows: Sequence[dict[str, Any]]) -> ConfigurableTask:
    """Return a task with this configuration and these rows as documents."""
    return ConfigurableTask(
        config={
            **config,
            "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list([*rows])},
        }
    )


def chat_of(
    task: ConfigurableTask, doc: dict[str, Any], *, turns: bool = True
) -> list[dict[str, str]]:
    """Return the chat turns of a document; without `turns`, the examples are part of one turn."""
    chat = task.fewshot_context(
        doc,
        num_fewshot=task.config.num_fewshot or 0,
        apply_chat_template=True,
        fewshot_as_multiturn=turns,
        chat_template=lambda messages, **_: json.dumps(messages),
    )
    assert isinstance(chat, str)
    return json.loads(chat)
