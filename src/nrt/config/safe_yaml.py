"""Parse YAML that another person may have written: plain values, with limits on size and time."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import yaml

from nrt.errors import InputError

MAX_VALUES = 10_000
"""Maximum number of values in a file, with aliases and merge keys expanded."""

MAX_FILE_BYTES = 4 * 2**20

MAX_NUMBER_LENGTH = 100
"""Maximum characters of a number. YAML reads `1:1:1` in base 60; a long one would take minutes."""


def read_yaml_file(path: Path) -> str:
    """Return the text of a YAML file.

    Raises InputError if the file cannot be read, is not UTF-8 or is larger than MAX_FILE_BYTES.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise InputError(
                f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB, the limit of a settings file; "
                "give another file"
            )
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 (byte {error.start + 1}); save it as UTF-8"
        ) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None


def parse_plain_yaml(text: str, source: str) -> Any:
    """Return the value of a YAML text, made of plain types only; `source` names it in errors.

    Raises InputError for text that is not YAML, and for more than MAX_VALUES values with aliases
    and merge keys expanded. Aliases of aliases can make billions of values from one line, so they
    are counted before they are expanded.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _count_values(node, {}) > MAX_VALUES:
            raise _TooManyValues
        return loader.construct_document(node)
    except _TooManyValues:
        raise InputError(
            f"{source} holds more than {MAX_VALUES:,} values (a YAML alias within itself?); "
            "write them out, or put them in a data file"
        ) from None
    except Exception as error:
        # not only YAMLError: also ValueError for a value that does not fit its tag, and
        # RecursionError for deep nesting
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{source} is not valid YAML: {reason}") from None


class _TooManyValues(Exception): ...


class _Loader(yaml.SafeLoader):
    """Safe loader that stops after MAX_VALUES values and refuses duplicate keys.

    It stops while reading, so a file of gigabytes is not read to its end.
    """

    composed = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.composed += 1
        if self.composed > MAX_VALUES:
            raise _TooManyValues
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                raise ValueError(
                    f"the key '{key.value:.80}' appears twice, in lines {lines[key.value]} and "
                    f"{line}; remove one"
                )
            lines[key.value] = line
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > MAX_NUMBER_LENGTH:
            raise ValueError(f"a number of {len(node.value):,} characters")
        if re.fullmatch(r"[+-]?0[\d_]+", node.value):
            return int(node.value)  # YAML 1.1 takes 0100 for 64
        return super().construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def _count_values(node: yaml.Node, counts: dict[int, float]) -> float:
    """Return the number of values in a node with aliases expanded; infinite if it contains itself.

    `counts` holds the nodes counted so far, by id.
    """
    if id(node) not in counts:
        # a node that is reached again before its count is known contains itself
        counts[id(node)] = math.inf
        children: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            children = node.value
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                children += [key, value]
        counts[id(node)] = 1 + sum(_count_values(child, counts) for child in children)
    return counts[id(node)]
