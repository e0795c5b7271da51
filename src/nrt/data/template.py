"""Chat templates: the default for models without one, and the exported one, safe without nrt.

In training, `Chat` ensures that no text becomes a control token. Users of the trained model have
only its template, so the exported template does the same in Jinja. It begins by rebuilding
`messages`: in the contents, a space before the last character breaks every control token
(`<|think_end| >`). It ends by opening the trace. A text that spells none renders as before.

Why a space: normalisers of every kind keep it inside a text, while NFKC and BERT's cleaning drop
characters without width. Why before the last character: this breaks all overlapping occurrences,
except one that begins at that very character. Tokens that end as they begin are therefore replaced
twice. An inserted space never completes another token, since no token contains it (if one does,
another character is taken). So only tokens that the text spells at first need to be replaced. Text
parts that only together spell a token, even after a template's `trim`, are separated as well.

Only contents are rebuilt: roles, tool calls, tools and documents stay as they are. A template
cannot undo the work of a normaliser, where tokens are matched after it. NFKC makes a control token
of `＜/s＞` in full width, if `</s>` is a piece of the vocabulary. A combining stroke that begins a
content unmakes the `<s>` right before it. `Chat` handles both. The tests go through transformers,
which also renders for vLLM. vLLM decides by a template's loops whether contents may be lists; the
loops here do not look like such loops.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from nrt.config import MarkersConfig
from nrt.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_BEGIN = "{# nrt: control tokens in contents are text #}"
_END = "{# nrt: the template itself #}"

_REBUILD_MESSAGES = """
{% macro nrt_text(text) %}
{% set nrt = namespace(text=text) %}
{% for start, tokens in TOKENS %}{% if start in text %}
{% for token in tokens | select('in', text) %}
{% set nrt.text = nrt.text.replace(token,
 token[:-1] ~ SPACE ~ token[-1:] if token | length > 1 else SPACE) %}
{% endfor %}{% endif %}{% endfor %}
{{ nrt.text }}
{% endmacro %}
{% set nrt = namespace(messages=[]) %}
{% for nrt_message in messages %}
{% set nrt.message = nrt_message %}
{% set nrt.value = nrt_message.content %}
{% if nrt.value is string %}
{% set nrt.message = dict(nrt_message, content=nrt_text(nrt.value)) %}
{% elif nrt.value is defined and nrt.value is iterable and nrt.value is not mapping %}
{% set nrt.parts = [] %}
{% set nrt.before = '' %}
{% for nrt_part in nrt.value %}
{% set nrt.part = nrt_part %}
{% set nrt.text = nrt_part if nrt_part is string else nrt_part.text %}
{% if nrt.text is string %}
{% set nrt.text = nrt_text(nrt.text) %}
{% set nrt.joined = nrt.before ~ (nrt.text | trim) %}
{% if nrt_text(nrt.joined) != nrt.joined %}{% set nrt.text = DASH ~ nrt.text %}{% endif %}
{% set nrt.before = nrt.before ~ (nrt.text | trim) %}
{% set nrt.part = nrt.text if nrt_part is string else dict(nrt_part, text=nrt.text) %}
{% endif %}
{% set nrt.parts = nrt.parts + [nrt.part] %}
{% endfor %}
{% set nrt.message = dict(nrt_message, content=nrt.parts) %}
{% endif %}
{% set nrt.messages = nrt.messages + [nrt.message] %}
{% endfor %}
{% set messages = nrt.messages %}
"""
"""Jinja code; `_prologue` removes line feeds and replaces SPACE, DASH and TOKENS by literals."""


def exported_template(
    template: str, control: Iterable[str], markers: MarkersConfig, *, open_trace: bool
) -> str:
    """Return the template to export.

    It breaks the `control` texts in contents, and with `open_trace` its generation prompt ends with
    START. It renders as `template` where no content spells a control token. Idempotent.
    """
    template = original_template(template, markers)
    # trim_blocks removes one newline after the prologue. A template that begins without white space
    # needs none.
    prologue = _prologue(tuple(control)) + ("\n" if template[:1].isspace() else "")
    return prologue + (with_trace_opener(template, markers) if open_trace else template)


def original_template(template: str, markers: MarkersConfig) -> str:
    """Return the template that `exported_template` received, or one that renders alike.

    The two may differ in one line feed at the very end, which Jinja ignores.
    """
    if template.startswith(_BEGIN):
        template = template.partition(_END)[2].removeprefix("\n")
    opener = _opener(markers)
    if opener and template.endswith(opener):
        return template.removesuffix(opener) + "\n"
    return template


def with_trace_opener(template: str, markers: MarkersConfig) -> str:
    """Return the template whose generation prompt ends with START. Idempotent.

    Rendering with `open_trace=False` leaves START out.
    """
    opener = _opener(markers)
    if template.endswith(opener):
        return template
    # Jinja drops one newline at the end of a template, but not before a block.
    return template.removesuffix("\n") + opener


def exported_without_trace(template: str, markers: MarkersConfig) -> bool:
    """Return whether the template was exported with `open_trace=False`, for a model without traces.

    False for templates that nrt did not export, which do not tell.
    """
    opener = _opener(markers)
    return template.startswith(_BEGIN) and bool(opener) and not template.endswith(opener)


def ensure_template(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Set `default_template` if the tokenizer has no chat template; return whether it was set.

    Raises InputError as `check_default_template` does.
    """
    if tokenizer.chat_template is not None:
        check_default_template(tokenizer)
        return False
    tokenizer.chat_template = default_template(tokenizer)
    return True


def has_default_template(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Return True if the chat template is the one that `ensure_template` sets."""
    template = tokenizer.chat_template
    return tokenizer.eos_token is not None and template == default_template(tokenizer)


def check_default_template(tokenizer: PreTrainedTokenizerFast) -> None:
    """Raise InputError if the tokenizer has several chat templates and none is the default."""
    templates = tokenizer.chat_template
    if isinstance(templates, dict) and "default" not in templates:
        names = ", ".join(map(str, templates)) or "none"
        raise InputError(
            f"the tokenizer's chat templates have names ({names:.200}), and none is 'default'; "
            "give it one chat template"
        )


def default_template(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return the template of Tulu's turns: `<|user|>\\n…\\n<|assistant|>\\n…{eos}\\n`.

    It begins with bos if the tokenizer itself writes one. Source: arXiv 2411.15124.
    Raises InputError if the tokenizer has no eos token.
    """
    if tokenizer.eos_token is None:
        raise InputError(
            "the tokenizer has neither a chat template nor an eos token; set tokenizer.eos_token"
        )
    bos_id = tokenizer.bos_token_id
    writes_bos = bos_id is not None and tokenizer("x")["input_ids"][:1] == [bos_id]
    return (
        ("{{ bos_token }}" if writes_bos else "")
        + "{% for message in messages %}"
        + r"{{ '<|' + message['role'] + '|>\n' + message['content'] }}"
        + "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
        + r"{{ '\n' }}"
        + "{% endfor %}"
        + r"{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    )


def _opener(markers: MarkersConfig) -> str:
    if markers.start is None:
        return ""
    condition = "add_generation_prompt and (open_trace is not defined or open_trace)"
    # The plus sign keeps Jinja's lstrip_blocks from removing white space before the block.
    return f"{{%+ if {condition} %}}{{{{ {_literal(markers.start)} }}}}{{% endif %}}"


def _prologue(control: tuple[str, ...]) -> str:
    """Return Jinja code that rebinds `messages`.

    It writes nothing, and loops over no name that holds a content (see vLLM above).
    """
    # Grouped by their first two characters: most texts contain none of these beginnings, and even
    # vocabularies with thousands of control tokens have few of them.
    by_start: dict[str, list[str]] = {}
    for text in control:
        times = 2 if text[0] == text[-1] else 1
        by_start.setdefault(text[:2], []).extend([text] * times)
    used = set("".join(control))
    space = next(c for c in map(chr, range(0x20, 0xD800)) if c not in used)
    # Unlike a space, a dash between parts survives `trim`.
    candidates = map(chr, range(0x2D, 0xD800))
    dash = next(c for c in candidates if c not in used and not c.isspace())
    literals = {
        "SPACE": _literal(space),
        "DASH": _literal(dash),
        "TOKENS": _literal(list(by_start.items())),
    }
    code = _REBUILD_MESSAGES
    for name, literal in literals.items():
        code = code.replace(name, literal)
    return _BEGIN + code.replace("\n", "") + _END


def _literal(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)  # JSON's strings and lists are Jinja's
