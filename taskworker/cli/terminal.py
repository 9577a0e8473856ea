"""The output of a command: results on stdout as text or JSON, progress and errors on stderr."""

from __future__ import annotations

import contextlib
import logging
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import TextIOWrapper
from typing import Literal

from taskworker.cli.log_lines import JsonLines, LogFormat, TextLines
from taskworker.cli.streams import check_output, writing_output
from taskworker.cli.text import harmless, json_text, one_line

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
Json = Mapping[str, object]


class Terminal:
    """The terminal of one command. With ``as_json``, every result is one JSON document."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, TextIOWrapper):
                # A character that the terminal cannot show must not end the command.
                stream.reconfigure(errors="backslashreplace")
        self._logs_json = False
        logging.basicConfig(handlers=[TextLines(logging.WARNING)])

    def log_in(self, log_format: LogFormat) -> None:
        """Write the log, and all else that is told on stderr, in this format from now on."""
        self._logs_json = log_format is LogFormat.JSON
        if self._logs_json:
            logging.basicConfig(handlers=[JsonLines(logging.WARNING)], force=True)

    def result(self, document: object, *lines: str) -> None:
        """Print a result: ``document`` with --json, otherwise ``lines``."""
        if self.as_json:
            self.document(document)
        else:
            self.lines(*lines)

    def document(self, document: object) -> None:
        """Print a JSON document."""
        self.lines(json_text(document, indent=2))

    def lines(self, *lines: str) -> None:
        """Print lines."""
        with writing_output():
            sys.stdout.writelines(f"{harmless(line)}\n" for line in lines)
            sys.stdout.flush()

    def listing(self, title: str, rows: Iterable[tuple[Json, str]]) -> int:
        """Print rows one by one, so that a listing of any length takes no memory; return their number.

        As JSON, they form one array. On a terminal, but not in a pipe or a file, ``title`` is printed above them.
        """
        check_output()
        count = 0
        if self.as_json:
            _write("[")
            for count, (document, _) in enumerate(rows, start=1):
                _write((",\n " if count > 1 else "\n ") + json_text(document))
            _write("\n]\n" if count else "]\n")
        else:
            for count, (_, line) in enumerate(rows, start=1):
                if count == 1 and sys.stdout.isatty():
                    _write(f"\x1b[2m{title}\x1b[0m\n")
                _write(harmless(line) + "\n")
        with writing_output():
            sys.stdout.flush()
        return count

    @property
    def can_ask(self) -> bool:
        """Whether there is a person to answer questions."""
        return sys.stdin.isatty() and sys.stderr.isatty() and not self.as_json

    def note(self, text: str) -> None:
        """Print a note that is not part of the result, if a person is watching."""
        if sys.stderr.isatty() and not self.as_json and not self._logs_json:
            sys.stderr.write(harmless(text) + "\n")

    def error(self, text: str, *more: str) -> None:
        """Print an error as one line, followed by ``more``, such as a function's frames, as indented lines."""
        if self._logs_json:
            log.error("%s", "\n".join((text, *more)))
            return
        sys.stderr.writelines([f"taskworker: {one_line(text)}\n", *(f"  {one_line(line)}\n" for line in more)])

    def trace(self, error: Exception) -> None:
        """Print where an error came from."""
        if self._logs_json:
            log.error("an error ended this command", exc_info=error)
        else:
            traceback.print_exception(error)

    @contextlib.contextmanager
    def progress(self, label: str, *, unit: Literal["bytes", "objects"] = "bytes") -> Iterator[Progress | None]:
        """Show a progress bar on stderr while the block runs, if stderr is a terminal."""
        if not sys.stderr.isatty():
            yield None
            return
        from taskworker.cli.progress import bar

        with bar(label, unit) as update:
            yield update

    @contextlib.contextmanager
    def folder_progress(self, label: str) -> Iterator[Callable[[int, int, int, int], None] | None]:
        """Show files and bytes, both done and in all, while the block runs, if stderr is a terminal."""
        if not sys.stderr.isatty():
            yield None
            return
        from taskworker.cli.progress import folder_bar

        with folder_bar(label) as update:
            yield update


def _write(text: str) -> None:
    with writing_output():
        sys.stdout.write(text)
