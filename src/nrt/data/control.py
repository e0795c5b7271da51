"""Control tokens of a tokenizer, and private names that no text contains.

Control tokens are the two markers, every special token, and every added token that occurs in the
chat template. Three kinds of tokens are left out: a special token of one character (a pad token
`!`), whose text has no other spelling; added tokens of white space; and the unknown token, which
any unknown character gives. If text of the template and the content beside it together spell a
control token, it counts as written by the template.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping

from nrt.config import MarkersConfig
from nrt.data.backend import Spec
from nrt.errors import InputError


def control_tokens(spec: Spec, template: str, markers: MarkersConfig) -> dict[str, int]:
    """Return the text and id of each control token.

    Raises InputError if a marker is not a special token.
    """
    special = {token["content"] for token in spec["added_tokens"] if token["special"]}
    for name, text in (("start", markers.start), ("end", markers.end)):
        if text is not None and text not in special:
            raise InputError(
                f"the tokenizer has no special token '{text}' (markers.{name}); "
                "add the markers to model and tokenizer first"
            )

    def is_control(text: str) -> bool:
        if text in (markers.start, markers.end):
            return True
        if len(text) <= 1 or text.isspace():
            return False
        return text in special or text in template

    return {
        token["content"]: token["id"]
        for token in spec["added_tokens"]
        if is_control(token["content"])
    }


def private_names() -> Iterator[str]:
    """Yield distinct strings of private-use characters (plane 15), without end.

    All have the same length, and 128 random bits.
    """
    nonce, count = secrets.token_hex(16), 0
    while True:
        digits = f"{nonce}{count:08x}"
        yield "".join(chr(0xF0000 + int(digit, 16)) for digit in digits)
        count += 1


class Replacer:
    """Replaces every key of a table in a text by its value, in one pass, longest keys first."""

    def __init__(self, table: Mapping[str, str]) -> None:
        self.table = table
        keys = sorted(table, key=len, reverse=True)
        self.pattern = re.compile("|".join(re.escape(key) for key in keys))

    def __call__(self, text: str) -> str:
        return self.pattern.sub(lambda match: self.table[match[0]], text)

    def inverse(self) -> Replacer:
        """Return the replacer from values to keys."""
        return Replacer({value: key for key, value in self.table.items()})
