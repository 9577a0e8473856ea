"""A machine whose file system calls fail for a while, for the volumes of an embedded store."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

from storage.limits import BytesLike
from storage.shards.filesystem import FileSystem, LocalFileSystem, Space, VolumeFile, raise_if_full
from storage.system.faults import Fault, fault_of

OPENING = frozenset({"create", "open", "write_whole", "read_whole", "names", "sync_directory", "database"})
WRITING = frozenset(
    {"create", "open for writing", "write", "write_whole", "datasync", "truncate", "remove", "make_directory",
     "sync_directory", "remove_tree"}
)  # fmt: skip
BY_NAME = OPENING | {"open for writing", "remove", "make_directory", "space", "remove_tree"}
CLAIMING = frozenset({"create", "write", "write_whole"})
ANY = BY_NAME | WRITING | {"read_into", "drop_cache", "size", "removed"}

CALLS_BY_ERRNO: dict[int, frozenset[str]] = {
    errno.EMFILE: OPENING | {"open for writing"},
    errno.ENFILE: OPENING | {"open for writing"},
    errno.ENOMEM: ANY,
    errno.EACCES: BY_NAME,
    errno.ENOENT: BY_NAME,  # the whole directory is missing, as when it is not mounted yet
    errno.EIO: ANY,
    errno.EROFS: WRITING,
    errno.ETIMEDOUT: ANY,
    errno.ENOSPC: CLAIMING | {"database", "datasync", "make_directory", "space"},
    errno.EDQUOT: CLAIMING,
}
"""Which calls may fail with each error."""


@dataclass(slots=True)
class Trouble:
    """Some calls that fail for a while.

    Attributes:
        errno: error with which they fail.
        calls: which calls fail.
        directory: name of the volume's directory in which they fail; None: in all volumes.
        after: how many of these calls succeed first.
        left: how many then fail; -1: all, until the trouble is ended.
        met: whether a call has failed already.
    """

    errno: int
    calls: frozenset[str]
    directory: str | None
    after: int
    left: int
    met: bool = False


class Machine:
    """A machine's current troubles.

    Attributes:
        injected: how many troubles had an effect, by the name of their error.
        troubles: troubles that have not ended.
    """

    def __init__(self) -> None:
        self.injected: Counter[str] = Counter()
        self.troubles: list[Trouble] = []

    def begin(self, trouble: Trouble) -> None:
        """Begin a trouble."""
        self.troubles.append(trouble)

    def end(self) -> None:
        """End all troubles."""
        self.troubles.clear()

    def failure(self, call: str, path: Path) -> OSError | None:
        """Return the error with which a call fails now; None if it succeeds."""
        for trouble in self.troubles:
            if call not in trouble.calls or (trouble.directory is not None and trouble.directory not in path.parts):
                continue
            if trouble.after:
                trouble.after -= 1
                continue
            if trouble.left > 0:
                trouble.left -= 1
                if not trouble.left:
                    self.troubles.remove(trouble)
            if not trouble.met:
                trouble.met = True
                self.injected[errno.errorcode[trouble.errno]] += 1
            return OSError(trouble.errno, os.strerror(trouble.errno), str(path))
        return None

    def ask(self, call: str, path: Path) -> None:
        """If a call fails now, raise its error as the port does."""
        error = self.failure(call, path)
        if error is not None:
            raise_as_told(error, call)


def raise_as_told(error: OSError, call: str) -> NoReturn:
    """Raise an error of a call as the port does."""
    if call in CLAIMING or call == "database":
        raise_if_full(error)
    raise error


def unreliable(machine: Machine) -> FileSystem:
    """Return the local file system with the troubles of a machine."""
    return cast(FileSystem, _UnreliableFileSystem(machine))


class _UnreliableFileSystem:
    """A file system all of whose calls may fail, including calls that are added to the port later."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._real = LocalFileSystem()

    def __getattr__(self, call: str) -> Callable[..., Any]:
        real = getattr(self._real, call)

        def asked(path: Path, *arguments: Any, **keywords: Any) -> Any:
            self._machine.ask("open for writing" if keywords.get("writable") else call, path)
            outcome = real(path, *arguments, **keywords)
            return _UnreliableFile(self._machine, outcome, path) if call in ("create", "open") else outcome

        return asked

    def space(self, path: Path) -> Space:
        """Return a fixed size, as the real free space does not depend on the seed."""
        error = self._machine.failure("space", path)
        if error is not None and fault_of(error) is not Fault.FULL:
            raise error
        return Space(total=1 << 40, free=1 << 39 if error is None else 0)


class _UnreliableFile:
    """A file of that file system. A failing write may have written a part."""

    def __init__(self, machine: Machine, real: VolumeFile, path: Path) -> None:
        self._machine = machine
        self._real = real
        self._path = path

    def write(self, buffers: Sequence[BytesLike], offset: int) -> None:
        error = self._machine.failure("write", self._path)
        if error is None:
            self._real.write(buffers, offset)
            return
        data = b"".join(buffers)
        self._real.write([data[: len(data) // 2]], offset)
        raise_as_told(error, "write")

    def descriptor(self) -> int:
        return -1

    def __getattr__(self, call: str) -> Callable[..., Any]:
        real = getattr(self._real, call)

        def asked(*arguments: Any) -> Any:
            self._machine.ask(call, self._path)
            return real(*arguments)

        return asked
