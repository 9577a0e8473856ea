"""The machine: versions, descriptors, clock, and whether it can isolate functions."""

from __future__ import annotations

import ctypes
import platform
import resource
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from storage import ErasureProfile
from storage.erasure import accelerator_name
from storage.system.descriptors import DESCRIPTORS_WANTED
from taskworker import __version__
from taskworker.doctor.findings import Finding, fine, problem, warning
from taskworker.sandbox import SandboxHost, SandboxUnavailable

_UNSYNCHRONIZED = 5  # TIME_ERROR of adjtimex(2)
_TIMEX_BYTES = 512  # struct timex has 208; zeros ask for the state alone
_DESCRIPTORS_MIN = 1024


def versions() -> Iterator[Finding]:
    """The releases in use, and whether the erasure code is accelerated."""
    parts = ", ".join(f"{name} {version(name)}" for name in ("grpcio", "lmdb", "zfec", "cryptography"))
    system = f"{platform.system()} {platform.release()} ({platform.machine()})"
    yield fine("versions", f"taskworker {__version__}, Python {platform.python_version()}, {system}, {parts}")
    accelerator = accelerator_name(ErasureProfile())
    if accelerator == "isa-l":
        yield fine("erasure code", "ISA-L is used")
    else:
        yield warning(
            "erasure code",
            f"{accelerator} is used, which is several times slower than ISA-L",
            "install pyeclib, which has ISA-L for x86-64 and ARM64",
        )


def descriptors() -> Iterator[Finding]:
    """How many files and connections a process may have open."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard >= DESCRIPTORS_WANTED:
        most = "any number of" if hard == resource.RLIM_INFINITY else f"{hard:,}"
        yield fine("descriptors", f"a process may open {most} files and connections")
        return
    found = f"a process may open {hard:,} files and connections, {DESCRIPTORS_WANTED:,} are better"
    advice = "raise the hard limit: LimitNOFILE= of a unit, --ulimit nofile= of a container, or limits.conf"
    yield (warning if hard >= _DESCRIPTORS_MIN else problem)("descriptors", found, advice)


def clock() -> Iterator[Finding]:
    """Whether something keeps the clock right, by which certificates and tokens are judged."""
    state = _clock_state()
    if state is None:
        yield warning("clock", "it cannot be told whether it is synchronized", "check that NTP keeps it right")
    elif state == _UNSYNCHRONIZED:
        yield warning(
            "clock",
            "nothing synchronizes it; certificates and tokens of other machines are judged by it",
            "run chrony or systemd-timesyncd, here or on the host of this container",
        )
    else:
        yield fine("clock", "it is synchronized")


def _clock_state() -> int | None:
    """What adjtimex(2) says; None: it cannot be asked."""
    try:
        ask = ctypes.CDLL(None, use_errno=True).adjtimex
    except AttributeError:  # another C library
        return None
    state: int = ask(ctypes.create_string_buffer(_TIMEX_BYTES))
    return None if state < 0 else state


def sandboxes() -> Iterator[Finding]:
    """Whether functions can be isolated: the self-test that a worker also makes."""
    with tempfile.TemporaryDirectory(prefix="taskworker-doctor-") as directory:
        host = SandboxHost(Path(directory))
        try:
            host.start()
        except SandboxUnavailable as error:
            yield problem(
                "sandboxes",
                str(error),
                "see docs/functions.md; a worker that runs no functions (--no-functions) does not need them",
            )
        else:
            yield fine("sandboxes", "functions can be isolated: a program that tries to break out does not succeed")
        finally:
            host.close()
