"""Bad input, made by a `random.Random`: hypothesis's in the default suite, which then shrinks what fails; a seeded one in the long run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import yaml

from nrt.config import Config, dump_yaml, packaged_recipes

ODD_BYTES = (
    b"\x00",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\xc3",
    b"\r",
    b"\n",
    b"\x1a",
    b"\xe2\x80\xa8",
    b'"',
    b"{",
    b"[",
    b"\\",
    b"\x85",
    b"\t",
)
ODD_TEXTS = (
    "",
    " ",
    "\x00",
    "\ud800",
    "a\nb",
    "\u2028",
    "\x85",
    "🧪",
    "…" * 300,
    "-1",
    "1e999",
    "nan",
    "null",
    "../..",
    "/",
    "~",
    "a:b",
    "<|think_end|>",
    "{x[0].y!r:>9}",
    "{",
    "%s",
)
ODD_NUMBERS = (
    0,
    -1,
    1,
    2**31,
    2**63,
    10**30,
    10**400,
    0.5,
    -0.0,
    1e-320,
    1e308,
    float("inf"),
    float("-inf"),
    float("nan"),
    True,
    False,
)


def value(rng: Random, depth: int = 2) -> Any:
    """Anything that JSON or YAML can hold."""
    kind = rng.randrange(7 if depth else 4)
    if kind == 0:
        return None
    if kind == 1:
        return rng.choice(ODD_NUMBERS)
    if kind in (2, 3):
        return rng.choice(ODD_TEXTS)
    if kind in (4, 5):
        return [value(rng, depth - 1) for _ in range(rng.randrange(4))]
    return {
        rng.choice((*ODD_TEXTS, "path", "at", "rank")): value(rng, depth - 1)
        for _ in range(rng.randrange(3))
    }


def reshaped(rng: Random, document: Any) -> Any:
    """The document with something at one place of it replaced, removed, repeated or added."""
    if isinstance(document, dict) and document and rng.random() < 0.9:
        key = rng.choice(list(document))
        rest = {name: item for name, item in document.items() if name != key}
        how = rng.randrange(8)
        if how == 0:
            return rest
        if how == 1:
            return {**rest, key[:-1] or "x" if isinstance(key, str) else "x": document[key]}
        return {**document, key: reshaped(rng, document[key])}
    if isinstance(document, list) and document and rng.random() < 0.8:
        place = rng.randrange(len(document))
        how = rng.randrange(6)
        if how == 0:
            return document[:place] + document[place + 1 :]
        if how == 1:
            return document[: place + 1] + document[place:]
        return [*document[:place], reshaped(rng, document[place]), *document[place + 1 :]]
    return value(rng)


def damaged(rng: Random, data: bytes) -> bytes:
    """Cut, flipped, overwritten, repeated, or with odd bytes in it."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        here = rng.randrange(len(data) + 1)
        there = min(len(data), here + rng.choice((1, 2, 8, 64)))
        how = rng.randrange(7)
        if how == 0:
            data = data[:here]
        elif how == 1 and data[here : here + 1]:
            data = data[:here] + bytes([data[here] ^ 1 << rng.randrange(8)]) + data[here + 1 :]
        elif how == 2:
            data = data[:here] + data[there:]
        elif how == 3:
            data = data[:there] + data[here:]
        elif how == 4:
            data = data[:here] + rng.choice(ODD_BYTES) + data[here:]
        elif how == 5:
            data = (
                data[:here]
                + rng.choice(
                    (
                        b"9" * 400,
                        b"[" * 200,
                        b"{" * 200,
                        b"NaN",
                        b"null",
                        b"-",
                        b"1e999",
                        b"x" * 3000,
                    )
                )
                + data[there:]
            )
        else:
            data = data[there:] + data[:here]
    return data


def meddle(rng: Random, file: Path, others: Sequence[Path]) -> None:
    """A file damaged, reshaped, gone, another one's, or a folder in its place."""
    how = rng.random()
    if how < 0.08:
        file.unlink()
    elif how < 0.12:
        file.unlink()
        file.mkdir()
    elif how < 0.3:
        file.write_bytes(rng.choice(others).read_bytes())
    else:
        data = file.read_bytes()
        file.write_bytes(
            damaged(rng, data) if how < 0.55 else reshaped_file(rng, file.suffix, data)
        )


def reshaped_file(rng: Random, suffix: str, data: bytes) -> bytes:
    """`reshaped` of what a JSON, JSON lines or YAML file holds; of other files, and where it holds none (any more), `damaged`."""
    try:
        if suffix == ".jsonl":
            lines = [json.loads(line) for line in data.decode().splitlines()]
            return "".join(
                json.dumps(reshaped(rng, line) if rng.random() < 0.5 else line) + "\n"
                for line in lines
            ).encode()
        if suffix == ".json":
            return json.dumps(reshaped(rng, json.loads(data))).encode()
        if suffix == ".yaml":
            text = yaml.safe_dump(
                reshaped(rng, yaml.safe_load(data)), allow_unicode=rng.random() < 0.5
            )
            return text.encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError, yaml.YAMLError):
        pass
    return damaged(rng, data)


# --- recipes and settings ---

RECIPES = [file.read_bytes() for file in packaged_recipes().values()]
DEFAULTS = yaml.safe_load(dump_yaml(Config()))
del DEFAULTS["schema_version"]
LAUGHS = "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'ha'}]\n" for i in range(12)
)


def recipe(rng: Random) -> bytes:
    """A recipe's bytes."""
    how = rng.randrange(8)
    if how == 0:
        return bytes(rng.randrange(256) for _ in range(rng.randrange(40)))
    if how <= 2:
        return damaged(rng, rng.choice(RECIPES))
    if how == 3:
        deep = rng.choice((5, 100, 400))
        return rng.choice(
            (
                "data: " + "[" * deep,
                "data: " + "{a: " * deep,
                "- " * deep,
                "[" * deep + "]" * deep,
                "data:\n train: " + "[" * deep + "]" * deep,
            )
        ).encode()
    if how == 4:
        key = rng.choice(settings())
        section, _, name = key.rpartition(".")
        bomb = (
            f"{section}:\n  {name}: *a11\n" if section and "." not in section else f"{key}: *a11\n"
        )
        return (
            (LAUGHS + bomb).encode()
            if rng.random() < 0.5
            else ("x: &x\n  y: *x\n" + f"{name}: *x\n").encode()
        )
    if how == 5:
        over = rng.choice(
            (
                "over: gsm8k\n",
                "over: over\n",
                "over: 3\n",
                "over: [a]\n",
                "over: recipe.yaml\n",
                "steps: 1\nsteps: 2\n",
                "? [a]\n: 1\n",
                "1: 2\n",
                "null: 2\n",
            )
        )
        return over.encode() + rng.choice(RECIPES)
    changed = DEFAULTS
    for _ in range(rng.choice((1, 1, 2))):
        changed = reshaped(rng, changed)
    return yaml.safe_dump(changed, allow_unicode=rng.random() < 0.5).encode(
        "utf-8", "surrogatepass"
    )


def settings() -> list[str]:
    """Every dotted setting."""

    def below(values: dict[str, Any], prefix: str) -> list[str]:
        return [
            key
            for name, item in values.items()
            for key in [
                prefix + name,
                *(below(item, f"{prefix}{name}.") if isinstance(item, dict) else []),
            ]
        ]

    return below(DEFAULTS, "")


SETTINGS = settings()
ODD_SCALARS = (
    *(
        "[",
        "[a, b]",
        "[[[",
        "{a: 1}",
        "&a [*a]",
        "*a",
        "!!python/name:os.system",
        "!!binary x",
        "2026-11-20",
        "2026-13-45",
        "0x1F",
        "1_0",
    ),
    *(
        "010",
        "1:30",
        "'",
        "- a",
        "? a",
        "9" * 5000,
        "[" * 200,
        "[{path: x, weight: 1}, y]",
        "~",
        "=",
        "true",
        "3",
        "0.5",
        "1e-5",
        "|",
    ),
    *(">", "@", "`", "%", "#", "a: b: c", "!!timestamp x", "!!int ''"),
)


def overrides(rng: Random) -> list[str]:
    """What stands after `nrt train RECIPE`."""

    def one() -> str:
        key = rng.choice(SETTINGS)
        if rng.random() < 0.15:
            key = damaged(rng, key.encode()).decode(errors="surrogateescape")
        given = rng.choice((*ODD_TEXTS, *ODD_SCALARS))
        return rng.choice(
            (
                f"{key}={given}",
                f"{key}={given}",
                f"{key}={given}",
                key,
                f"{key}.x={given}",
                f"={given}",
            )
        )

    return [one() for _ in range(rng.randrange(1, 4))]


# --- data ---

ROWS = (
    {"question": "what is one plus two ?", "answer": "the sum is three", "source": "a"},
    {
        "messages": [
            {"role": "system", "content": "so"},
            {"role": "user", "content": "what ?"},
            {"role": "assistant", "content": "one"},
        ]
    },
    {
        "conversations": [{"from": "human", "value": "what ?"}, {"from": "gpt", "value": "two"}],
        "system": "add",
    },
    {"instruction": "add", "input": "one two", "output": "three"},
    {
        "prompt": [{"role": "user", "content": "what ?"}],
        "completion": [{"role": "assistant", "content": "four"}],
    },
    {"text": "one is one . two is two . so we add them ."},
)


def rows(rng: Random) -> list[Any]:
    """A few rows, of which some are wrong."""
    kind = rng.choice(ROWS)
    return [reshaped(rng, kind) if rng.random() < 0.4 else kind for _ in range(rng.randrange(1, 5))]


def jsonl(rng: Random) -> bytes:
    """Lines of a JSONL file."""
    ascii_only = rng.random() < 0.5
    text = "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows(rng)) + rng.choice(
        ("", "\n", "\r\n")
    )
    data = text.encode("utf-8", "surrogatepass")
    return damaged(rng, data) if rng.random() < 0.5 else data


def pick(rng: Random, makers: Sequence[Callable[[Random], Any]]) -> Any:
    return rng.choice(makers)(rng)
