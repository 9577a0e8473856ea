"""The condition of a volume: whether it can be read and written now, and what disk errors mean for that."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from storage.clocks import monotonic_s
from storage.errors import StorageError
from storage.shards.filesystem import FileSystem, Space
from storage.shards.port import VolumeFailed, VolumeReadOnly, VolumeUnavailable
from storage.shards.room import Room
from storage.system.backoff import Backoff
from storage.system.faults import Fault, fault_of

log = logging.getLogger(__name__)


class Condition:
    """The state of a volume, derived from its errors. It turns errors of the disk into those to raise.

    It has no lock of its own: attributes are replaced as a whole, and readers use their current values.

    Args:
        path: directory of the volume.
        filesystem: reports the free space.
        clock_s: monotonic clock, in seconds.

    Attributes:
        room: whether there is space; guarded by the volume's lock.
        read_only: why the disk takes no writes; empty if it does.
        refusal: why the last write or access failed; empty if it did not.
        retry: when to try again to write to a read-only disk; guarded by the volume's lock.
    """

    def __init__(self, path: Path, filesystem: FileSystem, clock_s: Callable[[], float] = monotonic_s) -> None:
        self._path = path
        self._filesystem = filesystem
        self._failure: Exception | None = None
        self.room = Room(path, self.space, clock_s)
        self.read_only = ""
        self.refusal = ""
        self.retry = Backoff(clock_s=clock_s)

    @property
    def has_failed(self) -> bool:
        """Whether the volume has failed or was closed, and has to be opened again."""
        return self._failure is not None

    def summary(self) -> tuple[str, str]:
        """Return ``"ok"``, ``"read-only"``, ``"full"``, ``"refusing"`` or ``"failed"``, and why."""
        if self._failure is not None:
            return "failed", str(self._failure)
        if self.read_only:
            return "read-only", self.read_only
        try:
            full = self.room.why_full()
        except StorageError as error:
            return "refusing", str(error)
        if full:
            return "full", full
        return ("refusing", self.refusal) if self.refusal else ("ok", "")

    def check_usable(self) -> None:
        """Check that the volume is open and has not failed.

        Raises:
            VolumeFailed: it is closed or has failed.
        """
        if self._failure is not None:
            raise VolumeFailed(f"volume {self._path} cannot be used: {self._failure}")

    def space(self) -> Space:
        """Return the space on the volume's file system.

        Raises:
            VolumeFailed: the volume is closed or has failed.
            VolumeUnavailable: the file system does not answer now.
        """
        self.check_usable()
        try:
            return self._filesystem.space(self._path)
        except OSError as error:
            raise self.unreadable(error) from error

    def fail(self, error: Exception) -> VolumeFailed:
        """Note that the volume has failed and must be opened again; return the error to raise."""
        if self._failure is None:
            log.error("volume %s failed: %s", self._path, error)
            self._failure = error
        return VolumeFailed(f"volume {self._path} failed: {error}; it will be reopened as soon as its disk responds")

    def end(self, reason: str) -> None:
        """Note that the volume is closed, unless it has failed before. It cannot be used any more."""
        self._failure = self._failure or VolumeFailed(reason)

    def unreadable(self, error: OSError) -> VolumeUnavailable:
        """Return the error to raise for a failed read."""
        self.refusal = f"volume {self._path} cannot be read now: {error}"
        return VolumeUnavailable(self.refusal)

    def refused(self, error: OSError) -> StorageError:
        """Update the condition after a failed write or change of the directory; return the error to raise."""
        match fault_of(error):
            case Fault.READ_ONLY:
                self.note_read_only(error)
                return VolumeReadOnly(self.read_only)
            case Fault.PASSING:
                self.refusal = f"volume {self._path} cannot be written now: {error}"
                return VolumeUnavailable(self.refusal)
            case Fault.FULL:
                return self.room.found_none(error)
            case _:
                return self.fail(error)

    def note_read_only(self, error: OSError) -> None:
        """Note that the disk takes no writes. The pause before the next attempt begins now."""
        if not self.read_only:
            log.warning("volume %s can only be read: %s", self._path, error)
        self.read_only = f"volume {self._path} can only be read: {error}"
        self.retry.failed()
