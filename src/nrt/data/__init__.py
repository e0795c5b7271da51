"""Data files → rows of token ids. The steps are Example (text), Pair (ids) and Row (sequence).

No module of this package imports the objective.
"""

from nrt.data.cache import tokenise
from nrt.data.chat import Chat
from nrt.data.documents import EntropyFunction
from nrt.data.files import find_tables
from nrt.data.order import RowOrder
from nrt.data.pairs import LoadedPairs, Pairs, load_pairs
from nrt.data.sequence import (
    Markers,
    bare_row,
    hinted_row,
    null_row,
    sampled_answer_row,
    sampled_part,
    to_trace,
    trace_row,
)
from nrt.data.sources import read_examples
from nrt.data.template import (
    default_template,
    ensure_template,
    exported_template,
    exported_without_trace,
    with_trace_opener,
)

__all__ = [
    "Chat",
    "EntropyFunction",
    "LoadedPairs",
    "Markers",
    "Pairs",
    "RowOrder",
    "bare_row",
    "default_template",
    "ensure_template",
    "exported_template",
    "exported_without_trace",
    "find_tables",
    "hinted_row",
    "load_pairs",
    "null_row",
    "read_examples",
    "sampled_answer_row",
    "sampled_part",
    "to_trace",
    "tokenise",
    "trace_row",
    "with_trace_opener",
]
