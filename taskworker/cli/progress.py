"""Progress bars. Not in ``terminal``, so that rich is imported only when stderr is a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TransferSpeedColumn,
)
from rich.table import Column
from rich.text import Text

from taskworker.cli.text import size_text, visible

_LABEL_WIDTH_MAX = 40


@contextlib.contextmanager
def bar(label: str, unit: Literal["bytes", "objects"]) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar with rate and time left; it disappears when the block ends."""
    amount: list[ProgressColumn] = [_Bytes(), TransferSpeedColumn()] if unit == "bytes" else [_Objects()]
    with _shown(*amount) as progress:
        task = progress.add_task(escape(_shortened(visible(label))), total=None)

        def update(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total or None)

        yield update


@contextlib.contextmanager
def folder_bar(label: str) -> Iterator[Callable[[int, int, int, int], None]]:
    """Show a progress bar with files, bytes, rate and time left: both counts done, then both in all."""
    files = TextColumn("{task.fields[files]}", style="progress.download")
    with _shown(files, _Bytes(), _Rate()) as progress:
        task = progress.add_task(escape(_shortened(visible(label))), total=None, files="")

        def update(files: int, size: int, files_total: int, size_total: int) -> None:
            shown = f"{files:,} of {max(files, files_total):,} files"
            progress.update(task, completed=size, total=max(size, size_total) or None, files=shown)

        yield update


def _shown(*amount: ProgressColumn) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), TaskProgressColumn(), *amount, _TimeLeft())
    return Progress(*columns, console=Console(stderr=True), transient=True, expand=True)


class _OnOneLine(ProgressColumn):
    """A column that makes the bar shorter instead of breaking its text."""

    def get_table_column(self) -> Column:
        return Column(no_wrap=True)


class _Rate(_OnOneLine, TransferSpeedColumn):
    pass


class _Bytes(_OnOneLine):
    def render(self, task: Task) -> Text:
        of = "" if task.total is None else f" of {size_text(int(task.total))}"
        return Text(size_text(int(task.completed)) + of, style="progress.download")


class _Objects(_OnOneLine):
    def render(self, task: Task) -> Text:
        of = "" if task.total is None else f" of {int(task.total):,}"
        return Text(f"{int(task.completed):,}{of}", style="progress.download")


class _TimeLeft(_OnOneLine):
    def render(self, task: Task) -> Text:
        seconds = task.time_remaining
        if seconds is None:
            return Text(f"since {timedelta(seconds=int(task.elapsed or 0))}", style="progress.elapsed")
        return Text(f"ETA {timedelta(seconds=int(seconds))}", style="progress.remaining")


def _shortened(label: str) -> str:
    return label if len(label) <= _LABEL_WIDTH_MAX else f"{label[: _LABEL_WIDTH_MAX - 1]}…"
