"""Brings the sides of a sync to the same state, file by file."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import msgspec
from blake3 import blake3

from storage import FileNotFound, Version
from storage.errors import StorageError
from taskworker.folders.entries import Entry, Kind, parts_of
from taskworker.folders.ports import Content
from taskworker.folders.syncing.comparing import PASSING, Comparing
from taskworker.folders.syncing.planning import Step, conflict_name
from taskworker.folders.syncing.replica import MODE_BITS, Moved

_TOGETHER_BYTES_MAX = 1 << 20
_SAVED_EVERY = 2000
"""Paths after which the state is saved, so that an interrupted sync goes on from there."""

_SETTLING_NS = 2_000_000_000  # the coarsest clock among common file systems, FAT's


class Transferring(Comparing):
    """What a sync does with each path. The error of one does not keep the others."""

    __slots__ = ()

    def _try(self, path: bytes, act: Callable[[], None]) -> None:
        """Do something with a path; its error does not keep the others."""
        try:
            act()
        except PASSING as error:
            self._passing[path] = error
        except (OSError, OverflowError, ValueError, StorageError) as error:
            self._failure(path, error)
        self._unsaved += 1
        if self._unsaved >= _SAVED_EVERY:
            self._save()

    def _save(self) -> None:
        """Keep what both sides have in common, once that is durable here.

        After a power cut, a file that is shorter than what was noted of it would count as changed, and would be sent.

        A file that was written just before it was read may have been written once more within the same tick of the
        clock, which nothing would show: it is read the next time.
        """
        if self._is_unsound:
            return  # the kernel tells of an error once only, so nothing shows now what is durable
        try:
            for path in self._unflushed.values():
                self._replica.flush(path)
        except OSError:
            self._is_unsound = True
            raise
        self._unflushed.clear()
        settled_ns = self._began_ns - _SETTLING_NS
        self.state.save(
            entry
            if entry.kind is not Kind.FILE or entry.mtime_ns < settled_ns
            else msgspec.structs.replace(entry, ctime_ns=0)
            for entry in self._common.values()
        )
        self._unsaved = 0

    def _free_name(self, path: bytes) -> bytes:
        taken = (self._local, self._stored.entries)
        return conflict_name(
            path,
            self.host,
            self.now_ms(),
            lambda name: any(name in side for side in taken) or self._replica.status(name) is not None,
        )

    def _keep_ours_aside(self, steps: dict[bytes, Step]) -> None:
        """Give our file or link another name, under which it is sent."""
        for path in self._chosen(steps, Step.KEEP_BOTH):

            def act(path: bytes = path) -> None:
                aside = self._free_name(path)
                self._replica.rename(path, aside)
                entry = self._local.pop(path)
                now = self._replica.status(aside)
                if now is not None:  # a new name counts as a change of the inode
                    entry = msgspec.structs.replace(
                        entry, ctime_ns=now.st_ctime_ns, mtime_ns=now.st_mtime_ns, size=_size(now, entry)
                    )
                self._local[aside] = msgspec.structs.replace(entry, name=aside)
                steps[path], steps[aside] = Step.FETCH, Step.SEND
                self.report.conflicts += 1
                self.told("kept both", aside)

            self._try(path, act)

    def _settle(self, steps: Mapping[bytes, Step]) -> None:
        """Note what both sides have, and bring modes to the same."""
        for path in self._chosen(steps, Step.NONE, Step.SETTLE):
            self._try(path, partial(self._settled, path, steps[path]))

    def _settled(self, path: bytes, step: Step) -> None:
        local, stored, common = self._local.get(path), self._stored.entries.get(path), self._common.get(path)
        if path in self._passing or path in self._failed:
            return
        if local is None or stored is None:
            self._common.pop(path, None)
            return
        content: tuple[bytes, ...] = ()
        if local.kind is Kind.FILE:
            is_known = common is not None and step is Step.NONE
            content = common.content if common and is_known else (stored.content[0], self._digest(path, local))
        mode, theirs = local.mode, self._stored.mode_of(path)
        base = local.mode if common is None else common.mode
        is_theirs = theirs is not None and not (mode ^ base) & MODE_BITS and (theirs ^ base) & MODE_BITS
        if theirs is not None and is_theirs and local.kind is not Kind.SYMLINK:
            self._replica.set_mode(path, local, theirs)
            mode = mode & ~MODE_BITS | theirs & MODE_BITS
            local = self._replica.noted(path, local)
        self._common[path] = msgspec.structs.replace(local, mode=mode, content=content, xattrs=())

    # -- here ------------------------------------------------------------------------------------

    def _delete_here(self, steps: Mapping[bytes, Step]) -> None:
        """Delete what is gone there, and what something of another kind takes the place of; inner paths first."""
        for path in reversed(self._chosen(steps, Step.FETCH)):
            local, stored = self._local.get(path), self._stored.entries.get(path)
            if path in self._passing or path in self._failed:
                continue
            if local is None or (stored is not None and _is_replaced_at_once(local, stored)):
                continue
            self._try(path, partial(self._deleted_here, path, local, stored))

    def _deleted_here(self, path: bytes, local: Entry, stored: Entry | None) -> None:
        try:
            self._replica.remove(path, local)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            return  # what was left out is in it still
        self._local.pop(path)
        if stored is None:
            self._common.pop(path, None)
            if local.kind is not Kind.DIRECTORY:
                self.report.deleted_here += 1
                self.told("deleted here", path)

    def _fetch(self, steps: Mapping[bytes, Step]) -> None:
        small: dict[str, tuple[bytes, bytes, bytes | None]] = {}
        for path in sorted(self._chosen(steps, Step.FETCH, Step.KEEP_BOTH_THERE)):
            stored = self._stored.entries.get(path)
            if stored is None or path in self._passing or path in self._failed:
                continue
            to = self._free_name(path) if steps[path] is Step.KEEP_BOTH_THERE else path
            if stored.kind is Kind.FILE and stored.size <= _TOGETHER_BYTES_MAX:
                small[self._stored.heads[path].file_id] = path, to, stored.content[0]
            else:
                self._try(path, partial(self._fetched, path, to, None, None))
        for outcome in self.files.get_many(list(small), bytes_max=_TOGETHER_BYTES_MAX):
            path, to, wanted = small[outcome.file]

            def act(
                path: bytes = path,
                to: bytes = to,
                wanted: bytes | None = wanted,
                version: Version | None = outcome.version,
                data: bytes | None = outcome.data,
                error: Exception | None = outcome.error,
            ) -> None:
                if version is None or data is None:
                    raise error or Moved("it has grown meanwhile")
                if bytes.fromhex(version.version_id) != wanted:
                    raise Moved("it was changed meanwhile")
                self._fetched(path, to, version, data)

            self._try(path, act)

    def _fetched(self, path: bytes, to: bytes, version: Version | None, data: bytes | None) -> None:
        """Write what the store has at a path to the directory."""
        stored, local = self._stored.entries[path], self._local.get(to)
        if stored.kind is Kind.DIRECTORY:
            self._replica.target.add_directory(parts_of(path), stored)
            self._common[path] = msgspec.structs.replace(stored, name=path, content=(), xattrs=())
            return
        digest = blake3()
        if stored.kind is Kind.SYMLINK:
            self._replica.require(to, local)
            self._replica.target.add_other(parts_of(to), stored)
        else:
            head = version or self._stored.heads[path]

            def content() -> Iterator[bytes]:
                for piece in (data,) if data is not None else self._pieces(head):
                    digest.update(piece)
                    yield piece
                self._replica.require(to, local)  # last of all, before it takes the place of what is there

            mode = self._mode_for(path, local)
            stored = msgspec.structs.replace(stored, mode=mode, xattrs=())
            self._replica.target.add_file(parts_of(to), stored, content())
            written = self._replica.status(to)
            if written is not None:
                self._unflushed.setdefault(written.st_dev, to)
        self.report.fetched += 1
        self.report.fetched_size += stored.size
        noted = self._replica.noted(to, stored)
        if noted.kind is Kind.FILE:
            noted = msgspec.structs.replace(noted, content=(stored.content[0], digest.digest()))
        if to == path:
            self._common[path] = noted
        else:
            self._moved_aside(path, to, noted)
        self.told("fetched", to)
        self._count()

    def _moved_aside(self, path: bytes, to: bytes, noted: Entry) -> None:
        """Their file was written under another name here, as a directory of ours has its name: send both."""
        self._local[to] = noted
        self.report.conflicts += 1
        self.told("kept both", to)

    def _mode_for(self, path: bytes, local: Entry | None) -> int:
        known = self._stored.mode_of(path)
        if known is not None:
            return known
        return local.mode if local is not None and local.kind is Kind.FILE else self._stored.entries[path].mode

    # -- there -----------------------------------------------------------------------------------

    def _send(self, steps: dict[bytes, Step]) -> None:
        asides = [path for path in self._local if path not in steps]
        for path in asides:
            steps[path] = Step.SEND
        new: list[bytes] = []
        for path in sorted(self._chosen(steps, Step.SEND)):
            local, stored = self._local.get(path), self._stored.entries.get(path)
            if local is None or path in self._passing or path in self._failed:
                continue
            if local.kind is not Kind.FILE:
                self._unlisted[path] = msgspec.structs.replace(local, content=(), xattrs=())
                self.report.sent += local.kind is Kind.SYMLINK
            elif stored is None or stored.kind is not Kind.FILE:
                new.append(path)
            else:
                self._try(path, partial(self._sent_after, path, local))
        self._send_new(new)

    def _name_of(self, path: bytes) -> str:
        return self.prefix + path.decode()

    def _sent_after(self, path: bytes, local: Entry) -> None:
        """Send a new version of a file, if nobody else has."""
        read = _Read()
        content = self._replica.content(path, local, read.ended)
        head = self._stored.heads[path]
        self._sent(path, local, read, self.files.push_after(self._name_of(path), content, head.version_id))

    def _send_new(self, paths: Iterable[bytes]) -> None:
        on_way: list[tuple[bytes, _Read]] = []

        def contents() -> Iterator[tuple[str, Content]]:
            for path in paths:
                read = _Read()
                try:
                    content = self._replica.content(path, self._local[path], read.ended)
                except Moved as error:
                    self._passing[path] = error
                except (OSError, StorageError) as error:
                    self._failure(path, error)
                else:
                    on_way.append((path, read))
                    yield self._name_of(path), content

        for outcome in self.files.push_many(contents()):
            path, read = on_way[outcome.position]

            def act(
                path: bytes = path,
                read: _Read = read,
                version: Version | None = outcome.version,
                error: Exception | None = outcome.error,
            ) -> None:
                if version is None:
                    raise error or StorageError("it was not stored")
                if version.parent_id is not None and not version.unchanged:
                    self._rescue(path, version, version.parent_id)
                self._sent(path, self._local[path], read, version)

            self._try(path, act)

    def _rescue(self, path: bytes, version: Version, parent_id: str) -> None:
        """Keep, under another name here, what somebody else stored under a new name just before we did."""
        theirs = self.files.version(version.file_id, parent_id)
        aside = self._free_name(path)
        entry = Entry(
            aside, Kind.FILE, self._local[path].mode, os.geteuid(), os.getegid(), theirs.time_ms * 1_000_000, 0, 0
        )
        self._replica.target.add_file(parts_of(aside), entry, self._pieces(theirs))
        self.report.conflicts += 1
        self.told("kept both", aside)
        self._passing[aside] = Moved("it is sent in the next round")

    def _sent(self, path: bytes, local: Entry, read: _Read, version: Version) -> None:
        ctime_ns = 0 if read.changed else local.ctime_ns
        content = (bytes.fromhex(version.version_id), read.digest)
        self._common[path] = msgspec.structs.replace(
            local, name=path, ctime_ns=ctime_ns, size=version.size, content=content, xattrs=()
        )
        if read.changed:
            self._passing[path] = Moved("it was changed while it was read; sync again when nobody writes to it")
        if not version.unchanged:
            self.report.sent += 1
            self.report.sent_size += version.size
            self.told("sent", path)
        self._count()

    def _delete_there(self, steps: Mapping[bytes, Step]) -> None:
        """Delete what is gone here, and files that something of another kind has taken the place of."""
        for path in reversed(self._chosen(steps, Step.SEND, Step.KEEP_BOTH_THERE)):
            local, stored = self._local.get(path), self._stored.entries.get(path)
            if path in self._passing or path in self._failed:
                continue
            if stored is not None and (local is None or local.kind is not stored.kind):
                self._try(path, partial(self._deleted_there, path, local, stored))
            elif local is None:
                self._common.pop(path, None)

    def _deleted_there(self, path: bytes, local: Entry | None, stored: Entry) -> None:
        self._require_gone(path, local)
        if stored.kind is Kind.FILE:
            with suppress(FileNotFound):  # somebody else has deleted it, too
                self.files.delete(self._stored.heads[path])
        if local is not None:
            if local.kind is not Kind.FILE:
                self._unlisted[path] = msgspec.structs.replace(local, content=(), xattrs=())
            return
        if stored.kind is Kind.FILE:
            self._common.pop(path, None)
        else:
            self._unlisted[path] = None
        self._gone.add(path)
        if stored.kind is not Kind.DIRECTORY:
            self.report.deleted_there += 1
            self.told("deleted there", path)

    def _require_gone(self, path: bytes, local: Entry | None) -> None:
        """Refuse to delete there what is back here, as after an editor has saved it by renaming.

        Raises:
            Moved: it is.
        """
        now = self._replica.status(path)
        if local is not None:
            self._replica.require(path, local)
        elif now is not None:
            folded = path.decode(errors="replace").casefold()
            if not any(
                each.inode == now.st_ino and other.decode(errors="replace").casefold() == folded
                for other, each in self._local.items()
            ):  # where case is ignored, it may be another name of the same file
                raise Moved("it is back")

    def _count(self) -> None:
        if self.progress is not None:
            report = self.report
            self.progress(report.sent + report.fetched, report.sent_size + report.fetched_size)


@dataclass(slots=True)
class _Read:
    """What reading a file has shown."""

    digest: bytes = b""
    changed: bool = False

    def ended(self, digest: bytes, changed: bool) -> None:
        self.digest, self.changed = digest, changed


def _size(status: os.stat_result, entry: Entry) -> int:
    return status.st_size if entry.kind is Kind.FILE else entry.size


def _is_replaced_at_once(local: Entry, stored: Entry) -> bool:
    """Whether what is fetched takes the place of what is here when it is written."""
    return (local.kind is Kind.DIRECTORY) == (stored.kind is Kind.DIRECTORY)
