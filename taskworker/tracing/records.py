"""Records of the standard library's logging as OpenTelemetry's, each with the span that it was written in."""

from __future__ import annotations

import logging

from opentelemetry import context
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.sdk._logs import LoggerProvider

_SEVERITIES = (
    (logging.CRITICAL, SeverityNumber.FATAL),
    (logging.ERROR, SeverityNumber.ERROR),
    (logging.WARNING, SeverityNumber.WARN),
    (logging.INFO, SeverityNumber.INFO),
)
_OWN = "opentelemetry"  # what it logs about sending would be sent, and so on


class Records(logging.Handler):
    """Hands records on.

    Args:
        provider: where they go.
    """

    def __init__(self, provider: LoggerProvider) -> None:
        super().__init__()
        self._provider = provider

    def emit(self, record: logging.LogRecord) -> None:
        """Hand a record on."""
        if record.name.partition(".")[0] in (_OWN, "urllib3", "requests"):
            return
        attributes: dict[str, str] = {}
        if record.exc_info and record.exc_info[0] is not None:
            attributes["exception.type"] = record.exc_info[0].__qualname__
            attributes["exception.stacktrace"] = logging.Formatter().formatException(record.exc_info)
        self._provider.get_logger(record.name).emit(
            LogRecord(
                timestamp=int(record.created * 1e9),
                context=context.get_current(),
                severity_text=record.levelname,
                severity_number=next((to for at, to in _SEVERITIES if record.levelno >= at), SeverityNumber.DEBUG),
                body=record.getMessage(),
                attributes=attributes,
            )
        )
