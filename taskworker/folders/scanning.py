"""Finds what is in a directory tree. Symbolic links are never followed, also if names change meanwhile."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from storage.errors import InvalidArgument, StorageError
from taskworker.folders.entries import NAME_BYTES_MAX, PATH_BYTES_MAX, XATTRS_MAX, Entry, Kind, kind_of
from taskworker.folders.problems import Problem, Unstorable
from taskworker.folders.rules import IGNORE_FILE, Exclusions, Rules, ignored_in, is_cache, is_kept_in_cache

DEPTH_MAX = 256
"""Directories in each other: each one keeps a descriptor open while it is scanned."""

_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FORMATS = (stat.S_IFREG, -1, stat.S_IFLNK, stat.S_IFIFO)  # by kind; directories are always looked into
_BLOCK_BYTES = 512  # the unit of st_blocks

Listed = tuple[bytes, "os.DirEntry[str]"]

Former = Callable[[bytes], Mapping[bytes, Entry]]
"""What a directory contained at an earlier time, by name; the directory is named by its path in the tree."""


class Found(msgspec.Struct, frozen=True, gc=False):
    """Something that is in the tree.

    Attributes:
        path: its path in the tree; empty for the root.
        entry: what it is, without content unless it is known; its name is the last part of the path.
        device: number of its file system.
        parent: descriptor of its directory, open until the scan goes on; the root's own for the root.
        depth: number of directories that it is in; 0 for the root.
        known: whether it is a file, link or FIFO that is unchanged since the earlier time, so that its entry has the
            content that it had then.
    """

    path: bytes
    entry: Entry
    device: int
    parent: int
    depth: int
    known: bool = False


@dataclass(slots=True)
class Scan:
    """A scan of a directory tree.

    Args:
        root: the directory.
        exclusions: what to leave out.
        problem: told of what cannot be read.
        xattrs: whether to note extended attributes.
        former: what there was at an earlier time, to find what is unchanged since.
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
    left_out: Callable[[bytes], object] | None = None
    ruled: Callable[[bytes, Rules], object] | None = None
    needs_rules: bool = False
    skipped: int = 0
    """Sockets and devices, which are never taken."""
    _device: int = field(default=0, init=False)

    def found(self) -> Iterator[Found]:
        """Everything in the tree by name; a directory comes after what is in it, the root last.

        Raises:
            InvalidArgument: a pattern is malformed.
            OSError: the root cannot be read, or is no directory.
        """
        rules = Rules.of(self.exclusions.patterns)
        descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            self._device = status.st_dev
            yield from self._inside(descriptor, b"", rules, 0)
            entry = self._entry(b"", Kind.DIRECTORY, status, descriptor, b".")
            yield Found(b"", entry, status.st_dev, descriptor, 0)
        finally:
            os.close(descriptor)

    def _inside(self, descriptor: int, path: bytes, rules: Rules, depth: int) -> Iterator[Found]:
        """What is in an open directory."""
        above = path + b"/" if path else b""
        depth += 1
        try:
            with os.scandir(descriptor) as listed:
                names = sorted((each.name.encode("utf-8", "surrogateescape"), each) for each in listed)
            rules, only = self._rules_in(descriptor, above, rules, {name for name, _ in names})
            if only:
                names = self._tag_among(names, above)
        except (OSError, StorageError) as error:
            self.problem(path, error)
            return
        former = {} if self.former is None else self.former(path)
        plain = not rules and not self.xattrs
        for name, each in names:
            found_path = above + name
            try:
                status, before = each.stat(follow_symlinks=False), former.get(name)
                if plain and before is not None and _is_unchanged(status, before) and not before.xattrs:
                    yield Found(found_path, before, status.st_dev, descriptor, depth, True)
                    continue
                kind = self._wanted(found_path, status, rules)
                if kind is Kind.DIRECTORY:
                    yield from self._directory(descriptor, name, found_path, rules, depth)
                elif kind is None:
                    self._leave_out(found_path)
                else:
                    entry = self._entry(name, kind, status, descriptor, name)
                    known = before is not None and _is_unchanged(status, before)
                    if before is not None and known:
                        entry = msgspec.structs.replace(entry, content=before.content)
                    yield Found(found_path, entry, status.st_dev, descriptor, depth, known)
            except FileNotFoundError:
                continue  # it was deleted since the directory was read
            except (OSError, Unstorable) as error:
                self.problem(found_path, error)

    def _tag_among(self, names: list[Listed], above: bytes) -> list[Listed]:
        """The tag of a cache among what is in it."""
        for name, each in names:
            if not is_kept_in_cache(each.name):
                self._leave_out(above + name)
        return [(name, each) for name, each in names if is_kept_in_cache(each.name)]

    def _leave_out(self, path: bytes) -> None:
        if self.left_out is not None:
            self.left_out(path)

    def _rules_in(self, descriptor: int, above: bytes, rules: Rules, names: set[bytes]) -> tuple[Rules, bool]:
        """The rules in a directory with these names, and whether only the tag of a cache is kept of it."""
        if IGNORE_FILE.encode() in names:
            try:
                rules = rules.deeper(os.fsdecode(above), ignored_in(descriptor))
                if self.ruled is not None:
                    self.ruled(above.removesuffix(b"/"), rules)
            except (OSError, InvalidArgument) as error:
                if self.needs_rules:
                    raise InvalidArgument(
                        f"its {IGNORE_FILE} cannot be used; mend or remove it: until then, all in this directory is "
                        f"left alone: {error}"
                    ) from None
                self.problem(above + IGNORE_FILE.encode(), error)  # all is taken rather than too little
        return rules, self.exclusions.caches and is_cache(descriptor)

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

    def _directory(self, parent: int, name: bytes, path: bytes, rules: Rules, depth: int) -> Iterator[Found]:
        if depth >= DEPTH_MAX:
            raise Unstorable(f"more than {DEPTH_MAX} directories in each other; take the inner ones on their own")
        descriptor = os.open(name, _DIRECTORY_FLAGS, dir_fd=parent)
        try:
            status = os.fstat(descriptor)
            if status.st_dev == self._device or not self.exclusions.other_file_systems:
                yield from self._inside(descriptor, path, rules, depth)
            else:
                self._leave_out(path)
            yield Found(path, self._entry(name, Kind.DIRECTORY, status, parent, name), status.st_dev, parent, depth)
        finally:
            os.close(descriptor)

    def _entry(self, name: bytes, kind: Kind, status: os.stat_result, parent: int, at: bytes) -> Entry:
        is_file, is_link = kind is Kind.FILE, kind is Kind.SYMLINK
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
            os.readlink(at, dir_fd=parent) if is_link else b"",
            1 if kind is Kind.DIRECTORY else max(1, status.st_nlink),
            is_file and status.st_blocks * _BLOCK_BYTES < status.st_size,
            (),
            _xattrs_of(parent, at) if self.xattrs else (),
        )


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


def _xattrs_of(parent: int, name: bytes) -> tuple[tuple[bytes, bytes], ...]:
    path = b"/proc/self/fd/%d/%s" % (parent, name)  # by descriptor: no directory above can be exchanged
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError:  # the file system has none
        return ()
    if len(names) > XATTRS_MAX or any(len(os.fsencode(each)) > NAME_BYTES_MAX for each in names):
        raise Unstorable(f"it has {len(names):,} extended attributes, at most {XATTRS_MAX} are kept")
    return tuple((os.fsencode(each), os.getxattr(path, each, follow_symlinks=False)) for each in sorted(names))
