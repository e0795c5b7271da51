"""A report as one HTML file: script, style, data and the plotting library are embedded.

The page loads nothing over a network.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from nrt.analysis.report.data import Report
from nrt.analysis.report.selection import compact_json
from nrt.errors import InputError, install_hint
from nrt.system.files import write_file

SCRIPTS = (
    "objective.js", "dom.js", "charts.js", "sections.js", "explorer.js", "heldout.js",
    "benchmarks.js", "page.js",
)  # fmt: skip
"""The scripts in the order of the page: each uses only earlier ones."""

_ESCAPED = "<>&\u2028\u2029"


def render_page(report: Report, *, live: str = "") -> str:
    """Return the page.

    `live` is the version of the run folders that the page shows, if a server serves it; the page
    asks that server for newer versions. Raises InputError if plotly, whose script goes into the
    page, is not installed.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_asset("page.html.j2")).render(
        style=_asset("page.css"),
        scripts=[_asset(name) for name in SCRIPTS],
        data=embedded(report),
        plotly=plotly_script(),
        live=live,
    )


def write_page(report: Report, file: Path) -> None:
    """Write the page. Readers see the old file or the new one, never part of a file.

    Raises InputError if it cannot be written.
    """
    page = render_page(report)
    try:
        write_file(file, [page])
    except OSError as error:
        raise InputError(
            f"{file} cannot be written ({error.strerror}); choose another file with -o"
        ) from error


def embedded(report: Report) -> str:
    """Return the report as JSON for a script element.

    No character in it can end the element or start a tag.
    """
    text = compact_json(report)
    for char in _ESCAPED:  # twenty times as fast as str.translate
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def _asset(name: str) -> str:
    return (files("nrt.analysis.report") / name).read_text(encoding="utf-8")


def plotly_script() -> str:
    """Return plotly's own offline bundle. Raises InputError if plotly is not installed."""
    try:
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError:
        raise InputError(f"the report's charts need plotly; {install_hint('report')}") from None
    return get_plotlyjs()
