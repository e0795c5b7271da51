"""Chat templates: ours for models without one, and the one to export, which needs no nrt to be safe.

In training, `Chat` sees to it that no text becomes a control token. Whoever uses the trained model has only its template, so the
exported one does the like in Jinja: it begins by rebuilding `messages`, every control token in a content broken by a space before
its last character (`<|think_end| >`), and ends by opening the trace. A text that spells none renders as it always did.

Why a space, and there: normalisers of every kind keep it inside a text, while NFKC and BERT's cleaning drop what has no width; and a
break before the last character breaks all overlapping occurrences but one that begins at that very character, for which tokens that
end as they begin are gone through twice. A space that is put in never completes another token, since none contains it (where one
does, another character is taken), so only tokens that the text spells to begin with are gone through. Text parts that only together
spell a token, even after a template's `trim`, are told apart as well.

Contents alone are rebuilt: roles, tool calls, tools and documents go through as they are. Out of a template's reach is what only a
normaliser makes into a control token, where tokens are looked for after it: `＜/s＞` of full width under NFKC, if `</s>` is a piece of
the vocabulary; or unmakes: a combining stroke that begins a content right after `<s>`. `Chat` holds there too. Tested through
transformers, which also renders for vLLM; vLLM tells from the template's loops whether contents
may be lists, and the loops here do not look like such.
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


def exported_template(template: str, control: Iterable[str], markers: MarkersConfig, *, open_trace: bool) -> str:
    """The template to export: contents lose the `control` texts, and with `open_trace` the generation prompt ends with START.

    Renders as `template` where no content spells a control token. Idempotent.
    """
    template = original_template(template, markers)
    # trim_blocks takes one newline after the prologue; without white space at its beginning a template needs none.
    prologue = _prologue(tuple(control)) + ("\n" if template[:1].isspace() else "")
    return prologue + (with_trace_opener(template, markers) if open_trace else template)


def original_template(template: str, markers: MarkersConfig) -> str:
    """What `exported_template` was made from, or what renders alike: one line feed at the very end of a template is nothing to Jinja."""
    if template.startswith(_BEGIN):
        template = template.partition(_END)[2].removeprefix("\n")
    opener = _opener(markers)
    return template.removesuffix(opener) + "\n" if opener and template.endswith(opener) else template


def with_trace_opener(template: str, markers: MarkersConfig) -> str:
    """The template whose generation prompt ends with START, unless `open_trace=False` is given. Idempotent."""
    opener = _opener(markers)
    if template.endswith(opener):
        return template
    return template.removesuffix("\n") + opener  # Jinja drops one newline at the end of a template, but not before a block


def answers_at_once(template: str, markers: MarkersConfig) -> bool:
    """Whether this was exported with a model that does not think (`open_trace=False`); other templates say nothing."""
    exported = template.startswith(_BEGIN)
    return exported and bool(opener := _opener(markers)) and not template.endswith(opener)


def ensure_template(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Gives a tokenizer without a chat template `default_template`; says whether it did. Raises InputError as `check_default` does."""
    if tokenizer.chat_template is not None:
        check_default(tokenizer)
        return False
    tokenizer.chat_template = default_template(tokenizer)
    return True


def check_default(tokenizer: PreTrainedTokenizerFast) -> None:
    """Raises InputError for several chat templates of which none is the default."""
    given = tokenizer.chat_template
    if isinstance(given, dict) and "default" not in given:
        names = ", ".join(map(str, given)) or "none"
        raise InputError(f"the tokenizer's chat templates have names ({names:.200}), and none is 'default'; give it one chat template")


def default_template(tokenizer: PreTrainedTokenizerFast) -> str:
    """Tulu's turns for base models: `<|user|>\\n…\\n<|assistant|>\\n…{eos}\\n`, after bos where the tokenizer itself writes one.

    Source: arXiv 2411.15124. Raises InputError if the tokenizer has no eos token.
    """
    if tokenizer.eos_token is None:
        raise InputError("the tokenizer has neither a chat template nor an eos token; set tokenizer.eos_token")
    writes_bos = tokenizer.bos_token_id is not None and tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]
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
    # The plus sign keeps Jinja's lstrip_blocks from touching what stands before.
    asked = "add_generation_prompt and (open_trace is not defined or open_trace)"
    return f"{{%+ if {asked} %}}{{{{ {_literal(markers.start)} }}}}{{% endif %}}"


def _prologue(control: tuple[str, ...]) -> str:
    """Jinja that rebinds `messages`. It writes nothing, and loops over no name that holds a content (see above, vLLM)."""
    by_start: dict[str, list[str]] = {}  # most texts hold none of the beginnings, and vocabularies with thousands of tokens few
    for text in control:
        by_start.setdefault(text[:2], []).extend([text] * (1 + (text[0] == text[-1])))
    used = set("".join(control))
    space = next(c for c in map(chr, range(0x20, 0xD800)) if c not in used)
    dash = next(c for c in map(chr, range(0x2D, 0xD800)) if c not in used and not c.isspace())  # what `trim` leaves between parts
    code = """
{% macro nrt_text(text) %}
{% set nrt = namespace(text=text) %}
{% for start, tokens in TOKENS %}{% if start in text %}{% for token in tokens | select('in', text) %}
{% set nrt.text = nrt.text.replace(token, token[:-1] ~ SPACE ~ token[-1:] if token | length > 1 else SPACE) %}
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
    for name, text in (("SPACE", _literal(space)), ("DASH", _literal(dash)), ("TOKENS", _literal(list(by_start.items())))):
        code = code.replace(name, text)
    return _BEGIN + code.replace("\n", "") + _END


def _literal(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)  # JSON's strings and lists are Jinja's
