"""From a data file to rows of token ids: sources → Example, chat → Pair, splice → Row. Nothing here knows the objective."""

from nrt.data.chat import Chat
from nrt.data.documents import Entropies
from nrt.data.files import find_tables
from nrt.data.pairs import Encoded, Pairs, load_pairs
from nrt.data.sources import read_examples
from nrt.data.splice import Markers, bare_row, null_row, reply_row, to_trace, trace_row, unsplice
from nrt.data.stream import Stream
from nrt.data.template import answers_at_once, default_template, ensure_template, exported_template, with_trace_opener
from nrt.data.tokens import tokenise

__all__ = [
    "Chat",
    "Encoded",
    "Entropies",
    "Markers",
    "Pairs",
    "Stream",
    "answers_at_once",
    "bare_row",
    "default_template",
    "ensure_template",
    "exported_template",
    "find_tables",
    "load_pairs",
    "null_row",
    "read_examples",
    "reply_row",
    "to_trace",
    "tokenise",
    "trace_row",
    "unsplice",
    "with_trace_opener",
]
