"""Finds what is in a directory tree. Symbolic links are never followed, also if names change meanwhile."""

from __future__ import annotations

import operator
import os
import stat
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import msgspec
from blake3 import blake3

from storage.errors import InvalidArgument, StorageError
from taskworker.folders.entries import NAME_BYTES_MAX, PATH_BYTES_MAX, XATTRS_MAX, Entry, Kind, kind_of
from taskworker.folders.problems import Problem, Unstorable
from taskworker.folders.rules import IGNORE_FILE, Exclusions, Rules, ignored_in, is_cache, is_kept_in_cache

DEPTH_MAX = 256
"""Directories in each other: each one keeps a descriptor open while it is scanned."""

_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FORMATS = (stat.S_IFREG, -1, stat.S_IFLNK, stat.S_IFIFO)  # by kind; directories are always looked into
_BLOCK_BYTES = 512  # the unit of st_blocks

# What shows a change of a file, whatever changes it: each change sets at least the time of the inode.
_stat_of = operator.attrgetter(
    "st_mtime_ns", "st_ctime_ns", "st_ino", "st_mode", "st_size", "st_uid", "st_gid", "st_nlink"
)
_encode = msgspec.msgpack.Encoder().encode

DirEntry = os.DirEntry[str]
Xattrs = tuple[tuple[bytes, bytes], ...]
Listed = tuple[bytes, DirEntry]

Former = Callable[[bytes], Mapping[bytes, Entry]]
"""What a directory contained at an earlier time, by name; the directory is named by its path in the tree."""


class Seen(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A directory as it was at an earlier time.

    Attributes:
        fingerprint: hash of the names in it, and of what stat said of each; empty: it must be looked at anyway.
        rules: hash of its .twignore; empty if it had none.
        directories: names of the directories in it that were looked into.
        content: id of what it contained, as in its entry.
        files: regular files in it; not those in directories in it, as for all that follows.
        size: their bytes.
        others: directories, links and FIFOs.
        skipped: sockets and devices.
    """

    fingerprint: bytes
    rules: bytes
    directories: tuple[bytes, ...]
    content: bytes
    files: int
    size: int
    others: int
    skipped: int


class Look(msgspec.Struct, frozen=True, gc=False):
    """What a scan saw of a directory, besides what is in it; the attributes are those of :class:`Seen`."""

    fingerprint: bytes = b""
    rules: bytes = b""
    skipped: int = 0


class Found(msgspec.Struct, frozen=True, gc=False):
    """Something that is in the tree.

    Attributes:
        path: its path in the tree; empty for the root.
        entry: what it is, without content unless it is known; its name is the last part of the path.
        device: number of its file system.
        parent: descriptor of its directory, open until the scan goes on; the root's own for the root.
        depth: number of directories that it is in; 0 for the root.
        known: whether it is unchanged since the earlier time, so that its entry has the content that it had then. Of a
            directory, all that is below it is unchanged, too, and is not found by itself.
        look: of a directory that is not known: how to know it the next time.
    """

    path: bytes
    entry: Entry
    device: int
    parent: int
    depth: int
    known: bool = False
    look: Look = Look()


class _Place(NamedTuple):
    """A directory to scan.

    Attributes:
        path: its path in the tree.
        rules: those that hold in the directory that it is in.
        depth: number of directories that it is in.
        is_ruled_alike: whether these rules are those of the earlier time.
    """

    path: bytes
    rules: Rules
    depth: int
    is_ruled_alike: bool


class _Same(NamedTuple):
    """A directory that is unchanged with all that is below it."""

    name: bytes
    path: bytes
    status: os.stat_result
    xattrs: Xattrs
    seen: Seen


@dataclass(slots=True)
class Scan:
    """A scan of a directory tree.

    Args:
        root: the directory.
        exclusions: what to leave out.
        problem: told of what cannot be read.
        xattrs: whether to note extended attributes.
        former: what there was at an earlier time, to find what is unchanged since.
        seen: directories at an earlier time, by path, scanned with the same exclusions. Of one that is unchanged, all
            that is below it is neither found nor told to others. None: there is no need to know directories again.
        same: told of each directory that is unchanged with all that is below it.
        left_out: told of each path that is there, but is left out with all that is below it.
        ruled: told of each directory with a ``.twignore``, and which rules hold in it.
        needs_rules: whether a directory whose ``.twignore`` cannot be used is a problem, and nothing in it is found;
            otherwise, that file is the problem, and all in the directory is found.
    """

    root: Path
    exclusions: Exclusions
    problem: Problem
    xattrs: bool = False
    former: Former | None = None
    seen: Mapping[bytes, Seen] | None = None
    same: Callable[[bytes, Seen], object] | None = None
    left_out: Callable[[bytes], object] | None = None
    ruled: Callable[[bytes, Rules], object] | None = None
    needs_rules: bool = False
    skipped: int = 0
    """Sockets and devices, which are never taken."""
    _device: int = field(default=0, init=False)

    def found(self) -> Iterator[Found]:
        """Everything in the tree; a directory comes after what is in it, the root last.

        What is in a directory comes by name, but for directories that are unchanged.

        Raises:
            InvalidArgument: a pattern is malformed.
            OSError: the root cannot be read, or is no directory.
        """
        rules = Rules.of(self.exclusions.patterns)
        descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            self._device = status.st_dev
            inside = yield from self._inside(descriptor, _Place(b"", rules, 0, True))
            entry = _entry_of(b"", Kind.DIRECTORY, status, self._xattrs(descriptor, b"."))
            yield _directory_found(b"", entry, status.st_dev, descriptor, 0, inside)
        finally:
            os.close(descriptor)

    def _inside(self, descriptor: int, place: _Place) -> Generator[Found, None, Look | Seen]:
        """What is in an open directory. If all is as it was seen, nothing is found, and that is returned."""
        path = place.path
        above = path + b"/" if path else b""
        try:
            with os.scandir(descriptor) as listed:
                entries = list(listed)
            fingerprint = b"" if self.seen is None else _fingerprint(entries)
            seen = self.seen.get(path) if self.seen is not None and place.is_ruled_alike else None
            alike = seen if seen is not None and seen.fingerprint == fingerprint != b"" else None
            if alike is not None and not alike.directories:
                self._tell_same(path, alike)
                return alike
            names = [] if alike else sorted((each.name.encode("utf-8", "surrogateescape"), each) for each in entries)
            has_rules = alike.rules if alike else any(name == IGNORE_FILE.encode() for name, _ in names)
            rules, rules_hash, only = self._rules_in(descriptor, above, place.rules, has_rules=bool(has_rules))
            if only:
                names = self._tag_among(names, above)
        except (OSError, StorageError) as error:
            self.problem(path, error)
            return Look()
        if alike is not None:
            inner = _Place(path, rules, place.depth + 1, True)
            return (yield from self._inside_alike(descriptor, inner, entries, alike))
        is_ruled_alike = seen is not None and seen.rules == rules_hash
        skipped = yield from self._each(descriptor, _Place(path, rules, place.depth + 1, is_ruled_alike), names)
        return Look(fingerprint, rules_hash, skipped)

    def _inside_alike(
        self, descriptor: int, inner: _Place, entries: Sequence[DirEntry], seen: Seen
    ) -> Generator[Found, None, Look | Seen]:
        """What is in an open directory that has the names that it had, with the same attributes."""
        path = inner.path
        above = path + b"/" if path else b""
        kept: list[_Same] = []
        for name in seen.directories:
            try:
                same = yield from self._directory(descriptor, name, above + name, inner)
            except FileNotFoundError:
                continue
            except (OSError, Unstorable) as error:
                self.problem(above + name, error)
                continue
            if same is not None:
                kept.append(same)
        if len(kept) == len(seen.directories):
            self._tell_same(path, seen)
            return seen
        for each in kept:
            yield self._same_found(descriptor, each, inner.depth)
        done = {*seen.directories}
        names = [(each.name.encode("utf-8", "surrogateescape"), each) for each in entries]
        skipped = yield from self._each(descriptor, inner, sorted(each for each in names if each[0] not in done))
        return Look(seen.fingerprint, seen.rules, skipped)

    def _tell_same(self, path: bytes, seen: Seen) -> None:
        if self.same is not None:
            self.same(path, seen)

    def _each(self, descriptor: int, inner: _Place, names: Sequence[Listed]) -> Generator[Found, None, int]:
        """What has these names in an open directory; returns how many are sockets and devices.

        Args:
            descriptor: the directory.
            inner: its path, the rules that hold in it, and what is true of directories in it.
            names: in order.
        """
        path, rules, depth, _ = inner
        above = path + b"/" if path else b""
        former: Mapping[bytes, Entry] | None = None
        plain = not rules and not self.xattrs
        skipped = 0
        for name, each in names:
            found_path = above + name
            try:
                status = each.stat(follow_symlinks=False)
                if former is None and not stat.S_ISDIR(status.st_mode):  # late, as reading it takes time
                    former = {} if self.former is None else self.former(path)
                before = None if former is None else former.get(name)
                if plain and before is not None and _is_unchanged(status, before) and not before.xattrs:
                    yield Found(found_path, before, status.st_dev, descriptor, depth, True)
                    continue
                kind = self._wanted(found_path, status, rules)
                if kind is Kind.DIRECTORY:
                    same = yield from self._directory(descriptor, name, found_path, inner)
                    if same is not None:
                        yield self._same_found(descriptor, same, depth)
                elif kind is None:
                    skipped += kind_of(status.st_mode) is None
                    self._leave_out(found_path)
                else:
                    target = os.readlink(name, dir_fd=descriptor) if kind is Kind.SYMLINK else b""
                    entry = _entry_of(name, kind, status, self._xattrs(descriptor, name), target)
                    known = before is not None and _is_unchanged(status, before)
                    if before is not None and known:
                        entry = msgspec.structs.replace(entry, content=before.content)
                    yield Found(found_path, entry, status.st_dev, descriptor, depth, known)
            except FileNotFoundError:
                continue  # it was deleted since the directory was read
            except (OSError, Unstorable) as error:
                self.problem(found_path, error)
        return skipped

    def _tag_among(self, names: list[Listed], above: bytes) -> list[Listed]:
        """The tag of a cache among what is in it."""
        for name, each in names:
            if not is_kept_in_cache(each.name):
                self._leave_out(above + name)
        return [(name, each) for name, each in names if is_kept_in_cache(each.name)]

    def _leave_out(self, path: bytes) -> None:
        if self.left_out is not None:
            self.left_out(path)

    def _rules_in(self, descriptor: int, above: bytes, rules: Rules, *, has_rules: bool) -> tuple[Rules, bytes, bool]:
        """The rules in a directory, the hash of its own if there are some, and whether only a cache's tag is kept."""
        rules_hash = b""
        if has_rules:
            try:
                lines = ignored_in(descriptor)
                rules = rules.deeper(os.fsdecode(above), lines)
                rules_hash = blake3("\n".join(lines).encode("utf-8", "surrogateescape")).digest()
                if self.ruled is not None:
                    self.ruled(above.removesuffix(b"/"), rules)
            except (OSError, InvalidArgument) as error:
                if self.needs_rules:
                    raise InvalidArgument(
                        f"its {IGNORE_FILE} cannot be used; mend or remove it: until then, all in this directory is "
                        f"left alone: {error}"
                    ) from None
                self.problem(above + IGNORE_FILE.encode(), error)  # all is taken rather than too little
        return rules, rules_hash, self.exclusions.caches and is_cache(descriptor)

    def _wanted(self, path: bytes, status: os.stat_result, rules: Rules) -> Kind | None:
        kind = kind_of(status.st_mode)
        if kind is None:
            self.skipped += 1
            return None
        if rules and rules.excludes(os.fsdecode(path), is_directory=kind is Kind.DIRECTORY):
            return None
        if kind is Kind.DIRECTORY and (status.st_dev, status.st_ino) in self.exclusions.paths:
            return None
        if len(path) > PATH_BYTES_MAX:
            raise Unstorable(f"the path has {len(path):,} bytes, at most {PATH_BYTES_MAX:,} are possible")
        return kind

    def _directory(self, parent: int, name: bytes, path: bytes, above: _Place) -> Generator[Found, None, _Same | None]:
        """A directory with all that is below it; if that is unchanged, it is not found but returned."""
        depth = above.depth
        if depth >= DEPTH_MAX:
            raise Unstorable(f"more than {DEPTH_MAX} directories in each other; take the inner ones on their own")
        descriptor = os.open(name, _DIRECTORY_FLAGS, dir_fd=parent)
        try:
            status = os.fstat(descriptor)
            # Before what is in it, which has no place if the directory itself has none.
            xattrs = self._xattrs(parent, name)
            inside: Look | Seen = Look()
            if status.st_dev == self._device or not self.exclusions.other_file_systems:
                inside = yield from self._inside(descriptor, above._replace(path=path))
                if isinstance(inside, Seen):
                    return _Same(name, path, status, xattrs, inside)
            else:
                self._leave_out(path)
            entry = _entry_of(name, Kind.DIRECTORY, status, xattrs)
            yield _directory_found(path, entry, status.st_dev, parent, depth, inside)
            return None
        finally:
            os.close(descriptor)

    def _same_found(self, parent: int, same: _Same, depth: int) -> Found:
        entry = _entry_of(same.name, Kind.DIRECTORY, same.status, same.xattrs)
        return _directory_found(same.path, entry, same.status.st_dev, parent, depth, same.seen)

    def _xattrs(self, parent: int, name: bytes) -> Xattrs:
        return _xattrs_of(parent, name) if self.xattrs else ()


def _entry_of(name: bytes, kind: Kind, status: os.stat_result, xattrs: Xattrs, target: bytes = b"") -> Entry:
    is_file = kind is Kind.FILE
    return Entry(
        name,
        kind,
        stat.S_IMODE(status.st_mode),
        status.st_uid,
        status.st_gid,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_ino,
        status.st_size if is_file else 0,
        target,
        1 if kind is Kind.DIRECTORY else max(1, status.st_nlink),
        is_file and status.st_blocks * _BLOCK_BYTES < status.st_size,
        (),
        xattrs,
    )


def _directory_found(path: bytes, entry: Entry, device: int, parent: int, depth: int, inside: Look | Seen) -> Found:
    if isinstance(inside, Seen):
        known = msgspec.structs.replace(entry, content=(inside.content,))
        return Found(path, known, device, parent, depth, True)
    return Found(path, entry, device, parent, depth, look=inside)


def _fingerprint(entries: Sequence[DirEntry]) -> bytes:
    """A hash of these names in a directory, and of all that shows a change of what has them; empty if there is none.

    Directories list unchanged names in the same order. If one does not, it is looked at as if it had changed.
    """
    try:
        statuses = [each.stat(follow_symlinks=False) for each in entries]
        names = "\0".join([each.name for each in entries]).encode("utf-8", "surrogateescape")
        return blake3(_encode((names, list(map(_stat_of, statuses))))).digest()
    except (OSError, OverflowError):  # of each, it is told later what is wrong
        return b""


def _is_unchanged(status: os.stat_result, entry: Entry) -> bool:
    """Whether nothing shows that a file, link or FIFO is not as it was when the entry was noted."""
    return (
        status.st_mtime_ns == entry.mtime_ns
        and status.st_ctime_ns == entry.ctime_ns
        and status.st_ino == entry.inode
        and status.st_mode == _FORMATS[entry.kind] | entry.mode
        and (status.st_size == entry.size or entry.kind is not Kind.FILE)
        and status.st_uid == entry.uid
        and status.st_gid == entry.gid
        and status.st_nlink == entry.hard_links
    )


def _xattrs_of(parent: int, name: bytes) -> Xattrs:
    path = b"/proc/self/fd/%d/%s" % (parent, name)  # by descriptor: no directory above can be exchanged
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError:  # the file system has none
        return ()
    if len(names) > XATTRS_MAX or any(len(os.fsencode(each)) > NAME_BYTES_MAX for each in names):
        raise Unstorable(f"it has {len(names):,} extended attributes, at most {XATTRS_MAX} are kept")
    return tuple((os.fsencode(each), os.getxattr(path, each, follow_symlinks=False)) for each in sorted(names))
