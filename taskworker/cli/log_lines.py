"""What is logged, as lines on stderr: for people, or as JSON for programs that collect logs."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated

import typer

from taskworker.cli.text import json_text, one_line


class LogFormat(StrEnum):
    """How servers write their logs."""

    TEXT = "text"
    JSON = "json"


LogFormatOption = Annotated[
    LogFormat,
    typer.Option(
        "--log-format",
        help="How to write the log to standard error: lines for people, or one JSON object a line, with time, level, "
        "logger and message, and exception if there is one.",
        metavar="text|json",
    ),
]


class TextLines(logging.Handler):
    """Writes log messages, one line each, to the current ``sys.stderr``, which a progress bar replaces.

    An unexpected error is followed by its traceback.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """See ``logging.Handler``."""
        lines = [f"taskworker: {one_line(record.getMessage())}\n"]
        lines += [f"  {one_line(line)}\n" for line in _traceback_of(record)]
        sys.stderr.write("".join(lines))


class JsonLines(logging.Handler):
    """Writes log messages as JSON, one object a line, to standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """See ``logging.Handler``."""
        document = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info is not None and record.exc_info[1] is not None:
            document["exception"] = "\n".join(_traceback_of(record))
        sys.stderr.write(json_text(document) + "\n")
        sys.stderr.flush()


def _traceback_of(record: logging.LogRecord) -> Iterator[str]:
    if record.exc_info is not None and record.exc_info[1] is not None:
        yield from "".join(traceback.format_exception(record.exc_info[1])).splitlines()
