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


GENERATED = {"settings.md", "metrics.md", "reference/commands.md"}
MOST_WORDS = 20_000


def written_pages():
    """Files of the pages outside Results that are written by hand; the changelog is a list of changes."""
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:\n")[1]
    results = re.search(r"^  - Results:\n(?:      .*\n)+", nav, re.MULTILINE)
    assert results
    names = re.findall(r"([\w/-]+\.md)$", nav.replace(results[0], ""), re.MULTILINE)
    roots = {
        "index.md": "README.md",
        "contributing.md": "CONTRIBUTING.md",
        "security.md": "SECURITY.md",
    }
    names = [name for name in names if name not in GENERATED | {"changelog.md"}]
    return [ROOT / roots.get(name, f"docs/{name}") for name in names]


def test_the_pages_are_short():
    """Words have a letter or a digit; the bars of tables and printed output are not counted."""
    words = {}
    for page in written_pages():
        text = re.sub(r"^```text\n.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        words[page.name] = len(re.findall(r"\S*\w\S*", text))
    assert len(words) > 25
    longest = sorted(words.items(), key=lambda item: -item[1])[:5]
    assert sum(words.values()) <= MOST_WORDS, f"shorten the pages; the longest: {longest}"
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 100


@pytest.mark.parametrize(
    "page", [*written_pages(), *(ROOT / "docs" / name for name in ("settings.md", "metrics.md"))],
    ids=lambda page: page.name,
)  # fmt: skip
def test_a_page_opens_with_an_example(page):
    """A command, a snippet or a picture."""
    opening = page.read_text(encoding="utf-8").splitlines()[:10]
    assert any(line.startswith(("```", "    ", "![")) for line in opening)


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
