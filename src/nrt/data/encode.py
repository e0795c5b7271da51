"""Examples → pairs of token ids, with a count of everything that was dropped or cut."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nrt.config import Config
from nrt.data.chat import Chat
from nrt.errors import InputError
from nrt.types import Example, Pair


@dataclass(frozen=True, slots=True)
class Encoded:
    """The pairs kept, in the order of the examples, and what was lost; an example over both limits counts as a dropped prompt."""

    pairs: tuple[Pair, ...]
    dropped_prompts: int = 0  # longer than max_prompt_tokens
    dropped_answers: int = 0  # longer than max_answer_tokens, the end of turn included
    truncated_answers: int = 0  # kept, cut to max_answer_tokens; these do not end the turn

    @property
    def total(self) -> int:
        """Examples there were."""
        return len(self.pairs) + self.dropped_prompts + self.dropped_answers


def encode_examples(examples: Iterable[Example], chat: Chat, config: Config) -> Encoded:
    """Tokenises examples and applies `max_prompt_tokens`, `max_answer_tokens` and `data.truncate_answers`.

    Raises InputError if the chat template refuses an example (with its id) or if no example is left.
    """
    pairs: list[Pair] = []
    prompts = answers = truncated = 0
    for example in examples:
        try:
            prompt_ids = chat.encode_prompt(example.messages)
        except InputError as error:
            raise InputError(f"{example.id}: {error}") from None
        answer_ids = chat.encode_answer(example.answer)
        if len(prompt_ids) > config.max_prompt_tokens:
            prompts += 1
            continue
        if len(answer_ids) > config.max_answer_tokens:
            if not config.data.truncate_answers:
                answers += 1
                continue
            truncated += 1
        pairs.append(Pair(example, prompt_ids, answer_ids[: config.max_answer_tokens]))
    if not pairs:
        raise InputError(
            f"no example is left: {prompts} prompts are longer than max_prompt_tokens={config.max_prompt_tokens} and {answers} answers "
            f"longer than max_answer_tokens={config.max_answer_tokens}; raise these, or set data.truncate_answers=true"
        )
    return Encoded(tuple(pairs), prompts, answers, truncated)
