"""Small tokenizers of three families, built by hand, and chat templates for the tests of nrt.data."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import PreTrainedTokenizerFast

from nrt.config import MarkersConfig
from nrt.data import Chat, ensure_template

MARKERS = MarkersConfig()
START, END = str(MARKERS.start), MARKERS.end
WORDS = [
    "Paris",
    "▁Paris",
    "▁is",
    "▁the",
    "▁town",
    "user",
    "system",
    "assistant",
    "What",
    "▁Yes",
    "Yes",
]
CHARACTERS = [chr(c) for c in range(0x20 + 1, 0x7F)] + ["\n", "\t"]

TEMPLATES = {
    "base": None,  # no chat template: nrt gives its own
    "chatml": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "llama3": "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' }}"
    "{{ m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
}
CONTROL = {
    "base": [],
    "chatml": ["<|im_start|>", "<|im_end|>"],
    "llama3": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
}


def byte_level_bpe(space_first: bool = False) -> PreTrainedTokenizerFast:
    """BPE like GPT-2, Llama 3 and Qwen; `space_first` like RoBERTa. Merges also build the eos string."""
    words = [word.replace("▁", "Ġ") for word in WORDS]
    merges = _merges([*words, "<s>", "</s>"])
    vocab = _numbered(
        [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    )
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space_first)
    tokenizer.decoder = decoders.ByteLevel()
    return _finished(tokenizer, bos=True)


def unigram() -> PreTrainedTokenizerFast:
    """Unigram like T5 and other SentencePiece models: `</s>` is a piece, the best one for its text."""
    pieces = [
        ("<unk>", 0.0),
        ("<s>", 0.0),
        ("</s>", 0.0),
        ("▁", -3.0),
        *((word, -4.0) for word in WORDS),
        *((c, -6.0) for c in CHARACTERS),
    ]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    return _finished(tokenizer, bos=False)


def metaspace_bpe() -> PreTrainedTokenizerFast:
    """BPE over Metaspace with byte fallback, like Mistral."""
    tokenizer = Tokenizer(_byte_fallback_bpe())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = _llama_decoder()
    return _finished(tokenizer, bos=True)


def prepend_bpe() -> PreTrainedTokenizerFast:
    """BPE whose dummy prefix is a normalizer, like Llama 2."""
    tokenizer = Tokenizer(_byte_fallback_bpe())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = _llama_decoder()
    return _finished(tokenizer, bos=True)


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte-level": byte_level_bpe,
    "byte-level-space": lambda: byte_level_bpe(space_first=True),
    "unigram": unigram,
    "metaspace": metaspace_bpe,
    "prepend": prepend_bpe,
}


class Case:
    """One tokenizer under one template, with the markers in it."""

    def __init__(self, tokenizer: str, template: str) -> None:
        self.tokenizer = TOKENIZERS[tokenizer]()
        add_control(self.tokenizer, [*CONTROL[template], START, END])
        self.tokenizer.chat_template = TEMPLATES[template]
        ensure_template(self.tokenizer)
        self.chat = Chat(self.tokenizer, MARKERS)
        self.control = [token.content for token in self.tokenizer.added_tokens_decoder.values()]


def add_control(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> None:
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in texts])


_CASES: dict[tuple[str, str], Case] = {}


def build_case(tokenizer: str, template: str) -> Case:
    """Return a case, built once; no test may change it."""
    if (tokenizer, template) not in _CASES:
        _CASES[tokenizer, template] = Case(tokenizer, template)
    return _CASES[tokenizer, template]


def _byte_fallback_bpe() -> models.BPE:
    merges = _merges(WORDS)
    vocab = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{b:02X}>" for b in range(256)),
        "▁",
        *CHARACTERS,
        *("".join(pair) for pair in merges),
    ]
    return models.BPE(
        vocab=_numbered(vocab), merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )


def _llama_decoder() -> decoders.Decoder:
    return decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )


def _merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Merges that build each word from its left, one character at a time."""
    pairs = [(word[:i], word[i]) for word in words for i in range(1, len(word))]
    return list(dict.fromkeys(pairs))


def _numbered(tokens: Iterable[str]) -> dict[str, int]:
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}


def _finished(tokenizer: Tokenizer, bos: bool) -> PreTrainedTokenizerFast:
    unknown = "<unk>" if tokenizer.token_to_id("<unk>") == 0 else None
    specials = [text for text in (unknown, "<s>", "</s>") if text]
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in specials]
    )
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token=unknown
    )
