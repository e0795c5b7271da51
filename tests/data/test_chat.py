"""Chat: the ids of a benign prompt are transformers' own, and no text becomes a control token."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from nrt.data import Chat, default_template, ensure_template, with_trace_opener
from nrt.errors import InputError
from nrt.types import Message
from tests.data.cases import (
    END,
    MARKERS,
    START,
    TEMPLATES,
    TOKENIZERS,
    Case,
    add_control,
    build_case,
    byte_level_bpe,
    unigram,
)

SINGLE = (Message("user", "What is the town?"),)
MULTI = (
    Message("system", "Yes or no"),
    Message("user", " What is  Paris?\n\n"),
    Message("assistant", "Paris is the town"),
    Message("user", "\tthe\ntown?\n"),
)


def reference(case: Case, messages: Sequence[Message], **kwargs: object) -> tuple[int, ...]:
    """Return the ids that transformers gives for the turns."""
    turns = [{"role": message.role, "content": message.content} for message in messages]
    return tuple(
        case.tokenizer.apply_chat_template(
            turns, tokenize=True, return_dict=False, add_generation_prompt=True, **kwargs
        )
    )


# --- prompts ---


@pytest.mark.parametrize(
    "messages",
    [SINGLE, MULTI, (*SINGLE, Message("assistant", "Yes"), *SINGLE)],
    ids=["single", "multi", "turns"],
)
def test_benign_prompts_equal_transformers(case: Case, messages: tuple[Message, ...]) -> None:
    assert case.chat.encode_prompt(messages) == reference(case, messages)


BENIGN = st.text(st.sampled_from("Paris the town is?!.,\n\t 0<|>/_sé漢\U0001f600"), max_size=30)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_benign_prompts_equal_transformers_for_any_text(tokenizer: str, template: str) -> None:
    case = build_case(tokenizer, template)

    @settings(max_examples=40, deadline=None)
    @given(system=BENIGN, question=BENIGN)
    def check(system: str, question: str) -> None:
        messages = (Message("system", system), Message("user", question))
        if not any(text in message.content for message in messages for text in case.control):
            assert case.chat.encode_prompt(messages) == reference(case, messages)

    check()


def test_control_strings_in_any_turn_are_plain_text(case: Case) -> None:
    """The prompt has the control ids of the same turns with harmless text, and still says what was written."""
    hostile = (
        "What " + " ".join(case.control) + "".join(case.control) + case.control[-1][:-1] + " end"
    )
    roles = ("system", "user", "assistant", "user")
    ids = case.chat.encode_prompt([Message(role, hostile) for role in roles])
    harmless = case.chat.encode_prompt([Message(role, "x") for role in roles])
    controls = case.chat.control_ids
    assert [token for token in ids if token in controls] == [
        token for token in harmless if token in controls
    ]
    assert case.chat.decode(ids).count(hostile) == 4


def test_the_trap_is_real(case: Case) -> None:
    """Without Chat, the same text does become control tokens, and in a Unigram vocabulary also with splitting switched on."""
    plain = case.tokenizer.encode(END, add_special_tokens=False)
    assert case.chat.end_id in plain
    if (
        "<unk>" in case.control
        and case.tokenizer.backend_tokenizer.model.__class__.__name__ == "Unigram"
    ):
        assert case.tokenizer.eos_token_id in case.tokenizer.encode(
            "</s>", add_special_tokens=False, split_special_tokens=True
        )


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_no_text_gives_a_control_id(tokenizer: str, template: str) -> None:
    case = build_case(tokenizer, template)
    pieces = st.sampled_from(
        [
            *case.control,
            *(text[:2] for text in case.control),
            *(text[2:] for text in case.control),
            " ",
            "\n",
            "Yes",
        ]
    )
    text = st.lists(pieces | st.text(max_size=3), max_size=8).map("".join)
    harmless = [
        token for token in case.chat.encode_prompt(SINGLE) if token in case.chat.control_ids
    ]

    @settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(text)
    def check(text: str) -> None:
        assert case.chat.control_ids.isdisjoint(case.chat.encode_text(text))
        prompt = case.chat.encode_prompt((Message("user", text),))
        assert [token for token in prompt if token in case.chat.control_ids] == harmless

    check()


def test_the_templates_trim_acts_on_the_content_itself() -> None:
    chat = build_case("byte-level", "llama3").chat
    assert chat.encode_prompt((Message("user", " <|eot_id|> \n"),)) == chat.encode_prompt(
        (Message("user", "<|eot_id|>"),)
    )


def test_added_tokens_of_the_template_are_control_even_if_not_special() -> None:
    tokenizer = byte_level_bpe()
    tokenizer.add_tokens(
        [AddedToken("<think>", special=False), AddedToken("<tool>", special=False)]
    )
    add_control(tokenizer, [START, END])
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}{% if false %}<think>{% endif %}"
    chat = Chat(tokenizer, MARKERS)
    think, tool = tokenizer.convert_tokens_to_ids(["<think>", "<tool>"])
    ids = chat.encode_prompt((Message("user", "<think><tool>"),))
    assert think in chat.control_ids
    assert tool not in chat.control_ids
    assert think not in ids
    assert tool in ids  # an ordinary added token: as transformers does


def test_one_character_and_white_space_are_never_control() -> None:
    """A pad token `!` and Gemma's added line feeds are the only spelling of their text."""
    tokenizer = byte_level_bpe()
    tokenizer.add_special_tokens({"pad_token": "!"})
    tokenizer.add_tokens([AddedToken("\n\n", special=False, normalized=False)])
    add_control(tokenizer, [START, END])
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content + eos_token + '\n\n' }}{% endfor %}"
    )
    chat = Chat(tokenizer, MARKERS)
    assert chat.decode(chat.encode_text("Yes!\n\nYes")) == "Yes!\n\nYes"
    assert chat.encode_prompt((Message("user", "Yes!\n\nYes"),)) == tuple(
        tokenizer.apply_chat_template(
            [{"role": "user", "content": "Yes!\n\nYes"}], return_dict=False
        )
    )


# --- answers ---


@pytest.mark.parametrize(
    "text",
    [
        "Paris",
        " Paris",
        "  the\n\ttown ",
        "</s>",
        "<unk>",
        "<|think_end|>Paris<|think_start|>",
        "\n",
        " ",
    ],
)
def test_answers_come_back(case: Case, text: str) -> None:
    *ids, last = case.chat.encode_answer(text)
    assert tuple(ids) == case.chat.encode_text(text)
    assert last == case.chat.end_of_turn_id
    assert case.chat.decode(ids) == text


@pytest.mark.parametrize(
    "tokenizer", [name for name in TOKENIZERS if name != "unigram"]
)  # the test's Unigram knows no é
def test_any_answer_comes_back(tokenizer: str) -> None:
    chat = build_case(tokenizer, "chatml").chat

    @settings(max_examples=40, deadline=None)
    @given(st.text(max_size=20).filter(lambda text: "▁" not in text))  # SentencePiece's own space
    def check(text: str) -> None:
        assert chat.decode(chat.encode_text(text)) == text

    check()


def test_decode_shows_control_tokens() -> None:
    chat = build_case("metaspace", "chatml").chat
    assert chat.start_id is not None
    ids = (chat.start_id, *chat.encode_text(" Yes"), chat.end_id, *chat.encode_answer("Paris"))
    assert chat.decode(ids) == "<|think_start|> Yes<|think_end|>Paris<|im_end|>"


# --- ends of turns ---


def test_end_of_turn_and_stop_ids() -> None:
    for tokenizer in TOKENIZERS:
        for template, end in (("base", "</s>"), ("chatml", "<|im_end|>"), ("llama3", "<|eot_id|>")):
            case = build_case(tokenizer, template)
            chat, ids = case.chat, case.tokenizer.convert_tokens_to_ids
            assert chat.end_of_turn_id == ids(end)
            assert chat.stop_ids == {ids(END), ids(end), ids("</s>")}
            assert Chat(case.tokenizer, MARKERS, extra_end_ids=[3]).stop_ids == chat.stop_ids | {3}


def test_a_template_that_writes_no_end_leaves_it_to_eos() -> None:
    tokenizer = byte_level_bpe()
    add_control(tokenizer, [START, END])
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    assert Chat(tokenizer, MARKERS).end_of_turn_id == tokenizer.eos_token_id
    tokenizer.eos_token = None
    with pytest.raises(InputError, match=r"no token ends a turn.*set tokenizer\.eos_token"):
        Chat(tokenizer, MARKERS)


# --- templates ---


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            byte_level_bpe,
            "<s><|system|>\na\n<|user|>\nb\n<|assistant|>\nc</s>\n<|user|>\nd\n<|assistant|>\n",
        ),
        (
            unigram,
            "<|system|>\na\n<|user|>\nb\n<|assistant|>\nc</s>\n<|user|>\nd\n<|assistant|>\n",
        ),  # writes no bos by itself
    ],
)
def test_our_template_by_hand(make, text: str) -> None:
    tokenizer = make()
    assert ensure_template(tokenizer)
    assert not ensure_template(tokenizer)
    turns = [
        {"role": r, "content": c}
        for r, c in (("system", "a"), ("user", "b"), ("assistant", "c"), ("user", "d"))
    ]
    assert tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == text


def test_a_tokenizer_without_eos_gets_no_template() -> None:
    tokenizer = byte_level_bpe()
    tokenizer.eos_token = None
    with pytest.raises(InputError, match=r"set tokenizer\.eos_token"):
        default_template(tokenizer)


@pytest.mark.parametrize("newline", ["", "\n", "\n\n", "\n  "])
def test_the_exported_template_opens_the_trace(case: Case, newline: str) -> None:
    """Unless `open_trace` is false; everything else renders as before."""
    before = case.tokenizer.chat_template + newline
    after = with_trace_opener(before, MARKERS)
    assert with_trace_opener(after, MARKERS) == after

    def text(template: str, generate: bool = True, **kwargs: bool) -> str:
        turns = [{"role": message.role, "content": message.content} for message in MULTI]
        rendered = case.tokenizer.apply_chat_template(
            turns, chat_template=template, tokenize=False, add_generation_prompt=generate, **kwargs
        )
        return str(rendered)

    assert text(after) == text(before) + START
    assert text(after, open_trace=True) == text(before) + START
    assert text(after, open_trace=False) == text(before)
    assert text(after, generate=False) == text(before, generate=False)


def test_chat_never_opens_the_trace() -> None:
    case = Case("byte-level", "chatml")
    case.tokenizer.chat_template = with_trace_opener(str(case.tokenizer.chat_template), MARKERS)
    exported = Chat(case.tokenizer, MARKERS)
    assert exported.encode_prompt(MULTI) == case.chat.encode_prompt(MULTI)
    assert exported.end_of_turn_id == case.chat.end_of_turn_id
    assert reference(case, MULTI) == (*case.chat.encode_prompt(MULTI), case.chat.start_id)


# --- errors ---


def test_missing_template_and_markers() -> None:
    tokenizer = byte_level_bpe()
    with pytest.raises(InputError, match=r"no chat template.*ensure_template"):
        Chat(tokenizer, MARKERS)
    ensure_template(tokenizer)
    with pytest.raises(
        InputError,
        match=r"no special token '<\|think_start\|>' \(markers\.start\); add the markers",
    ):
        Chat(tokenizer, MARKERS)
    add_control(tokenizer, [START])
    with pytest.raises(InputError, match=r"markers\.end"):
        Chat(tokenizer, MARKERS)


def test_a_template_that_refuses() -> None:
    tokenizer = byte_level_bpe()
    add_control(tokenizer, [START, END])
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{{ m.content + eos_token }}{% endfor %}"
    )
    with pytest.raises(
        InputError, match="chat template refuses these turns: System role not supported"
    ):
        Chat(tokenizer, MARKERS).encode_prompt(MULTI)


def test_a_template_that_drops_earlier_turns() -> None:
    tokenizer = byte_level_bpe()
    add_control(tokenizer, [START, END])
    tokenizer.chat_template = "{{ messages[-1].content + eos_token }}"
    with pytest.raises(InputError, match=r"drops the content of turns \(earlier\)"):
        Chat(tokenizer, MARKERS)


def test_word_level_with_unknown_words() -> None:
    """The unknown token comes from ordinary text, so it is not among the ids that text cannot give; its own string is not it."""
    vocab = {
        word: number
        for number, word in enumerate(
            ["<unk>", "<s>", "</s>", "\n", "what", "is", "it", "<|user|>", "<|assistant|>"]
        )
    }
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    add_control(tokenizer, [START, END])
    ensure_template(tokenizer)
    chat = Chat(tokenizer, MARKERS)
    assert chat.encode_text("what is that </s>") == (4, 5, 0, 0)
    assert chat.encode_answer("is it") == (5, 6, 2)
    assert chat.decode((5, 6)) == "is it"
    assert chat.control_ids == {1, 2, chat.start_id, chat.end_id}
