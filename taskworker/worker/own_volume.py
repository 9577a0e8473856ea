"""Reopens a worker's volume in the same process after it failed."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from storage.errors import StorageError
from storage.shards import LocalVolume, VolumeFailed
from storage.system.backoff import Backoff

log = logging.getLogger(__name__)


class Opened(NamedTuple):
    """An open volume, and the random instance name that it has until it is reopened.

    Shards that were appended but not synced under another instance name may be lost.
    """

    volume: LocalVolume
    instance: str


class OwnVolume:
    """Keeps a volume usable. Thread-safe; :meth:`tend` is for one thread.

    Args:
        opened: the volume, open.
        again: reopens it.
        clock_s: monotonic seconds.
    """

    def __init__(
        self, opened: LocalVolume, again: Callable[[], LocalVolume], clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock_s = clock_s
        self._again = again
        self._opened: Opened | None = Opened(opened, new_instance())
        self._lock = threading.Lock()
        self._closed = False
        self._retry = Backoff(first_s=0.5, clock_s=clock_s)
        self._reason = ""
        self._failed_at_s = 0.0

    def current(self) -> Opened:
        """The volume as it is open now.

        Raises:
            VolumeFailed: it is not open; the text says why.
        """
        opened = self._opened
        if opened is None:
            raise VolumeFailed(self._reason)
        return opened

    @property
    def reason(self) -> str:
        """Why the volume cannot be used or is read-only; empty if it works."""
        opened = self._opened
        return self._reason if opened is None else opened.volume.state[1]

    @property
    def failing_s(self) -> float:
        """Seconds for which the volume has been unusable."""
        return 0.0 if self._opened is not None else self._clock_s() - self._failed_at_s

    def tend(self) -> bool:
        """Check the volume; close it if it failed, and reopen it when the next attempt is due."""
        opened = self._opened
        if opened is not None:
            if opened.volume.present():
                return True
            self._let_go(opened.volume)
        if not self._retry.due():
            return False
        try:
            volume = self._again()
        except StorageError as error:
            self._retry.failed()
            if str(error) != self._reason:
                self._reason = str(error)
                log.error("the volume cannot be opened, and is tried again: %s", error)
            return False
        with self._lock:
            if self._closed:
                volume.close()
                return False
            self._opened = Opened(volume, new_instance())
        self._retry.succeeded()
        log.warning("the volume in %s is open again", volume.path)
        return True

    def _let_go(self, volume: LocalVolume) -> None:
        state, cause = volume.state
        self._reason = cause if state == "failed" else f"volume {volume.path} was removed or unmounted"
        self._failed_at_s = self._clock_s()
        self._opened = None
        self._retry.relapsed()
        log.error("%s; it is reopened", self._reason)
        try:
            volume.abandon(self._reason)
        except StorageError as error:
            log.error("the volume in %s could not be closed: %s", volume.path, error)

    def close(self) -> None:
        """Close the volume."""
        with self._lock:
            self._closed = True
            opened = self._opened
        if opened is not None:
            opened.volume.close()


def new_instance() -> str:
    """A random instance name, for one opening of a volume."""
    return secrets.token_hex(8)
