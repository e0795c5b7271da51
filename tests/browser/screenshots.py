"""The pictures of docs/report.md: python -m tests.browser.screenshots RUN, in the repository's root."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Literal

from playwright.sync_api import ViewportSize, sync_playwright

from nrt.analysis.report.data import build_report
from nrt.analysis.report.page import write_page
from tests.browser.conftest import ARGUMENTS, executable

SHOTS: dict[str, tuple[ViewportSize, Literal["light", "dark"]]] = {
    "light": ({"width": 1280, "height": 1120}, "light"),
    "dark": ({"width": 1280, "height": 1120}, "dark"),
    "phone": ({"width": 390, "height": 844}, "light"),
}
"""Name → window and theme."""

GROUP = 15
"""The group that the explorer shows: at step 16 of a miniature run some traces work the problem out and others do not."""


def main(run: str) -> None:
    """Writes docs/images/report-<name>.png: the explorer, with the pointer on the token that the best trace did most for."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        file = Path(folder) / "report.html"
        write_page(build_report([Path(run)]), file)
        browser = playwright.chromium.launch(executable_path=executable(), args=ARGUMENTS)
        for name, (window, theme) in SHOTS.items():
            page = browser.new_page(viewport=window, color_scheme=theme)
            page.goto(f"{file.as_uri()}#group={GROUP}")
            page.locator("#explorer .question").evaluate(
                "(box) => scrollTo({ top: box.offsetTop - 175, behavior: 'instant' })"
            )
            page.wait_for_timeout(1500)
            tokens = (
                page.locator("article.trace >> nth=0").locator(".tokens >> nth=1").locator(".token")
            )
            tokens.nth(24).hover()
            page.screenshot(path=f"docs/images/report-{name}.png")
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1])
