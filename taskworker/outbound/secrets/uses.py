"""Times of last use of secrets, kept in memory, and saved to the catalog about once a minute."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import msgspec

from storage.errors import StorageError
from taskworker.auth.documents import Documents

log = logging.getLogger(__name__)

_DOCUMENT = "pool-secret-uses"
_counts = msgspec.msgpack.Decoder(dict[str, int])
_KEEP_EVERY_S = 60.0  # so that a use does not cost a durable write


class LastUses:
    """Times of last use by name of secret, ms since 1970. Thread-safe.

    Args:
        documents: where they are stored.
        now_ms: milliseconds since 1970.
        clock_s: monotonic seconds.
    """

    def __init__(
        self, documents: Documents, now_ms: Callable[[], int], clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._documents = documents
        self._clock_s = clock_s
        self._now_ms = now_ms
        self._lock = threading.Lock()
        self._uses = _kept(documents)
        self._changed = False
        self._kept_at_s = self._clock_s()

    def note(self, name: str) -> None:
        """Note that a secret is used now."""
        with self._lock:
            self._uses[name] = self._now_ms()
            self._changed = True
            due = self._clock_s() - self._kept_at_s >= _KEEP_EVERY_S
        if due:
            self.keep()

    def of(self, name: str) -> int | None:
        """When a secret was last used; None: never."""
        with self._lock:
            return self._uses.get(name)

    def forget(self, name: str) -> None:
        """Forget a removed secret."""
        with self._lock:
            self._changed = self._uses.pop(name, None) is not None or self._changed

    def keep(self) -> None:
        """Save new times; failures are ignored, so that they do not keep secrets from being used."""
        with self._lock:
            self._kept_at_s = self._clock_s()
            if not self._changed:
                return
            try:
                self._documents.save_document(_DOCUMENT, msgspec.msgpack.encode(self._uses))
                self._changed = False
            except StorageError as error:
                log.warning("the times of the last uses of secrets cannot be saved: %s", error)


def _kept(documents: Documents) -> dict[str, int]:
    raw = documents.document(_DOCUMENT)
    try:
        return _counts.decode(raw) if raw else {}
    except (msgspec.MsgspecError, UnicodeDecodeError):
        log.warning("the times of the last uses of secrets are damaged; recording starts over")
        return {}
