"""Answers the kernel's requests about a tree."""

from __future__ import annotations

import errno
import functools
import itertools
import logging
import os
import stat
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import mfusepy

from storage import FileNotFound, PermissionDenied, VersionNotFound
from storage.errors import StorageError
from taskworker.folders.entries import NAME_BYTES_MAX, Kind
from taskworker.gateways.fuse.file_tree import FRESH_S
from taskworker.gateways.fuse.nodes import Node, Tree

log = logging.getLogger(__name__)

_NODES_KEPT_MAX = 20_000
_LOGGED_EVERY_S = 10.0
_BLOCK_BYTES = 4096
_NUMBERS: tuple[tuple[type[StorageError], int], ...] = (
    (FileNotFound, errno.ENOENT),
    (VersionNotFound, errno.ESTALE),
    (PermissionDenied, errno.EACCES),
)

P = ParamSpec("P")
T = TypeVar("T")


def _answered(
    operation: Callable[Concatenate[TreeOperations, P], T],
) -> Callable[Concatenate[TreeOperations, P], T]:
    """Turn errors of the store into those of the operating system, EIO for most, and log them now and then."""

    @functools.wraps(operation)
    def run(self: TreeOperations, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return operation(self, *args, **kwargs)
        except StorageError as error:
            number = next((each for kind, each in _NUMBERS if isinstance(error, kind)), errno.EIO)
            if number == errno.EIO:
                self.log_problem(error)
            raise OSError(number, os.strerror(number)) from error
        except OSError as error:
            if error.errno is None:
                self.log_problem(error)
                raise OSError(errno.EIO, os.strerror(errno.EIO)) from error
            raise
        except Exception as error:  # one request fails; the others, and the mount, go on
            self.log_problem(error)
            raise OSError(errno.EIO, os.strerror(errno.EIO)) from error

    return run


class _Open(NamedTuple):
    """An open file: its path, what it was when it was opened, and the key of its content."""

    path: str
    node: Node
    key: object


class TreeOperations(mfusepy.Operations):  # type: ignore[misc]
    """A tree as libfuse asks for it, by many threads.

    Args:
        tree: what is mounted.
        ready: called once the kernel has mounted it.
        clock_s: monotonic seconds.
    """

    use_ns = True

    def __init__(self, tree: Tree, ready: Callable[[], None], clock_s: Callable[[], float] = time.monotonic) -> None:
        self._tree = tree
        self._ready = ready
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._nodes: OrderedDict[str, tuple[float, Node]] = OrderedDict()
        self._handles: dict[int, _Open] = {}
        self._opened_keys: dict[str, Counter[object]] = {}  # by path: which contents are open, and how often
        self._numbers = itertools.count(1)
        self._in_page_cache: OrderedDict[str, object] = OrderedDict()
        self._logged_s = float("-inf")

    def init(self, path: str) -> None:
        """Begin."""
        self._ready()

    @_answered
    def getattr(self, path: str, fh: Any = None) -> dict[str, Any]:
        """What stat(2) says."""
        node = self._opened(fh) or self._node(path)
        return {
            "st_mode": node.st_mode,
            "st_ino": node.inode,
            "st_nlink": node.links,
            "st_uid": node.uid,
            "st_gid": node.gid,
            "st_size": node.size,
            "st_blocks": node.st_blocks,
            "st_blksize": _BLOCK_BYTES,
            "st_atime": node.mtime_ns,
            "st_mtime": node.mtime_ns,
            "st_ctime": node.ctime_ns,
        }

    @_answered
    def readdir(self, path: str, fh: Any) -> Iterable[tuple[str, dict[str, int], int]]:
        """The names in a directory."""
        kinds = {"st_mode": stat.S_IFDIR}
        found: list[tuple[str, dict[str, int], int]] = [(".", kinds, 0), ("..", kinds, 0)]
        for name, node in self._tree.children(_parts(path)):
            found.append((os.fsdecode(name), {"st_mode": node.st_mode, "st_ino": node.inode}, 0))
        return found

    @_answered
    def readlink(self, path: str) -> str:
        """Where a symbolic link leads."""
        node = self._node(path)
        if node.kind is not Kind.SYMLINK:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return os.fsdecode(node.target)

    @_answered
    def listxattr(self, path: str) -> Iterable[str]:
        """Names of extended attributes."""
        return [os.fsdecode(name) for name, _ in self._node(path).xattrs]

    @_answered
    def getxattr(self, path: str, name: str, position: int = 0) -> bytes:
        """An extended attribute."""
        wanted = os.fsencode(name)
        for each, value in self._node(path).xattrs:
            if each == wanted:
                return value
        raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))

    @_answered
    def open(self, path: str, flags: Any) -> int:
        """Open a file to read. The kernel keeps what it has of it if that is of the same version."""
        if flags.flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        self._forget(path)
        node = self._node(path)
        key = self._tree.content_key(node)
        with self._lock:
            flags.fh = next(self._numbers)
            self._handles[flags.fh] = _Open(path, node, key)
            opened = self._opened_keys.setdefault(path, Counter())
            opened[key] += 1
            if len(opened) > 1:  # the kernel's pages belong to the path, and may be those of another version
                flags.direct_io = True
                return 0
            flags.keep_cache = self._in_page_cache.get(path) == key
            self._in_page_cache[path] = key
            self._in_page_cache.move_to_end(path)
            while len(self._in_page_cache) > _NODES_KEPT_MAX:
                self._in_page_cache.popitem(last=False)
        return 0

    @_answered
    def read(self, path: str, size: int, offset: int, fh: Any) -> bytes:
        """Bytes of an open file."""
        node = self._opened(fh) or self._node(path)
        stop = min(offset + size, node.size)
        data = self._tree.read(node, offset, stop) if offset < stop else b""
        if len(data) != max(0, stop - offset):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return data

    @_answered
    def release(self, path: str, fh: Any) -> int:
        """Close a file."""
        with self._lock:
            closed = self._handles.pop(fh.fh, None)
            if closed is not None:
                opened = self._opened_keys[closed.path]
                opened[closed.key] -= 1
                if not opened[closed.key]:
                    del opened[closed.key]
                if not opened:
                    del self._opened_keys[closed.path]
        return 0

    def statfs(self, path: str) -> dict[str, int]:
        """Nothing about sizes, as the place has none of its own."""
        return {"f_bsize": _BLOCK_BYTES, "f_frsize": _BLOCK_BYTES, "f_namemax": NAME_BYTES_MAX}

    def log_problem(self, error: Exception) -> None:
        """Log an error, unless one was logged just now: a program may meet thousands of them."""
        with self._lock:
            now_s = self._clock_s()
            if now_s - self._logged_s < _LOGGED_EVERY_S:
                return
            self._logged_s = now_s
        log.warning("a read failed with EIO: %s: %s", type(error).__name__, error)

    def _opened(self, fh: Any) -> Node | None:
        opened = None if fh is None else self._handles.get(getattr(fh, "fh", fh))
        return None if opened is None else opened.node

    def _forget(self, path: str) -> None:
        """What is opened is looked up anew in a tree that changes."""
        if not self._tree.immutable:
            with self._lock:
                self._nodes.pop(path, None)

    def _node(self, path: str) -> Node:
        with self._lock:
            kept = self._nodes.get(path)
            if kept is not None and kept[0] >= self._clock_s():
                return kept[1]
        node = self._tree.node(_parts(path))
        until_s = self._clock_s() + (float("inf") if self._tree.immutable and node.kind is Kind.FILE else FRESH_S)
        with self._lock:
            self._nodes[path] = (until_s, node)
            self._nodes.move_to_end(path)
            while len(self._nodes) > _NODES_KEPT_MAX:
                self._nodes.popitem(last=False)
        return node


def _parts(path: str) -> list[bytes]:
    return [part for part in os.fsencode(path).split(b"/") if part]
