"""The log of requests to outside hosts; without paths, queries, headers or bodies, which may hold secrets."""

from __future__ import annotations

import json
import logging
import logging.handlers
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import cast

from storage.system.private_paths import open_private

_RECORDS_KEPT = 5_000
_FILE_BYTES = 4 << 20
_FILES = 4
_WAKE_S = 0.5


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One request to one host; a request that was redirected or retried has several records.

    Attributes:
        time_ms: when it began, ms since 1970 (UTC).
        function: the function that made it.
        user_id: the user on whose behalf it was made.
        host: the host with its port; empty if the URL could not be parsed.
        method: HTTP method.
        status: HTTP status; 0 without a response.
        sent: bytes of the request's body.
        received: bytes of the response's body as received.
        ms: how long it took, in milliseconds.
        outcome: ``ok``, ``cache``, or the kind of error.
    """

    time_ms: int
    function: str
    user_id: str
    host: str
    method: str
    status: int
    sent: int
    received: int
    ms: float
    outcome: str


class AuditLog:
    """The latest 5,000 records in memory, and up to 20 MiB of them in files. Thread-safe.

    Args:
        path: the file to write to; earlier files have ``.1`` to ``.4`` appended. None: no files.
    """

    def __init__(self, path: Path | None) -> None:
        self._changed = threading.Condition()
        self._records: deque[AuditRecord] = deque(maxlen=_RECORDS_KEPT)
        self._count = 0
        self._file = (
            None
            if path is None
            else _PrivateFile(path, maxBytes=_FILE_BYTES, backupCount=_FILES, encoding="utf-8", delay=True)
        )

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def add(self, record: AuditRecord) -> None:
        """Add a record. If the disk takes no more, requests go on, and logging reports it on stderr."""
        with self._changed:
            self._records.append(record)
            self._count += 1
            self._changed.notify_all()
        if self._file is not None:
            self._file.handle(logging.makeLogRecord({"msg": "%s", "args": (json.dumps(asdict(record)),)}))

    def read(self, function: str = "", *, follow: bool = False) -> Iterator[AuditRecord | None]:
        """Yield the records, oldest first; with ``follow``, go on with new ones, yielding None periodically.

        Args:
            function: only records of this function; empty: all.
            follow: whether to go on with new records.
        """
        number = 0
        while True:
            with self._changed:
                if follow and number == self._count:
                    self._changed.wait(_WAKE_S)
                fresh = list(self._records)[max(0, number - self._count + len(self._records)) :]
                number = self._count
            yield from (record for record in fresh if function in ("", record.function))
            if not follow:
                return
            yield None


class _PrivateFile(logging.handlers.RotatingFileHandler):
    def _open(self) -> TextIOWrapper:
        return cast(
            TextIOWrapper,
            open(self.baseFilename, self.mode, encoding=self.encoding, opener=open_private),
        )
