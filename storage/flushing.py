"""Making several volumes durable at once, in whichever way is faster here and now.

Volumes on disks of their own are flushed in parallel, one thread each. Where all volumes share a
file system, one syncfs may do for all of them: it costs one journal commit in place of one a volume
(measured here: 0.22 ms against 0.36 ms for six), but it also waits for whatever else is dirty on
that file system. So both are timed, the faster is used, and the other is tried now and then.
"""

from __future__ import annotations

import ctypes
import os
import platform
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

_PROBE_EVERY = 64  # rounds between trials of the way not in use
_PROBE_EVERY_SLOW = 4096  # the same if it was much slower last time
_MUCH_SLOWER = 4.0
_WEIGHT = 0.2  # of the newest timing in the moving averages
_SYNCFS_KERNEL = (5, 8)  # since then syncfs reports write errors, see syncfs(2)

Job = Callable[[], None]


class Flusher:
    """Runs flush jobs in parallel threads, or one syncfs in their place.

    Args:
        paths: the volumes' directories.
        allow_together: whether syncfs may be used at all.
    """

    def __init__(self, paths: Sequence[Path], *, allow_together: bool = True) -> None:
        self._threads = [_FlushThread(f"flush-volume-{slot}") for slot in range(1, len(paths))]
        self._round_lock = threading.Lock()
        self._directory = _open_shared(paths) if allow_together and len(paths) > 1 else -1
        self._apart_s = 0.0
        self._together_s = 0.0
        self._rounds = 0

    def flush(self, jobs: Sequence[Job]) -> Exception | None:
        """Do all jobs' work.

        Args:
            jobs: each makes one volume durable on its own, keeping its error to itself.

        Returns:
            the error if syncfs was used in their place and failed.
        """
        with self._round_lock:
            self._rounds += 1
            if len(jobs) > 1 and self._directory >= 0 and self._choose_together():
                started = time.perf_counter()
                error = _syncfs(self._directory)
                self._together_s = _averaged(self._together_s, time.perf_counter() - started)
                return error
            started = time.perf_counter()
            self._flush_apart(jobs)
            self._apart_s = _averaged(self._apart_s, time.perf_counter() - started)
            return None

    def _choose_together(self) -> bool:
        if not self._together_s or not self._apart_s:
            return not self._together_s
        together = self._together_s < self._apart_s
        ratio = max(self._together_s, self._apart_s) / min(self._together_s, self._apart_s)
        probe = _PROBE_EVERY_SLOW if ratio > _MUCH_SLOWER else _PROBE_EVERY
        return together != (self._rounds % probe == 0)

    def _flush_apart(self, jobs: Sequence[Job]) -> None:
        running = list(zip(self._threads, jobs[1:], strict=False))
        for thread, job in running:
            thread.start(job)
        for job in jobs[:1]:
            job()
        for thread, _ in running:
            thread.wait()

    def close(self) -> None:
        """End the threads."""
        with self._round_lock:
            for thread in self._threads:
                thread.stop()
            self._threads = []
            if self._directory >= 0:
                os.close(self._directory)
                self._directory = -1


class _FlushThread:
    """A thread that runs one job at a time; a bare lock pair wakes it faster than a queue or executor."""

    def __init__(self, name: str) -> None:
        self._go = threading.Lock()
        self._done = threading.Lock()
        self._go.acquire()
        self._done.acquire()
        self._job: Job | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def start(self, job: Job) -> None:
        self._job = job
        self._go.release()

    def wait(self) -> None:
        self._done.acquire()

    def stop(self) -> None:
        self._job = None
        self._go.release()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._go.acquire()
            if self._job is None:
                return
            try:
                self._job()
            finally:
                self._done.release()


def _averaged(average: float, latest: float) -> float:
    return latest if not average else average + _WEIGHT * (latest - average)


def _open_shared(paths: Sequence[Path]) -> int:
    """A descriptor of the file system that all paths are on; -1 if there is none or syncfs is no good here."""
    release = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2] if part.isdigit())
    if platform.system() != "Linux" or release < _SYNCFS_KERNEL:
        return -1
    if len({path.stat().st_dev for path in paths}) != 1:
        return -1
    return os.open(paths[0].parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


_libc = ctypes.CDLL(None, use_errno=True)


def _syncfs(descriptor: int) -> Exception | None:
    if _libc.syncfs(descriptor) == 0:
        return None
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), "syncfs")
