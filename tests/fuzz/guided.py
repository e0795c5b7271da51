"""Coverage-guided fuzzing by atheris (pip install atheris): python -m tests.fuzz.guided TARGET FOLDER [libFuzzer's options]

FOLDER keeps inputs that reached new code, e.g. -max_total_time=60 ends it; a fault ends it at once, and leaves its input.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris  # pyright: ignore

os.environ.setdefault("HF_HUB_OFFLINE", "1")

with atheris.instrument_imports(include=["nrt.config", "nrt.data", "yaml", "csv", "json"]):  # pyright: ignore
    from nrt.config import RowsConfig, dump_yaml, load_config, parse_yaml
    from nrt.data.files import find_tables
    from nrt.data.sources import iterate_examples

from nrt.errors import NrtError
from nrt.types import Message
from tests.data.cases import build_case
from tests.fuzz import inputs

FOLDER = Path(tempfile.mkdtemp())


def recipe(data: bytes) -> None:
    file = FOLDER / "recipe.yaml"
    file.write_bytes(data)
    text = dump_yaml(load_config(str(file)))
    assert dump_yaml(parse_yaml(text, "config.yaml")) == text


def rows(ending: str) -> Callable[[bytes], None]:
    def target(data: bytes) -> None:
        file = FOLDER / f"rows.{ending}"
        file.write_bytes(data)
        for table in find_tables(str(file)):
            list(iterate_examples(table, RowsConfig()))

    return target


CASES = [
    build_case(kind, template)
    for kind in ("byte-level", "unigram")
    for template in ("chatml", "llama3")
]
HARMLESS = [
    [
        token
        for token in case.chat.encode_prompt([Message("user", "x")])
        if token in case.chat.control_ids
    ]
    for case in CASES
]


def chat(data: bytes) -> None:
    text = data.decode("utf-8", "ignore").replace("\0", "")
    for case, harmless in zip(CASES, HARMLESS, strict=True):
        prompt = case.chat.encode_prompt([Message("user", text)])
        assert [token for token in prompt if token in case.chat.control_ids] == harmless
        assert case.chat.control_ids.isdisjoint(case.chat.encode_text(text))


TARGETS: dict[str, tuple[Callable[[bytes], None], list[bytes]]] = {
    "recipe": (recipe, inputs.RECIPES),
    "jsonl": (
        rows("jsonl"),
        [
            b'{"question": "a", "answer": "b"}\n',
            b'{"messages": [{"role": "user", "content": "a"}]}',
        ],
    ),
    "csv": (rows("csv"), [b"question,answer\na,b\n", b'question,answer\n"a\nb","c"\n']),
    "chat": (chat, [" ".join(case.control).encode() for case in CASES]),
}


def main() -> None:
    target, seeds = TARGETS[sys.argv[1]]
    corpus = Path(sys.argv[2])
    corpus.mkdir(exist_ok=True, parents=True)
    for number, seed in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(seed)

    def once(data: bytes) -> None:
        with contextlib.suppress(NrtError):
            target(data)

    atheris.Setup([sys.argv[0], *sys.argv[2:]], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
