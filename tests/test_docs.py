"""What the documents point at exists, and the version stands the same wherever it stands. `make docs` tells broken anchors."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
REFERENCE = re.compile(r"`((?:[\w]+/)*[\w]+\.py)::([\w.]+)")
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")
DOCS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]


def find(path: str) -> Path | None:
    """A file that a document names: from the root, under the package, or by its bare name among the tests."""
    candidates = [ROOT / path, ROOT / "src" / "nrt" / path, *sorted((ROOT / "tests").rglob(path))]
    return next((file for file in candidates if file.is_file()), None)


@pytest.mark.parametrize("doc", DOCS, ids=lambda doc: doc.name)
def test_names_of_code_exist(doc):
    for path, name in REFERENCE.findall(doc.read_text(encoding="utf-8")):
        file = find(path)
        assert file, f"{doc.name} names {path}"
        for part in name.split("."):
            assert re.search(rf"\b{re.escape(part)}\b", file.read_text(encoding="utf-8")), (
                f"{doc.name}: {path} has no {part}"
            )


@pytest.mark.parametrize("doc", DOCS, ids=lambda doc: doc.name)
def test_links_lead_somewhere(doc):
    for target in LINK.findall(doc.read_text(encoding="utf-8")):
        assert (doc.parent / target).exists(), f"{doc.name} links to {target}"


def test_one_version():
    """pyproject.toml has it; CITATION.cff the same; the changelog's newest release is it, or all is yet unreleased."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "version"
    ]
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", version)
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    headings = re.findall(
        r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert headings[0] == "[Unreleased]"
    assert all(
        re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", heading) for heading in headings[1:]
    )
    assert not headings[1:] or headings[1].startswith(f"[{version}]")
