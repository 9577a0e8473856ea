"""Keeps a display up to date on a terminal of any size."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

_WATCH_S = 0.5
_TABLE = "WORKER "


def watch(look: Callable[[], list[str]]) -> None:
    """Show the lines that ``look`` returns, twice a second until interrupted; cut lines that are too long."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console()
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            text = "\n".join(fitted(look(), console.height))
            live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)
            time.sleep(_WATCH_S)


def fitted(lines: Sequence[str], height: int) -> list[str]:
    """The lines that fit on a screen: the first paragraph, the workers, then the rest in order.

    Args:
        lines: paragraphs, separated by empty lines.
        height: rows of the screen, 1 or more.

    Returns:
        At most ``height`` lines; if some are left out, the last one says how many.
    """
    if len(lines) <= height:
        return list(lines)
    paragraphs = _paragraphs(lines)
    order = sorted(range(len(paragraphs)), key=lambda at: (at > 0 and not paragraphs[at][0].startswith(_TABLE), at))
    left = height - 1
    shown: dict[int, list[str]] = {}
    for at in order:
        room = left - bool(shown)
        if room <= 0:
            break
        shown[at] = paragraphs[at][:room]
        left = room - len(shown[at])
    kept = [line for at in sorted(shown) for line in ("", *shown[at])][1:]
    count = sum(map(len, paragraphs)) - sum(map(len, shown.values()))
    return [*kept, f"... {count} more; a larger window shows them"]


def _paragraphs(lines: Sequence[str]) -> list[list[str]]:
    paragraphs: list[list[str]] = [[]]
    for line in lines:
        if line:
            paragraphs[-1].append(line)
        elif paragraphs[-1]:
            paragraphs.append([])
    return [paragraph for paragraph in paragraphs if paragraph]
