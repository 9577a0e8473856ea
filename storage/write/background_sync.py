"""Syncs the volumes while a push goes on, so that little is left to sync at its end."""

from __future__ import annotations

from concurrent.futures import Future

from storage.write.context import PushContext


class BackgroundSync:
    """The syncs of one push, one at a time. Not thread-safe.

    Args:
        context: parts of the store.
    """

    def __init__(self, context: PushContext) -> None:
        self._context = context
        self._running: Future[None] | None = None

    def start(self) -> None:
        """Start a sync, once the one before has ended."""
        self.wait()
        self._running = self._context.flusher.submit(self._context.stripes.volumes.sync_most)

    def wait(self) -> None:
        """Wait until the sync that runs has ended, and raise its error."""
        running, self._running = self._running, None
        if running is not None:
            running.result()
