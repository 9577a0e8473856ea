"""Executors that get no further thread from the machine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pytest


class Busy:
    """An executor with one thread that is busy, until :meth:`let_go`; the machine has no other one for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.executor = ThreadPoolExecutor(4, thread_name_prefix="scarce")
        self._gate = threading.Event()
        self._monkeypatch = monkeypatch
        self.executor.submit(self._gate.wait)

    @contextmanager
    def no_threads(self) -> Iterator[None]:
        start = threading.Thread.start

        def refuse(thread: threading.Thread) -> None:
            if thread.name.startswith("scarce"):
                raise RuntimeError("can't start new thread")
            start(thread)

        with self._monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            try:
                yield
            except BaseException:
                self._gate.set()  # whoever closes the executor waits for its thread
                raise

    def let_go(self) -> None:
        """Let the thread do all that is queued."""
        ended = threading.Event()
        with self.no_threads(), suppress(RuntimeError):
            self.executor.submit(ended.set)
        self._gate.set()
        assert ended.wait(60)

    def end(self) -> None:
        """End all threads."""
        self._gate.set()
        self.executor.shutdown()
