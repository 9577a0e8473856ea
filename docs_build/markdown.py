"""Makes text and tables in Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_CODE = re.compile(r"(`[^`]+`)")
_SPECIAL = re.compile(r"([\\*_<>|\[\]])")


def escaped(text: str) -> str:
    """Plain text with ``code`` in backticks, escaped so that Markdown shows it unchanged, also in a table."""
    parts = _CODE.split(" ".join(text.replace("``", "`").split()))
    return "".join(part if part.startswith("`") else _SPECIAL.sub(r"\\\1", part) for part in parts)


def code(text: str) -> str:
    """Text in a fixed-width font, also in a table, where Python-Markdown takes a bar in it as text."""
    return f"`{text}`"


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose cells are Markdown already."""
    lines = [titles, ["---"] * len(titles), *rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f'<div class="reference" markdown>\n\n{text}\n\n</div>'
