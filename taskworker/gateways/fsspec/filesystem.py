"""The filesystem: what both protocols share."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.implementations.local import LocalFileSystem, make_path_posix
from fsspec.utils import check_contained, isfilelike, stringify_path

from storage import GetOutcome, Version
from taskworker.gateways.fsspec.browsing import BrowsableFileSystem
from taskworker.gateways.fsspec.listing import files_below
from taskworker.gateways.fsspec.opened import NewContent, StoredFile, TextFile
from taskworker.gateways.fsspec.pairs import Pairs, Paths, pairs
from taskworker.gateways.fsspec.problems import as_os_error
from taskworker.gateways.fsspec.transaction import StoreTransaction

_AT_ONCE = 8
_TOGETHER = 64
_SMALL_BYTES_MAX = 1024 * 1024
_TRIES = 5

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class VersionedFileSystem(BrowsableFileSystem):
    """A filesystem over versioned files, each of which changes as a whole.

    Thread-safe, apart from transactions. Names are any text; slashes at the ends of a path do not count.
    """

    transaction_type = StoreTransaction

    # -- opening -----------------------------------------------------------------------------------

    def open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        """Open a file for reading (``r``), writing (``w``), appending (``a``) or for making it (``x``).

        What is written becomes visible when the file is closed, all at once. If the block of a ``with`` statement ends
        with an error, nothing does.

        Args:
            path: the path.
            mode: as of Python's ``open``, but never for reading and writing together; ``b`` for bytes.
            kwargs: ``version_id``: the version to read; ``cache_type``, ``cache_options``, ``block_size``: how to read
                ahead; ``compression``; ``encoding``, ``errors`` and ``newline`` of text.

        Raises:
            FileNotFoundError: there is no such file, or version, to read.
            IsADirectoryError: it is a directory.
            FileExistsError: the mode is ``x``, and there is such a file.
        """
        if "b" in mode:
            return super().open(path, mode, **kwargs)
        text = {name: kwargs.pop(name) for name in ("encoding", "errors", "newline") if name in kwargs}
        return TextFile(self.open(path, mode.replace("t", "") + "b", **kwargs), **text)

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | str | None = None,
        autocommit: bool = True,
        cache_options: dict[str, Any] | None = None,
        *,
        version_id: str | None = None,
        cache_type: str | None = None,
        size: int | None = None,
        **_: Any,
    ) -> StoredFile | NewContent:
        if mode == "rb":
            version = self._version(path, version_id)
            return StoredFile(
                self, self.files, version, block_size=block_size, cache_type=cache_type, cache_options=cache_options
            )
        if mode not in ("wb", "ab", "xb"):
            raise ValueError(f"files can be opened with the modes r, w, a and x, not {mode!r}")
        if version_id is not None:
            raise ValueError("versions cannot be changed, only read; leave out version_id")
        self._check_target(path, is_new=mode == "xb")
        return NewContent(self, path, mode, autocommit=autocommit)

    def _check_target(self, path: str, *, is_new: bool) -> None:
        if not path:
            raise IsADirectoryError(errno.EISDIR, "the root is a directory", path)
        if is_new and self.files.find(path) is not None:
            raise FileExistsError(errno.EEXIST, "there is a file of this name", path)

    # -- storing -----------------------------------------------------------------------------------

    def store_written(self, written: NewContent) -> None:
        """Store what was written to a file.

        Raises:
            OSError: it cannot be stored; nothing is visible.
        """
        self._check_target(written.path, is_new=written.mode == "xb")
        if written.mode == "ab":
            self._append(written)
        else:
            self.files.push(written.path, written.content)

    def _append(self, written: NewContent) -> None:
        for left in reversed(range(_TRIES)):
            version = self.files.find(written.path)
            if version is None:
                self.files.push(written.path, written.content)
                return
            try:
                self.files.append(version, written.file)
            except OSError as error:
                if error.errno != errno.ESTALE or not left:  # somebody else was faster
                    raise
            else:
                return

    def store_all(self, written: Sequence[NewContent]) -> None:
        """Store what was written to many files; the error of one does not keep the others.

        Raises:
            OSError: one of them, the first in order, could not be stored.
        """
        whole = [each for each in written if each.mode == "wb"]
        self._push_all((each.path, each.content) for each in whole)
        for each in written:
            if each.mode != "wb":
                each.commit()

    def _push_all(self, files: Iterable[tuple[str, Any]]) -> None:
        for outcome in self.files.push_many(files):
            if outcome.error is not None:
                raise as_os_error(outcome.error, outcome.filename)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        """Store bytes; ``mode`` ``create``: only if there is no such file."""
        if self._intrans:
            with self.open(path, "xb" if mode == "create" else "wb", **kwargs) as file:
                file.write(value)
            return
        path = self._strip_protocol(path)
        self._check_target(path, is_new=mode == "create")
        self.files.push(path, value)

    def pipe(self, path: str | dict[str, bytes], value: bytes | None = None, **kwargs: Any) -> None:
        """Store bytes, or many files' bytes by path, which share messages and commits."""
        if not isinstance(path, dict) or self._intrans or kwargs:
            super().pipe(path, value, **kwargs)
            return
        contents = {self._strip_protocol(name): content for name, content in path.items()}
        for name in contents:
            self._check_target(name, is_new=False)
        self._push_all(contents.items())

    def put_file(
        self, lpath: str, rpath: str, callback: Any = DEFAULT_CALLBACK, mode: str = "overwrite", **_: Any
    ) -> None:
        """Store a local file."""
        rpath = self._strip_protocol(rpath)
        if Path(lpath).is_dir():
            self.makedirs(rpath, exist_ok=True)
            return
        if self._intrans:
            super().put_file(lpath, rpath, callback=callback, mode=mode)
            return
        self._check_target(rpath, is_new=mode == "create")
        self.files.push(rpath, Path(lpath), _telling(callback))

    def put(
        self,
        lpath: Paths,
        rpath: Paths,
        recursive: bool = False,
        callback: Any = DEFAULT_CALLBACK,
        maxdepth: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Store local files, which share messages and commits."""
        found = self._pairs_to_put(lpath, rpath, recursive, maxdepth)
        if len(found) == 1 or self._intrans or kwargs:
            callback.set_size(len(found))
            for source, target in callback.wrap(found):
                with callback.branched(source, target) as child:
                    self.put_file(source, target, callback=child, **kwargs)
            return
        files = [(target, Path(source)) for source, target in found if not Path(source).is_dir()]
        for target, _ in files:
            self._check_target(target, is_new=False)
        callback.set_size(len(files))
        self._push_all(files)
        callback.absolute_update(len(files))

    def _pairs_to_put(self, lpath: Paths, rpath: Paths, recursive: bool, maxdepth: int | None) -> Pairs:
        lpath = stringify_path(lpath)
        if isinstance(lpath, str):
            lpath = make_path_posix(lpath)
        found = pairs(LocalFileSystem(), lpath, self, rpath, recursive=recursive, maxdepth=maxdepth)
        return [(source, self._strip_protocol(target)) for source, target in found]

    # -- reading -----------------------------------------------------------------------------------

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, *, version_id: str | None = None, **_: Any
    ) -> bytes:
        """The bytes of a file, or of a part of it, as in a slice."""
        path = self._strip_protocol(path)
        if start is None and end is None and version_id is None and path:
            return self._content(self.files.get_many([path])[0])
        version = self._version(path, version_id)
        first, last, _step = slice(start, end).indices(version.size)
        return self.files.read(version, first, last - first) if first < last else b""

    def cat(self, path: Any, recursive: bool = False, on_error: str = "raise", **kwargs: Any) -> Any:
        """The bytes of a file; of several files, or a pattern, by path. Many files share messages."""
        paths = self.expand_path(path, recursive=recursive)
        is_one = not isinstance(path, list) and paths == [self._strip_protocol(path)]
        if is_one and not (recursive and self.isdir(paths[0])):
            return self.cat_file(paths[0], **kwargs)
        if kwargs:
            return super().cat(paths, on_error=on_error, **kwargs)
        contents: dict[str, Any] = {}
        for outcome in self.files.get_many([path for path in paths if path]):
            try:
                contents[outcome.file] = self._content(outcome)
            except IsADirectoryError as error:
                if not recursive:
                    _note(contents, outcome.file, error, on_error)
            except Exception as error:
                _note(contents, outcome.file, error, on_error)
        return contents

    def cat_ranges(
        self,
        paths: list[str],
        starts: int | list[int],
        ends: int | list[int],
        max_gap: int | None = None,
        on_error: str = "return",
        **kwargs: Any,
    ) -> list[Any]:
        """Parts of files, several at a time. ``max_gap`` is not needed."""
        if not isinstance(paths, list):
            raise TypeError("paths must be a list")
        first = starts if isinstance(starts, list) else [starts] * len(paths)
        last = ends if isinstance(ends, list) else [ends] * len(paths)

        def part(which: tuple[str, int, int]) -> bytes | Exception:
            try:
                return self.cat_file(which[0], which[1], which[2], **kwargs)
            except Exception as error:
                if on_error != "return":
                    raise
                return error

        return _at_once(part, zip(paths, first, last, strict=True))

    def _content(self, outcome: GetOutcome) -> bytes:
        """The content of a file that was read with others.

        Raises:
            OSError: it could not be read.
        """
        if outcome.error is None:
            return outcome.result()
        error = as_os_error(outcome.error, outcome.file)
        if isinstance(error, FileNotFoundError):
            raise self._no_file(outcome.file) from outcome.error
        raise error

    def get_file(
        self,
        rpath: str,
        lpath: Any = None,
        callback: Any = DEFAULT_CALLBACK,
        outfile: Any = None,
        *,
        version_id: str | None = None,
        **_: Any,
    ) -> None:
        """Write a file to a local one, which is replaced as a whole, or to one that is open."""
        target = lpath if outfile is None and isfilelike(lpath) else outfile
        try:
            version = self._version(rpath, version_id)
        except IsADirectoryError:
            if target is not None:
                raise
            Path(lpath).mkdir(parents=True, exist_ok=True)
            return
        callback.set_size(version.size)
        if target is None:
            target = Path(lpath)
            target.parent.mkdir(parents=True, exist_ok=True)
        self.files.download(version, target, _telling(callback))

    def get(
        self,
        rpath: Paths,
        lpath: Paths,
        recursive: bool = False,
        callback: Any = DEFAULT_CALLBACK,
        maxdepth: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Write files to local ones, several at a time; small ones share messages."""
        found = self._pairs_to_get(rpath, lpath, recursive, maxdepth)
        callback.set_size(len(found))
        if len(found) == 1 or kwargs:
            for source, target in callback.wrap(found):
                with callback.branched(source, target) as child:
                    self.get_file(source, target, callback=child, **kwargs)
            return
        for start in range(0, len(found), _TOGETHER):
            self._get_together(found[start : start + _TOGETHER])
            callback.absolute_update(min(start + _TOGETHER, len(found)))

    def _pairs_to_get(self, rpath: Paths, lpath: Paths, recursive: bool, maxdepth: int | None) -> Pairs:
        lpath = stringify_path(lpath)
        if isinstance(lpath, str):
            lpath = make_path_posix(lpath)
        found = pairs(self, rpath, LocalFileSystem(), lpath, recursive=recursive, maxdepth=maxdepth)
        if isinstance(lpath, str):
            check_contained(lpath, [target for _, target in found])
        return [(self._strip_protocol(source), target) for source, target in found]

    def _get_together(self, found: Pairs) -> None:
        others: Pairs = []
        outcomes = self.files.get_many([source for source, _ in found], _SMALL_BYTES_MAX)
        for outcome, (source, target) in zip(outcomes, found, strict=True):
            if outcome.data is None:  # it is large, or a directory
                others.append((source, target))
                continue
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            Path(target).write_bytes(outcome.data)
        _at_once(lambda pair: self.get_file(*pair), others)

    # -- copying and deleting ----------------------------------------------------------------------

    def cp_file(self, path1: str, path2: str, *, version_id: str | None = None, **_: Any) -> None:
        """Copy a file, or a version of it. The store does it: the content does not come here."""
        path1, path2 = self._strip_protocol(path1), self._strip_protocol(path2)
        try:
            version = self._version(path1, version_id)
        except IsADirectoryError:
            self.makedirs(path2, exist_ok=True)
            return
        self._check_target(path2, is_new=False)
        if version_id is not None or path1 != path2:
            self.files.copy(version, path2)

    def copy(
        self,
        path1: Paths,
        path2: Paths,
        recursive: bool = False,
        maxdepth: int | None = None,
        on_error: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Copy files, several at a time; ``on_error`` ``ignore``: leave out those that are gone meanwhile."""
        found = pairs(self, path1, self, path2, recursive=recursive, maxdepth=maxdepth)
        ignores = on_error == "ignore" or (on_error is None and recursive)

        def copy(pair: tuple[str, str]) -> None:
            with suppress(*([FileNotFoundError] if ignores else [])):
                self.cp_file(*pair, **kwargs)

        _at_once(copy, found)

    def mv(self, path1: Paths, path2: Paths, recursive: bool = False, maxdepth: int | None = None, **_: Any) -> None:
        """Copy files, then delete the originals, with their former versions.

        Raises:
            OSError: a directory would be moved into itself.
        """
        found = [
            (self._strip_protocol(source), self._strip_protocol(target))
            for source, target in pairs(self, path1, self, path2, recursive=recursive, maxdepth=maxdepth)
        ]
        kept = {target for _, target in found}
        sources = {source for source, target in found if source != target}
        if sources & kept:
            raise OSError(errno.EINVAL, "a file would be moved over another that is moved too", min(sources & kept))
        _at_once(lambda pair: self.cp_file(*pair), [pair for pair in found if pair[0] in sources])
        found_again = (self.files.find(path) or self.files.find(f"{path}/") for path in sorted(sources))
        self._delete([version for version in found_again if version is not None])

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Delete files with all their versions, and directories if ``recursive``.

        Raises:
            FileNotFoundError: there is nothing at a path.
            IsADirectoryError: it is a directory, and ``recursive`` is not set.
        """
        paths = path if isinstance(path, list) else [path]
        if maxdepth is not None or any(map(_is_pattern, paths)):
            paths = self.expand_path(path, recursive=recursive, maxdepth=maxdepth)
            recursive = recursive and maxdepth is None
        doomed: dict[str, Version] = {}
        for each in map(self._strip_protocol, paths):
            found = self._doomed(each, recursive=recursive)
            if not found and not (maxdepth is not None and self.isdir(each)):
                raise self._no_file(each)
            doomed |= {version.file_id: version for version in found}
        self._delete(list(doomed.values()))

    def _doomed(self, path: str, *, recursive: bool) -> list[Version]:
        version = self.files.find(path) if path else None
        found = [] if version is None else [version]
        return found + list(files_below(self.files, path)) if recursive else found

    def rm_file(self, path: str) -> None:
        """Delete a file with all its versions."""
        self._delete([self._version(path)])

    def _rm(self, path: str) -> None:
        self.rm_file(path)

    def rmdir(self, path: str) -> None:
        """Do nothing for the mark of an empty directory but delete it.

        Raises:
            FileNotFoundError: there is no such directory.
            OSError: it is not empty; :meth:`rm` deletes it with all that is in it.
        """
        path = self._strip_protocol(path)
        for version in files_below(self.files, path):
            if version.filename != f"{path}/":
                raise OSError(errno.ENOTEMPTY, "the directory is not empty", path)
            self._delete([version])
            return
        raise FileNotFoundError(errno.ENOENT, "there is no such directory", path)

    def _delete(self, versions: Sequence[Version]) -> None:
        for outcome in self.files.delete_many([version.file_id for version in versions]):
            error = None if outcome.error is None else as_os_error(outcome.error)
            if error is not None and not isinstance(error, FileNotFoundError):  # somebody else deleted it just now
                raise error


def _note(contents: dict[str, Any], path: str, error: Exception, on_error: str) -> None:
    if on_error == "raise":
        raise error
    if on_error == "return":
        contents[path] = error


def _is_pattern(path: Any) -> bool:
    return any(character in os.fspath(path) for character in "*?[")


def _telling(callback: Any) -> Callable[[int, int], None] | None:
    """Progress as fsspec's callbacks take it."""
    if callback is DEFAULT_CALLBACK:
        return None

    def tell(done: int, total: int) -> None:
        if total:
            callback.set_size(total)
        callback.absolute_update(done)

    return tell


def _at_once(work: Callable[[ItemT], ResultT], items: Iterable[ItemT]) -> list[ResultT]:
    """The results for all items, some of which are worked on at the same time."""
    todo = list(items)
    if len(todo) < 2:
        return [work(item) for item in todo]
    with ThreadPoolExecutor(min(_AT_ONCE, len(todo)), "taskworker-fsspec") as threads:
        return list(threads.map(work, todo))
