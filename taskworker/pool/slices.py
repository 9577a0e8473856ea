"""How long the kernel lets the threads of a pool run at a time, while others wait for a processor."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
from concurrent.futures import Executor, ThreadPoolExecutor

from storage.runtime import Runtime

log = logging.getLogger(__name__)

_SLICE_NS = 700_000
_KERNELS_OWN = 0
_BULK = ("read-chunks", "store-chunks", "repair", "scrub", "healer")
_CALLS = {"x86_64": (314, 315), "aarch64": (274, 275)}  # numbers of sched_setattr and sched_getattr
_SHARING_POLICIES = (os.SCHED_OTHER, os.SCHED_BATCH)  # their threads share the processors by niceness


class _Attributes(ctypes.Structure):
    """``struct sched_attr`` of ``linux/sched/types.h``, in its first version."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime_ns", ctypes.c_uint64),
        ("deadline_ns", ctypes.c_uint64),
        ("period_ns", ctypes.c_uint64),
    )


def take_short_slices() -> None:
    """Let this thread, and those that it starts from now on, run soon and for a short time, with no larger share.

    If more threads are ready than there are processors, Linux (since 6.12) lets those with shorter slices run first.
    The threads that answer calls need many short moments, each as soon as possible. Measured on 2 busy cores: with
    eight clients that push and get, 99 % of the gets of 4 KiB took 0.5 to 0.8 times as long, small pushes were 1.4
    times as fast, and large pushes as fast within 3 %. With 0.3 ms, these were 5 % slower; with 20 ms, the gets took
    twice as long. Older kernels ignore it.
    """
    _try_slices(_SLICE_NS)


def take_usual_slices() -> None:
    """Let this thread run for as long at a time as others, whichever thread started it."""
    _try_slices(_KERNELS_OWN)


class PoolRuntime(Runtime):
    """The machine's threads. Those that move and code large amounts of data take no short slices.

    If they did, what they do would be interrupted more often, and gain nothing.
    """

    def executor(self, threads: int, name: str) -> Executor:
        """See :meth:`storage.runtime.Runtime.executor`."""
        if name not in _BULK:
            return super().executor(threads, name)
        return ThreadPoolExecutor(threads, thread_name_prefix=name, initializer=take_usual_slices)


def _try_slices(length_ns: int) -> None:
    try:
        _set_slice(length_ns)
    except OSError as error:
        log.debug("the length of time slices is not set: %s", error)


def slice_ns() -> int:
    """Return the length of this thread's time slices in nanoseconds; 0: the kernel's own length.

    Raises:
        OSError: the system does not tell it.
    """
    return int(_attributes().runtime_ns)


def _set_slice(length_ns: int) -> None:
    attributes = _attributes()
    if attributes.policy not in _SHARING_POLICIES:
        raise OSError(f"the scheduling policy {attributes.policy} has no slices that can be set")
    attributes.runtime_ns = length_ns
    _call(0, ctypes.byref(attributes), ctypes.c_uint(0))


def _attributes() -> _Attributes:
    attributes = _Attributes()
    size = ctypes.sizeof(attributes)
    _call(1, ctypes.byref(attributes), ctypes.c_uint(size), ctypes.c_uint(0))
    attributes.size = size
    return attributes


def _call(which: int, *arguments: object) -> None:
    """Call the kernel for the calling thread; the C library has had these functions only since 2.41."""
    numbers = _CALLS.get(platform.machine())
    if numbers is None:
        raise OSError(f"the numbers of the system calls of {platform.machine()} are unknown")
    library = ctypes.CDLL(None, use_errno=True)
    if library.syscall(ctypes.c_long(numbers[which]), ctypes.c_int(0), *arguments) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
