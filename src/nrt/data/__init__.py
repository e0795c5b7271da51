"""From a data file to rows of token ids: sources → Example, chat → Pair, splice → Row. Nothing here knows the objective."""

from nrt.data.chat import Chat
from nrt.data.encode import Encoded, encode_examples
from nrt.data.sources import read_examples
from nrt.data.splice import Markers, bare_row, null_row, reply_row, to_trace, trace_row, unsplice
from nrt.data.stream import Stream
from nrt.data.template import default_template, ensure_template, exported_template, with_trace_opener

__all__ = [
    "Chat",
    "Encoded",
    "Markers",
    "Stream",
    "bare_row",
    "default_template",
    "encode_examples",
    "ensure_template",
    "exported_template",
    "null_row",
    "read_examples",
    "reply_row",
    "to_trace",
    "trace_row",
    "unsplice",
    "with_trace_opener",
]
