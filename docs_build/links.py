"""Includes files of the repository in pages, and adapts links so that they work on the site as in the repository."""

from __future__ import annotations

import os.path
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "explanation/architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "examples": "examples.md",
    "examples/README.md": "examples.md",
    "protos": "reference/protocol.md",
}
"""Pages of the site that show files from elsewhere in the repository."""
_FENCE = re.compile(r"^\s*(```|~~~)")
_LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")
_ITEM = re.compile(r"(?:-|\d+\.) ")
_LANGUAGES = {".js": "javascript", ".proto": "protobuf", ".py": "python", ".txt": "text"}


def included(path: str, page: str) -> str:
    """The text of a Markdown file of the repository, with links that work on the site's page ``page``."""
    text = (ROOT / path).read_text(encoding="utf-8")
    return _with_links(nested(text), lambda target: _on_site(str(PurePosixPath(path).parent / target), page))


def shown(path: str) -> str:
    """A file of the repository that is not Markdown, as a code block with its name."""
    text = (ROOT / path).read_text(encoding="utf-8").rstrip("\n")
    return f'```{_LANGUAGES[Path(path).suffix]} title="{path}"\n{text}\n```'


def relinked(markdown: str, page: str) -> str:
    """A page of ``docs/`` in which links to files outside of that directory lead to the site's page instead."""

    def target_on_site(target: str) -> str | None:
        path = os.path.normpath(f"docs/{PurePosixPath(page).parent}/{target}")
        return target if path.startswith("docs/") else _on_site(path, page)

    return _with_links(markdown, target_on_site)


def _on_site(path: str, page: str) -> str | None:
    """The link from ``page`` to the page of a path of the repository; None if the site has no such page."""
    path = os.path.normpath(path)
    uri = PAGES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
    return None if uri is None else os.path.relpath(uri, PurePosixPath(page).parent)


def _with_links(markdown: str, on_site: Callable[[str], str | None]) -> str:
    def replaced(link: re.Match[str]) -> str:
        text, target, anchor = link.group(1), link.group(2), link.group(3) or ""
        if ":" in target:
            return link.group()
        found = on_site(target)
        return text if found is None else f"[{text}]({found}{anchor})"

    return "\n".join(line if is_code else _LINK.sub(replaced, line) for line, is_code in _lines(markdown))


def nested(markdown: str) -> str:
    """The text with nested lists indented by four spaces, as Python-Markdown needs them, instead of two."""
    within, lines = False, []
    for line in markdown.split("\n"):
        within = bool(_ITEM.match(line)) or (within and line.startswith(" "))
        indent = len(line) - len(line.lstrip(" "))
        lines.append(" " * indent + line if within else line)
    return "\n".join(lines)


def _lines(markdown: str) -> Iterator[tuple[str, bool]]:
    """All lines, each with whether it belongs to a block of code."""
    fence = ""
    for line in markdown.split("\n"):
        mark = _FENCE.match(line)
        yield line, bool(fence or mark)
        if mark:
            fence = "" if fence == mark.group(1) else fence or mark.group(1)
