"""Text and tables in Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_CODE = re.compile(r"(`[^`]+`)")
_SPECIAL = re.compile(r"([\\*_<>|\[\]])")


def escaped(text: str) -> str:
    """Plain text with ``code`` in backticks, as Markdown that shows it as it is, also within a table."""
    parts = _CODE.split(" ".join(text.replace("``", "`").split()))
    return "".join(part if part.startswith("`") else _SPECIAL.sub(r"\\\1", part) for part in parts)


def code(text: str) -> str:
    """Text in a fixed-width font; in a table, too, where Python-Markdown takes a bar in it for text."""
    return f"`{text}`"


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = [titles, ["---"] * len(titles), *rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f'<div class="reference" markdown>\n\n{text}\n\n</div>'
