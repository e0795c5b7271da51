"""What the API pages show otherwise than the source has it."""

import re

from griffe import Attribute, Extension, Object

EXAMPLE = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)


class Docstrings(Extension):
    def on_object(self, *, obj: Object, **_: object) -> None:
        """Examples become code blocks; in Markdown `>>>` would be a quotation in a quotation."""
        if obj.docstring:
            obj.docstring.value = EXAMPLE.sub(r"```pycon\n\g<0>\n```", obj.docstring.value)

    def on_attribute_instance(self, *, attr: Attribute, **_: object) -> None:
        """A table that fills a screen is left to the source."""
        if len(str(attr.value)) > 300:
            attr.value = None
