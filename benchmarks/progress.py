"""Progress of a run: a live bar on a terminal, plain lines otherwise."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LINE_INTERVAL_S = 10.0
"""Shortest time between two lines of a counted step, without a terminal."""


class RunProgress:
    """Shows the current suite, its step, and the progress of counted steps."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = console.is_terminal
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._suite = ""
        self._step: TaskID | None = None

    def __enter__(self) -> Self:
        if self._live:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._bars.stop()

    def suite(self, name: str) -> None:
        """Begin a suite."""
        self._suite = name

    def step(self, text: str) -> None:
        """Begin a step of unknown length."""
        self._clear()
        if self._live:
            self._step = self._bars.add_task(f"{self._suite}: {text}", total=None)
        else:
            self._console.print(f"{self._suite}: {text}", highlight=False)

    def finish(self) -> None:
        """End the suite."""
        self._clear()

    @contextmanager
    def counted(self, text: str, total: int) -> Iterator[Counter]:
        """Run a step with a known number of parts."""
        self._clear()
        counter = Counter(self._console, f"{self._suite}: {text}", total, self._bars if self._live else None)
        try:
            yield counter
        finally:
            counter.close()

    def _clear(self) -> None:
        if self._step is not None:
            self._bars.remove_task(self._step)
            self._step = None


class Counter:
    """Progress of a counted step, with an estimate of the remaining time."""

    def __init__(self, console: Console, text: str, total: int, bars: Progress | None) -> None:
        self._console, self._text, self._total, self._bars = console, text, total, bars
        self._done = 0
        self._start = self._last_line = time.monotonic()
        self._first_done: int | None = None
        self._task: TaskID | None = None
        if bars is not None:
            self._task = bars.add_task(text, total=total)
        else:
            console.print(f"{text} (0 of {total:,})", highlight=False)

    def advance(self, count: int = 1) -> None:
        """Note that ``count`` more parts are done."""
        self.reach(self._done + count)

    def reach(self, done: int, total: int | None = None) -> None:
        """Note that ``done`` parts are done by now (of ``total``, if that has changed)."""
        if self._first_done is None:
            self._first_done = self._done
        self._done, self._total = done, total or self._total
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=done, total=self._total)
        elif done < self._total and time.monotonic() - self._last_line > LINE_INTERVAL_S:
            self._last_line = time.monotonic()
            self._console.print(f"{self._text}: {done:,} of {self._total:,}{self._remaining()}", highlight=False)

    def close(self) -> None:
        """End the step."""
        if self._bars is not None and self._task is not None:
            self._bars.remove_task(self._task)

    def _remaining(self) -> str:
        elapsed = time.monotonic() - self._start
        made = self._done - (self._first_done or 0)
        if made <= 0:
            return ""
        return f", about {elapsed / made * (self._total - self._done):,.0f} s left"
