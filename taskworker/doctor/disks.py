"""Directories of pools, workers and stores: permissions, space, and how fast they are flushed."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from storage.errors import StorageError
from storage.limits import MIB
from storage.system.private_files import read_private
from taskworker.doctor.findings import Finding, fine, problem, warning

_GIB = 1 << 30
_FLUSHES = 9
_SLOW_FLUSH_S = 0.05
_BLOCK_BYTES = 4096
_LOW_BYTES = _GIB
_LOW_SHARE = 0.05
_FULL_BYTES = 64 * MIB
_IN_MEMORY = frozenset(("tmpfs", "ramfs"))
_REMOTE = frozenset(("nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "fuse.sshfs", "fuse.glusterfs"))
_PRIVATE = ("master.key", "authority.pem", "member.json")


def disk(directory: Path) -> Iterator[Finding]:
    """A directory; one that does not exist yet is judged by where it would be made."""
    about = f"disk {directory}"
    place = _existing(directory)
    if not os.access(place, os.W_OK | os.X_OK):
        yield problem(about, f"{place} cannot be written by this user", "choose another directory, or change its owner")
        return
    yield from _file_system(about, place)
    yield from _space(about, place)
    yield from _flushing(about, place)
    if directory.is_dir():
        yield from _private_files(about, directory)


def _existing(directory: Path) -> Path:
    place = directory.absolute()
    while not place.exists():
        place = place.parent
    return place if place.is_dir() else place.parent


def _file_system(about: str, place: Path) -> Iterator[Finding]:
    kind = _kind_of(place)
    if kind in _IN_MEMORY:
        yield warning(about, f"it is in memory ({kind}): it is lost when the machine stops", "use a disk")
    elif kind in _REMOTE:
        yield warning(
            about,
            f"it is on another machine ({kind}), whose locks and flushes may not be what they should",
            "use a disk of this machine",
        )


def _kind_of(place: Path) -> str:
    """The kind of file system that a directory is on; empty if that is not known."""
    device = place.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        fields = line.split(" ")
        if fields[2] == wanted and "-" in fields:
            return fields[fields.index("-") + 1]
    return ""


def _space(about: str, place: Path) -> Iterator[Finding]:
    found = os.statvfs(place)
    free, total = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
    text = f"{free / _GIB:,.1f} of {total / _GIB:,.1f} GiB are free"
    if free < _FULL_BYTES:
        yield problem(about, text, "free space: writes are refused when less than this is left")
    elif free < min(_LOW_BYTES, total * _LOW_SHARE):
        yield warning(about, text, "free space, or use a larger disk")
    else:
        yield fine(about, text)
    if found.f_files and not found.f_favail:
        yield problem(about, "it has no inodes left, so no file can be made", "remove files that nobody needs")


def _flushing(about: str, place: Path) -> Iterator[Finding]:
    """How long it takes until 4 KiB are durable, for which each push waits."""
    taken_s = []
    try:
        with tempfile.TemporaryFile(dir=place, prefix=".taskworker-doctor-", buffering=0) as file:
            for _ in range(_FLUSHES):
                began_s = time.perf_counter()
                file.write(bytes(_BLOCK_BYTES))
                os.fdatasync(file.fileno())
                taken_s.append(time.perf_counter() - began_s)
    except OSError as error:
        yield problem(about, f"it cannot be written: {error.strerror or error}", "see what the kernel's log says")
        return
    usual_s = statistics.median(taken_s)
    text = f"a flush takes {usual_s * 1000:.2f} ms"
    if usual_s > _SLOW_FLUSH_S:
        yield warning(about, text, "each push waits for flushes: use a faster disk, best an SSD")
    else:
        yield fine(about, text)


def _private_files(about: str, directory: Path) -> Iterator[Finding]:
    for name in _PRIVATE:
        try:
            read_private(directory / name)
        except (StorageError, OSError) as error:
            yield problem(about, str(error), "make it yours alone, and consider that others may have read it")
