"""What the site has besides docs/*.md: pages of the repository's root, files that pages link to, and generated reference pages.

All pages keep the links that work in a checkout; here they are turned into the site's own. A file outside docs/ that is linked becomes
a page `source/PATH.md`. What the API shows is each module's `__all__`, or its public names; the last step checks that all are there.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from os.path import normpath, relpath
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from reference import commands_page  # beside this file

ROOT = Path(__file__).parents[2]
ROOT_PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md",
              "SECURITY.md": "security.md"}  # fmt: skip
LINK = re.compile(r"\]\((?!https?:|data:|#)([^)#\s]+)(#[^)\s]*)?\)")
FENCE = {".py": "python", ".yaml": "yaml", ".cff": "yaml", ".txt": "text", ".toml": "toml"}
EXTERNAL = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(?:https?:)?//|<link\b[^>]*rel=["']?(?:stylesheet|preconnect)[^>]*//"""
)

API = ["nrt", "nrt.config", "nrt.types", "nrt.errors", "nrt.objective", "nrt.data", "nrt.models", "nrt.data.checkers", "nrt.rollout",
       "nrt.scoring", "nrt.engine.interface", "nrt.engine.local", "nrt.trainer", "nrt.run", "nrt.run.metrics", "nrt.eval.confidence",
       "nrt.eval.reasoner", "nrt.eval.suite", "nrt.eval.judge", "nrt.study", "nrt.plan", "nrt.analysis.comparison",
       "nrt.analysis.confidence", "nrt.analysis.stats", "nrt.analysis.report.data", "nrt.analysis.report.page", "nrt.lab"]  # fmt: skip
"""One page each."""


def on_config(config: MkDocsConfig) -> None:
    assert config.nav is not None
    reference = next(entry["Reference"] for entry in config.nav if "Reference" in entry)
    reference.append({"Python": [{name: f"api/{name}.md"} for name in API]})


def on_files(files: Files, config: MkDocsConfig) -> Files:
    linked: set[str] = {"examples/miniature.ipynb"}
    for path in [*ROOT_PAGES, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]:
        text = (ROOT / path).read_text(encoding="utf-8")
        _put(
            files,
            config,
            _page_of(path),
            LINK.sub(lambda match, path=path: _link(match, path, linked), text),
        )
    for path in sorted(linked):
        file = ROOT / path
        text = _notebook(file) if file.suffix == ".ipynb" else _listing(file)
        _put(
            files,
            config,
            _page_of(path),
            LINK.sub(lambda match, path=path: _link(match, path, set()), text),
        )
    _put(files, config, "reference/commands.md", commands_page())
    for name in API:
        _put(files, config, f"api/{name}.md", _api_page(name))
    return files


def on_post_build(config: MkDocsConfig) -> None:
    site = Path(config.site_dir)
    for name in API:
        page = (site / "api" / f"{name}.html").read_text(encoding="utf-8")
        if missing := [
            public for public in _public(name) if f'id="{_home(name, public)}"' not in page
        ]:
            raise PluginError(
                f"{name}: the API page lacks {', '.join(missing)}; give each a docstring"
            )
    for page in site.rglob("*.html"):
        if found := EXTERNAL.search(page.read_text(encoding="utf-8")):
            raise PluginError(
                f"{page.relative_to(site)} would load something from elsewhere: {found[0]}"
            )


def _put(files: Files, config: MkDocsConfig, page: str, text: str) -> None:
    if old := files.get_file_from_path(page):
        files.remove(old)
    files.append(File.generated(config, page, content=text))


def _page_of(path: str) -> str:
    """Where a file of the repository is in the site."""
    if path in ROOT_PAGES:
        return ROOT_PAGES[path]
    return path.removeprefix("docs/") if path.startswith("docs/") else f"source/{path}.md"


def _link(match: re.Match[str], path: str, linked: set[str]) -> str:
    """A link in the file `path`, as the site has it; files that need a page of their own are added to `linked`."""
    target = normpath(Path(path).parent / match[1])
    if not (ROOT / target).exists():
        raise PluginError(f"{path} links to {match[1]}, which does not exist")
    if not target.startswith("docs/") and target not in ROOT_PAGES:
        linked.add(target)
    return f"]({relpath(_page_of(target), Path(_page_of(path)).parent)}{match[2] or ''})"


def _listing(file: Path) -> str:
    name = file.relative_to(ROOT).as_posix()
    text = file.read_text(encoding="utf-8").rstrip()
    return (
        f"---\nhide: [toc]\n---\n\n# {name}\n\n````{FENCE.get(file.suffix, 'text')}\n{text}\n````\n"
    )


def _notebook(file: Path) -> str:
    """Its cells as Markdown, with the outputs that it was committed with."""
    return (
        "\n\n".join(
            part
            for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]
            for part in _cell(cell)
        )
        + "\n"
    )


def _cell(cell: dict) -> Iterator[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield source
        return
    yield f"````python\n{source}\n````"
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/png" in data:
            yield f"![figure](data:image/png;base64,{''.join(data['image/png']).strip()})"
        elif text := "".join(output.get("text", data.get("text/plain", []))).rstrip():
            yield f"````text\n{text}\n````"


def _api_page(name: str) -> str:
    text, rest = f"# {name}\n\n::: {name}\n    options:\n      members:\n", ""
    for public in _public(name):
        if (home := _home(name, public)) == f"{name}.{public}":
            text += f"        - {public}\n"
        else:
            rest += f"\n::: {home}\n    options: {{show_root_heading: true, show_root_toc_entry: true}}\n"
    return text + rest


def _home(name: str, public: str) -> str:
    """Where a public name is documented: a function of the same name as its module is hidden by it."""
    clash = (ROOT / "src" / name.replace(".", "/") / f"{public}.py").is_file()
    return f"{name}.{public}.{public}" if clash else f"{name}.{public}"


def _public(name: str) -> list[str]:
    """`__all__`, or the public functions, classes and documented constants, in the file's order."""
    path = ROOT / "src" / name.replace(".", "/")
    tree = ast.parse(
        (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(
            encoding="utf-8"
        )
    )
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [
        node.name
        for node in tree.body
        if isinstance(node, kinds) and not node.name.startswith("_") and ast.get_docstring(node)
    ]
