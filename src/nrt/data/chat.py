"""Chat turns and answers → token ids, such that no text becomes a control token (see `control`).

Where a user's text spells a control token, it is tokenised as plain text; only the chat template
writes control ids. For this, `Chat` copies the backend tokenizer and renames its control tokens to
strings that no user can write. Ordinary tokenisation is then right by construction.

transformers 5.23 has `sanitize_control_tokens`, which is not enough. It drops private-use
characters from the text and tokenises around each match separately. It also fails where the
vocabulary itself contains the string, such as SentencePiece's `</s>`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from nrt.config import MarkersConfig
from nrt.data.backend import build_tokenizer, remove_dummy_prefix, rename_tokens, unknown_id
from nrt.data.control import Replacer, control_tokens, private_names
from nrt.data.template import check_default_template, exported_template, original_template
from nrt.errors import InputError, first_line
from nrt.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


SENTINEL = "nrt-sentinel"
"""A content that no template writes itself."""


class Chat:
    """Tokenises prompts and answers for a fast tokenizer that has the markers as special tokens.

    Attributes:
        start_id, end_id: ids of the markers. start_id is None if the layout has no START, or if the
            chat template writes START itself.
        end_of_turn_id: id that ends an assistant turn: the first control token that the template
            writes after it, else eos.
        turn_end_ids: `stop_ids` without END.
        stop_ids: END, end of turn, eos and `extra_end_ids`, which should include the model's
            generation_config.eos_token_id.
        control_ids: ids that no text can produce.
        unknown_id: id of text without a token; None if all text has tokens.
        opening: ids before any text: BOS if the tokenizer or the chat template begins with it.
        fingerprint: changes with anything that affects the ids of a text.

    Raises InputError if a marker or the chat template is missing, if no token ends a turn, if the
    template drops the content of user or assistant turns, or if it opens a trace with a token other
    than START.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        markers: MarkersConfig,
        extra_end_ids: Iterable[int] = (),
    ) -> None:
        if tokenizer.chat_template is None:
            raise InputError(
                "the tokenizer has no chat template; call nrt.data.ensure_template to set one"
            )
        check_default_template(tokenizer)
        self._tokenizer = tokenizer
        self._markers = markers
        self._shape_content = self._find_content_shape()
        self._markers = markers = self._drop_start_that_template_writes(markers)
        spec = json.loads(tokenizer.backend_tokenizer.to_str())
        template = self._template()
        special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
        inputs = [spec, template, special, markers.start, markers.end, tokenizer.eos_token_id]
        self.fingerprint = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()
        self.opening = self._find_opening()
        control = control_tokens(spec, template, markers)
        self._control_texts = tuple(control)
        self.start_id = None if markers.start is None else control[markers.start]
        self.end_id = control[markers.end]
        self.unknown_id = unknown_id(spec)
        self.control_ids = frozenset(control.values()) - {self.unknown_id}

        # Control tokens get one name where the template writes them, another where a text spells
        # them.
        names = private_names()
        token_names = {text: next(names) for text in control}
        self._to_token_names = Replacer(token_names)
        self._show_tokens = self._to_token_names.inverse()
        self._quote = Replacer({text: next(names) for text in control})
        self._unquote = self._quote.inverse()
        self._end_name = token_names[markers.end]
        spec = rename_tokens(spec, token_names)
        self._turn_tokenizer = build_tokenizer(spec)
        self._text_tokenizer = build_tokenizer(remove_dummy_prefix(spec))
        for text, token_id in control.items():
            if self._turn_tokenizer.token_to_id(token_names[text]) != token_id:
                raise InputError(
                    "the tokenizer's added tokens have gaps or duplicates; "
                    "save it again with transformers"
                )

        self.end_of_turn_id = self._find_end_of_turn(sentinel=next(names))
        ends = {self.end_id, self.end_of_turn_id, tokenizer.eos_token_id, *extra_end_ids}
        self.stop_ids = frozenset(token_id for token_id in ends if token_id is not None)
        self.turn_end_ids = self.stop_ids - {self.end_id}

    def encode_prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Return x: the turns in the chat template, up to where the assistant begins.

        The prompt never opens the trace. It equals
        `tokenizer.apply_chat_template(…, add_generation_prompt=True)` for text that spells no
        control token. Raises InputError if the template refuses the turns.
        """
        return self.encode_prompts([self.render_prompt(messages)])[0]

    def render_prompt(self, messages: Sequence[Message]) -> str:
        """Return the turns in the chat template, with control tokens under private names.

        `encode_prompts` takes this text.
        """
        if self._drops_system and any(message.role == "system" for message in messages):
            raise InputError(
                "the model's chat template drops system messages; "
                "remove them, or put their text into the question"
            )
        quoted = [
            {"role": message.role, "content": self._quote(message.content)} for message in messages
        ]
        rendered = self._render(quoted, add_generation_prompt=True)
        return self._unquote(self._to_token_names(rendered))

    @cached_property
    def _drops_system(self) -> bool:
        """True if the template renders a system message to nothing, without an error."""
        try:
            return not self._keeps_sentinel([("system", SENTINEL), ("user", "x")])
        except InputError:
            return False

    def encode_prompts(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Return the ids of many texts from `render_prompt`, computed on all cores."""
        encodings = self._turn_tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [tuple(encoding.ids) for encoding in encodings]

    def encode_answer(self, text: str) -> tuple[int, ...]:
        """Return y*: the ids of `encode_text`, then the id that ends the turn."""
        return self.encode_answers([text])[0]

    def encode_answers(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Return the ids of many answers, computed on all cores."""
        texts = [self._end_name + text for text in texts]
        encodings = self._text_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [(*encoding.ids[1:], self.end_of_turn_id) for encoding in encodings]

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Return the text as it continues after END: no BOS, no dummy prefix, no end of turn."""
        encoding = self._text_tokenizer.encode(self._end_name + text, add_special_tokens=False)
        return tuple(encoding.ids[1:])

    def encode_document(self, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return (ids, the character at which each token begins) of raw text.

        It gets no chat template, no BOS and no dummy prefix.
        """
        encoding = self._text_tokenizer.encode(self._end_name + text, add_special_tokens=False)
        starts = [max(0, start - len(self._end_name)) for start, _ in encoding.offsets[1:]]
        return tuple(encoding.ids[1:]), tuple(starts)

    def spelled_control_tokens(self, text: str) -> list[str]:
        """Return the control tokens that a user's text spells; they are read as plain text."""
        return self._quote.pattern.findall(text)

    def decode(self, ids: Iterable[int]) -> str:
        """Return a continuation's text for display, with control tokens as they are written."""
        text = self._text_tokenizer.decode(list(ids), skip_special_tokens=False)
        return self._show_tokens(text)

    def exported_template(self, *, open_trace: bool) -> str | dict[str, str]:
        """Return the tokenizer's template, or its templates by name, as exported with a model.

        `nrt.data.template` describes the changes.
        """

        def export(template: str) -> str:
            return exported_template(
                template, self._control_texts, self._markers, open_trace=open_trace
            )

        template = self._tokenizer.chat_template
        if isinstance(template, dict):
            return {name: export(text) for name, text in template.items()}
        return export(str(template))

    def _template(self) -> str:
        """Return the template without the additions of an export.

        They are not needed here: `Chat` quotes the contents, and opens no trace.
        """
        return original_template(self._tokenizer.get_chat_template(), self._markers)

    def _render(self, turns: list[dict[str, str]], add_generation_prompt: bool) -> str:
        shaped = [{**turn, "content": self._shape_content(turn["content"])} for turn in turns]
        try:
            text = self._tokenizer.apply_chat_template(
                shaped,
                chat_template=self._template(),
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        except Exception as error:  # any type, since Jinja runs the template's own code
            raise InputError(
                f"the model's chat template refuses these turns: {first_line(error):.300}"
            ) from None
        return str(text)

    def _keeps_sentinel(self, turns: Sequence[tuple[str, str]]) -> bool:
        """Return whether SENTINEL, the content of one of the turns, is in the rendered text."""
        records = [{"role": role, "content": content} for role, content in turns]
        return SENTINEL in self._render(records, add_generation_prompt=False)

    def _find_content_shape(self) -> Callable[[str], Any]:
        """Return how the template wants contents: as text, or as a list with one text part.

        A template that loops over parts finds none in a text and renders nothing, so that all
        questions would have the same ids.
        """
        turns = {
            "user": [("user", SENTINEL)],
            "assistant": [("user", "x"), ("assistant", SENTINEL)],
            "earlier": [("user", SENTINEL), ("assistant", "x"), ("user", "x")],
        }
        problems: list[InputError] = []
        for shape in (_as_text, _as_parts):
            self._shape_content = shape
            try:
                dropped = [role for role in turns if not self._keeps_sentinel(turns[role])]
            except InputError as error:
                problems.append(error)
                continue
            if not dropped:
                return shape
            problems.append(
                InputError(
                    f"the model's chat template drops the content of turns ({', '.join(dropped)}), "
                    "given as text or as parts; give the tokenizer another chat template"
                )
            )
        raise problems[0]

    def _drop_start_that_template_writes(self, markers: MarkersConfig) -> MarkersConfig:
        """Return the markers without START if the generation prompt opens a trace with START.

        Raises InputError if the generation prompt opens one with another token, since an unclosed
        tag would come before START.
        """
        user = {"role": "user", "content": "x"}
        assistant = {"role": "assistant", "content": SENTINEL}
        prompt = self._render([user], add_generation_prompt=True)
        generation_prompt = prompt.removeprefix(self._render([user], add_generation_prompt=False))
        conversation = self._render([user, assistant], add_generation_prompt=False)
        after_answer = conversation.partition(SENTINEL)[2]
        vocabulary = self._tokenizer.get_vocab()
        for opened in re.findall(r"<[^<>/\s]+>", generation_prompt):
            closing = f"</{opened[1:]}"
            after_opened = generation_prompt.rpartition(opened)[2]
            if opened == markers.start and markers.end not in after_opened:
                return markers.model_copy(update={"start": None})
            frames_the_turn = closing in after_answer
            if closing in vocabulary and closing not in after_opened and not frames_the_turn:
                raise InputError(
                    f"the model's chat template opens a trace itself, with {opened}; "
                    f"set markers.start='{opened}' and markers.end='{closing}', "
                    "or give the tokenizer another chat template"
                )
        return markers

    def _find_opening(self) -> tuple[int, ...]:
        bos, bos_text = self._tokenizer.bos_token_id, self._tokenizer.bos_token
        if not isinstance(bos_text, str) or bos is None:
            return ()
        prompt = self._render([{"role": "user", "content": "x"}], add_generation_prompt=True)
        begins_texts = prompt.startswith(bos_text) or self._tokenizer("x")["input_ids"][:1] == [bos]
        return (cast(int, bos),) if begins_texts else ()

    def _find_end_of_turn(self, sentinel: str) -> int:
        turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": sentinel}]
        rendered = self._render(turns, add_generation_prompt=False)
        after_answer = self._to_token_names(rendered).partition(sentinel)[2]
        match = self._show_tokens.pattern.search(after_answer)
        if match:
            return cast(int, self._turn_tokenizer.token_to_id(match[0]))
        if self._tokenizer.eos_token_id is None:
            raise InputError(
                "no token ends a turn: the chat template writes none, and tokenizer.eos_token "
                "is not set; set tokenizer.eos_token"
            )
        return self._tokenizer.eos_token_id


def _as_text(content: str) -> Any:
    return content


def _as_parts(content: str) -> Any:
    return [{"type": "text", "text": content}]
