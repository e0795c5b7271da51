"""Chat turns and answers → token ids. The one place that knows control tokens.

Control tokens are the two markers, every special token, and every added token that stands in the chat template. Where somebody's
text spells one, it is tokenised as plain text; only the template writes control ids. The backend tokenizer is copied and its
control tokens are renamed to strings that nobody can write: then one ordinary tokenisation is right by construction.
(transformers 5.23 has `sanitize_control_tokens`. It drops private-use characters from the text, tokenises around each find
separately, and fails where the vocabulary itself holds the string, as SentencePiece's `</s>`.)

Left alone: a special token of one character (a pad token `!`), whose text has no other spelling; added tokens of white space;
the unknown token, which any unknown character gives. If a template has text of its own beside a content, and both together spell
a control token, it counts as the template's.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from nrt.config import MarkersConfig
from nrt.data.backend import Spec, build, renamed, unknown_id, without_dummy_prefix
from nrt.data.template import check_default, exported_template, original_template
from nrt.errors import InputError, first_line
from nrt.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


SENTINEL = "nrt-sentinel"
"""A content that no template writes of its own."""


class Chat:
    """Tokenises prompts and answers for a fast tokenizer that already holds the markers as special tokens.

    start_id, end_id    the two markers; start_id is None where the layout has no START, or the chat template writes it itself
    end_of_turn_id      what ends an assistant turn: the first control token that the template writes after it, else eos
    stop_ids            END, end of turn, eos and `extra_end_ids` (the model's generation_config.eos_token_id belongs there)
    control_ids         ids that no text can produce
    unknown_id          what any text without a token of its own becomes; None where every text has tokens
    opening             what stands before any text: BOS where the tokenizer or the chat template begins with it
    fingerprint         changes with anything that decides which ids a text becomes

    Raises InputError if the markers or the chat template are missing, if nothing ends a turn, if the template drops what a user or
    an assistant says, or opens a trace with another token than START.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, markers: MarkersConfig, extra_end_ids: Iterable[int] = ()) -> None:
        if tokenizer.chat_template is None:
            raise InputError("the tokenizer has no chat template; nrt.data.ensure_template gives it one")
        check_default(tokenizer)
        self._tokenizer = tokenizer
        self._contents = _as_text
        self._markers = markers
        self._contents = self._find_contents()
        self._markers = markers = self._without_start_that_is_open(markers)
        spec = json.loads(tokenizer.backend_tokenizer.to_str())
        decides = [spec, self._template(), markers.start, markers.end, tokenizer.eos_token_id]
        self.fingerprint = hashlib.sha256(json.dumps(decides).encode()).hexdigest()
        self.opening = self._find_opening()
        control = _control_tokens(spec, self._template(), markers)
        self._control_texts = tuple(control)
        self.start_id = None if markers.start is None else control[markers.start]
        self.end_id = control[markers.end]
        self.unknown_id = unknown_id(spec)
        self.control_ids = frozenset(control.values()) - {self.unknown_id}

        new_name = _private_names()
        own = {text: next(new_name) for text in control}  # what the template writes
        quoted = {text: next(new_name) for text in control}  # what somebody's text spells
        self._own, self._show = _Swap(own), _Swap(_inverse(own))
        self._quote, self._unquote = _Swap(quoted), _Swap(_inverse(quoted))
        self._end_name = own[markers.end]
        spec = renamed(spec, own)
        self._turns, self._continuation = build(spec), build(without_dummy_prefix(spec))
        if any(self._turns.token_to_id(own[text]) != token_id for text, token_id in control.items()):
            raise InputError("the tokenizer's added tokens have gaps or duplicates; save it again with transformers")

        self.end_of_turn_id = self._find_end_of_turn(sentinel=next(new_name))
        ends = {self.end_id, self.end_of_turn_id, tokenizer.eos_token_id, *extra_end_ids}
        self.stop_ids = frozenset(token_id for token_id in ends if token_id is not None)

    def encode_prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """x: the turns through the chat template, up to where the assistant begins; the trace is never opened.

        Equals `tokenizer.apply_chat_template(…, add_generation_prompt=True)` for text that spells no control token.
        Raises InputError if the template refuses the turns.
        """
        return self.encode_prompts([self.prompt_text(messages)])[0]

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """What `encode_prompts` takes: the turns through the chat template, with control tokens under private names."""
        quoted = [{"role": message.role, "content": self._quote(message.content)} for message in messages]
        if self._drops_system and any(message.role == "system" for message in messages):
            raise InputError("the model's chat template drops system messages; leave them out, or put their text into the question")
        return self._unquote(self._own(self._render(quoted, generate=True)))

    @cached_property
    def _drops_system(self) -> bool:
        """The template renders a system message to nothing (one that refuses it says so itself)."""
        try:
            return not self._shows([("system", SENTINEL), ("user", "x")])
        except InputError:
            return False

    def encode_prompts(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Many prompts at once, on all cores, from `prompt_text`."""
        return [tuple(found.ids) for found in self._turns.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_answer(self, text: str) -> tuple[int, ...]:
        """y*: `encode_text`, then the token that ends the turn."""
        return self.encode_answers([text])[0]

    def encode_answers(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Many answers at once, on all cores."""
        texts = [self._end_name + text for text in texts]
        return [(*found.ids[1:], self.end_of_turn_id) for found in self._continuation.encode_batch_fast(texts, add_special_tokens=False)]

    def encode_text(self, text: str) -> tuple[int, ...]:
        """The text as it continues after END: no BOS, no dummy prefix, no end of turn."""
        return tuple(self._continuation.encode(self._end_name + text, add_special_tokens=False).ids[1:])

    def encode_document(self, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(ids, the character at which each token begins) of raw text: no chat template, no BOS, no dummy prefix."""
        found = self._continuation.encode(self._end_name + text, add_special_tokens=False)
        return tuple(found.ids[1:]), tuple(max(0, begin - len(self._end_name)) for begin, _ in found.offsets[1:])

    def spelled(self, text: str) -> list[str]:
        """The control tokens that somebody's text spells, which are read as plain text."""
        return self._quote.pattern.findall(text)

    def decode(self, ids: Iterable[int]) -> str:
        """A continuation's text, for display: control tokens are shown as they are written."""
        return self._show(self._continuation.decode(list(ids), skip_special_tokens=False))

    def exported_template(self, *, open_trace: bool) -> str | dict[str, str]:
        """The tokenizer's template, or its templates by name, as they go out with a trained model: see nrt.data.template."""

        def export(template: str) -> str:
            return exported_template(template, self._control_texts, self._markers, open_trace=open_trace)

        given = self._tokenizer.chat_template
        return {name: export(text) for name, text in given.items()} if isinstance(given, dict) else export(str(given))

    def _template(self) -> str:
        """Of an exported tokenizer, too, the template itself: contents come quoted, and nobody asks for an opened trace."""
        return original_template(self._tokenizer.get_chat_template(), self._markers)

    def _render(self, turns: list[dict[str, str]], generate: bool) -> str:
        shaped = [{**turn, "content": self._contents(turn["content"])} for turn in turns]
        try:
            text = self._tokenizer.apply_chat_template(
                shaped, chat_template=self._template(), tokenize=False, add_generation_prompt=generate
            )
        except Exception as error:  # of any kind: Jinja runs the template's own code
            raise InputError(f"the model's chat template refuses these turns: {first_line(error):.300}") from None
        return str(text)

    def _shows(self, turns: Sequence[tuple[str, str]]) -> bool:
        """SENTINEL, which is the content of one of the turns, stands in the rendered text."""
        return SENTINEL in self._render([{"role": role, "content": content} for role, content in turns], generate=False)

    def _find_contents(self) -> Callable[[str], Any]:
        """How the template wants contents: as text or, where it loops over parts, as a list with one text part.

        A template that loops over parts finds none in a string and renders nothing: all questions would have the same ids.
        """
        turns = {"user": [("user", SENTINEL)], "assistant": [("user", "x"), ("assistant", SENTINEL)]}
        for self._contents in (_as_text, _as_parts):
            try:
                if all(self._shows(those) for those in turns.values()):
                    return self._contents
            except InputError:
                if self._contents is _as_parts:
                    raise
        dropped = [role for role, those in turns.items() if not self._shows(those)]
        raise InputError(
            f"the model's chat template drops what the {' and the '.join(dropped)} says, given as text or as parts; give the tokenizer "
            "another chat template"
        )

    def _without_start_that_is_open(self, markers: MarkersConfig) -> MarkersConfig:
        """The markers, without START where the template's generation prompt opens a trace with it.

        Raises InputError where it opens one with another token: an unclosed tag would stand before START.
        """
        user = [{"role": "user", "content": "x"}]
        rendered = self._render(user, generate=True)
        added = rendered.removeprefix(self._render(user, generate=False))
        after_answer = self._render([*user, {"role": "assistant", "content": SENTINEL}], generate=False).partition(SENTINEL)[2]
        vocabulary = self._tokenizer.get_vocab()
        for opened in re.findall(r"<[^<>/\s]+>", added):
            closing = f"</{opened[1:]}"
            if opened == markers.start and markers.end not in added.rpartition(opened)[2]:
                return markers.model_copy(update={"start": None})
            frames_the_turn = closing in after_answer
            if closing in vocabulary and closing not in added.rpartition(opened)[2] and not frames_the_turn:
                raise InputError(
                    f"the model's chat template opens a trace itself, with {opened}; set markers.start='{opened}' and "
                    f"markers.end='{closing}', or give the tokenizer another chat template"
                )
        return markers

    def _find_opening(self) -> tuple[int, ...]:
        bos, text = self._tokenizer.bos_token_id, self._tokenizer.bos_token
        if not isinstance(text, str) or bos is None:
            return ()
        by_template = self._render([{"role": "user", "content": "x"}], generate=True).startswith(text)
        return (cast(int, bos),) if by_template or self._tokenizer("x")["input_ids"][:1] == [bos] else ()

    def _find_end_of_turn(self, sentinel: str) -> int:
        turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": sentinel}]
        after = self._own(self._render(turns, generate=False)).partition(sentinel)[2]
        if found := self._show.pattern.search(after):
            return cast(int, self._turns.token_to_id(found[0]))
        if self._tokenizer.eos_token_id is None:
            raise InputError("nothing ends a turn: neither the chat template nor tokenizer.eos_token; set tokenizer.eos_token")
        return self._tokenizer.eos_token_id


def _as_text(content: str) -> Any:
    return content


def _as_parts(content: str) -> Any:
    return [{"type": "text", "text": content}]


class _Swap:
    """Replaces every key of a table that stands in a text by its value, in one pass, the longest key first."""

    def __init__(self, table: Mapping[str, str]) -> None:
        self.table = table
        self.pattern = re.compile("|".join(re.escape(key) for key in sorted(table, key=len, reverse=True)))

    def __call__(self, text: str) -> str:
        return self.pattern.sub(lambda found: self.table[found[0]], text)


def _control_tokens(spec: Spec, template: str, markers: MarkersConfig) -> dict[str, int]:
    """Text and id of each control token. Raises InputError if a marker is not a special token."""
    if markers.start == markers.end:
        raise InputError(f"markers.start and markers.end are both '{markers.start}'; set two different texts")
    special = {token["content"] for token in spec["added_tokens"] if token["special"]}
    for name, text in (("start", markers.start), ("end", markers.end)):
        if text is not None and text not in special:
            raise InputError(f"the tokenizer has no special token '{text}' (markers.{name}); add the markers to model and tokenizer first")

    def is_control(text: str) -> bool:
        if text in (markers.start, markers.end):
            return True
        return len(text) > 1 and not text.isspace() and (text in special or text in template)

    return {token["content"]: token["id"] for token in spec["added_tokens"] if is_control(token["content"])}


def _private_names() -> Iterator[str]:
    """Endless distinct strings of private-use characters (plane 15), equally long, with 128 random bits in each."""
    nonce, count = secrets.token_hex(16), 0
    while True:
        yield "".join(chr(0xF0000 + int(digit, 16)) for digit in f"{nonce}{count:08x}")
        count += 1


def _inverse(table: Mapping[str, str]) -> dict[str, str]:
    return {value: key for key, value in table.items()}
