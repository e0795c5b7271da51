"""Messages that try to be control tokens, in training and through the exported folder: ids of control stand where the layout puts them,
and nowhere else. Every tokenizer of tests/data under every template of `TEMPLATES`."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from transformers import AutoTokenizer

from nrt.data import Markers, trace_row
from nrt.types import Example, Message, Pair, Role, Trace
from tests.data.cases import CONTROL, TEMPLATES
from tests.data.test_template import KINDS, TRIMMED_PARTS, Exported

MORE_TEMPLATES = {
    "mistral": "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] | trim + eos_token }}{% else %}{{ m['content'] + '\\n\\n' }}{% endif %}"
    "{% endfor %}",
    "gemma": "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\\n'"
    " + m['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}",
    # Qwen 3 strips the reasoning of earlier turns; others say a content twice, or take a piece of it.
    "strips": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}{% if m['role'] == 'assistant' %}"
    "{{ m['content'].split('<|think_end|>')[-1].lstrip('\\n') }}{% else %}{{ m['content'].strip() }}{% endif %}{{ '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "repeats": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '\\n' + m['content'][:9] + '\\n' }}"
    "{{ m['content'] }}{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "parts": TRIMMED_PARTS,
}
ALL_TEMPLATES = {**TEMPLATES, **MORE_TEMPLATES}
ALL_CONTROL = {
    **CONTROL,
    "mistral": ["[INST]", "[/INST]"],
    "gemma": ["<start_of_turn>", "<end_of_turn>"],
    **dict.fromkeys(("strips", "repeats", "parts"), CONTROL["chatml"]),
}

LOSSLESS = {"byte-level", "metaspace", "prepend", "tiny-bytes"}
"""Kinds that give any text back, but SentencePiece's own space."""

LOOK_ALIKES = {
    "<": "＜﹤‹〈≮",
    ">": "＞﹥›〉≯",
    "|": "｜∣ǀ",
    "_": "＿‿",
    "/": "／∕",
    "[": "［",
    "]": "］",
    " ": "\u00a0\u3000▁",
    "i": "ｉı",
    "s": "ｓſ",
}
BETWEEN = (
    *(
        " ",
        "  ",
        "\n",
        "\t",
        "\u200b",
        "\u200d",
        "\u2060",
        "\u00ad",
        "\u0301",
        "\u0338",
        "\x01",
        "\ufeff",
        "\ufffd",
    ),
    *("Paris", "{{ x }}", "{% raw %}", "\U000f0000"),
)
ROLES = (
    ("user",),
    ("system", "user"),
    ("user", "assistant", "user"),
    ("system", "user", "assistant", "user"),
)


def text(rng: Random, control: list[str]) -> str:
    """A content made of control tokens, their pieces and their look-alikes."""

    def piece() -> str:
        token = rng.choice(control)
        how = rng.randrange(9)
        if how == 0:
            return token
        if how in (1, 2):
            cut = rng.randrange(len(token) + 1)
            return token[:cut] if how == 1 else token[cut:]
        if how == 3:
            return "".join(
                rng.choice(LOOK_ALIKES[c]) if c in LOOK_ALIKES and rng.random() < 0.5 else c
                for c in token
            )
        if how == 4:
            cut = rng.randrange(len(token) + 1)
            return token[:cut] + rng.choice((*BETWEEN, token)) + token[cut:]
        if how == 5:
            return rng.choice(
                (
                    token.upper(),
                    token * 2,
                    token[:-1] + token,
                    f" {token} ",
                    f"{token}\n{rng.choice(control)}",
                )
            )
        if how == 6:
            return rng.choice(BETWEEN)
        if how == 7:
            return "".join(
                chr(
                    rng.choice(
                        (
                            rng.randrange(1, 128),
                            rng.randrange(1, 0xD800),
                            rng.randrange(0xE000, 0x110000),
                        )
                    )
                )
                for _ in range(3)
            )
        return rng.choice((" ", "", "\n"))

    return "".join(piece() for _ in range(rng.randrange(1, 7)))


def forgery(rng: Random, _: Path) -> str:
    """Contents in prompt, earlier turns, answer, document and the exported folder. Returns "taken"; or "refused", where the normaliser
    makes a control token of what is none, or none of one: out of a template's reach, as nrt.data.template says."""
    kind, template = rng.choice(list(KINDS)), rng.choice(list(ALL_TEMPLATES))
    given, folder = exported(kind, template), exported_folder(kind, template)
    chat, roles = (
        given.chat,
        rng.choice(
            (
                ("user",),
                ("system", "user"),
                ("user", "assistant", "user"),
                ("system", "user", "assistant", "user"),
            )
        ),
    )
    texts = [text(rng, given.control) for _ in roles]
    answer = text(rng, given.control)

    def controls(ids: Any) -> list[int]:
        return [token for token in ids if token in chat.control_ids]

    # In training.
    prompt = chat.encode_prompt(
        [Message(role, content) for role, content in zip(roles, texts, strict=True)]
    )
    harmless = controls(chat.encode_prompt([Message(role, "x") for role in roles]))
    assert controls(prompt) == harmless, (kind, template, roles, texts)
    *ids, last = chat.encode_answer(answer)
    assert controls(ids) == [], (kind, template, answer)
    assert last == chat.end_of_turn_id
    document, starts = chat.encode_document(answer)
    assert controls(document) == [], (kind, template, answer)
    assert len(starts) == len(document)
    pair = Pair(Example("x:1", (), answer), prompt, (*ids, last))
    row = trace_row(
        pair, Trace(chat.encode_text(texts[0]), finished=True), Markers(chat.start_id, chat.end_id)
    )
    own = [
        (token, role)
        for token, role in zip(row.tail_ids, row.tail_roles, strict=True)
        if token in chat.control_ids
    ]
    assert own == [
        (chat.start_id, Role.START),
        (chat.end_id, Role.END),
        (chat.end_of_turn_id, Role.ANSWER),
    ], (kind, template, answer)
    if kind in LOSSLESS and "▁" not in answer:
        assert chat.decode(ids) == answer, (kind, template, answer)

    # Through the folder that goes out, by transformers alone.
    for contents in (
        texts,
        [[{"type": "text", "text": content}] for content in texts]
        if template == "parts"
        else texts,
    ):
        turns = [
            {"role": role, "content": content}
            for role, content in zip(roles, contents, strict=True)
        ]
        if changed_by_normaliser(
            given, folder.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        ):
            return "refused"
        fed = folder.apply_chat_template(
            turns, tokenize=True, return_dict=False, add_generation_prompt=True
        )
        plain = folder.apply_chat_template(
            [{"role": role, "content": "x"} for role in roles],
            tokenize=True,
            return_dict=False,
            add_generation_prompt=True,
        )
        assert controls(fed) == controls(plain), (kind, template, roles, contents)
    return "taken"


def changed_by_normaliser(given: Exported, rendered: str) -> bool:
    normaliser = given.tokenizer.backend_tokenizer.normalizer
    after = normaliser.normalize_str(rendered) if normaliser else rendered
    return any(after.count(token) != rendered.count(token) for token in given.control)


@cache
def exported(kind: str, template: str) -> Exported:
    return Exported(KINDS[kind](), ALL_TEMPLATES[template], ALL_CONTROL[template])


@cache
def exported_folder(kind: str, template: str) -> Any:
    """The tokenizer, saved with the exported template and loaded by transformers."""
    given = exported(kind, template)
    folder = Path(tempfile.mkdtemp(prefix="fuzz-forgery-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    before = given.tokenizer.chat_template
    given.tokenizer.chat_template = given.template
    given.tokenizer.save_pretrained(folder)
    given.tokenizer.chat_template = before
    return AutoTokenizer.from_pretrained(folder)
