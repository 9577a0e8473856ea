"""Which file goes where, by the rules of fsspec's ``copy``, ``get`` and ``put``."""

from __future__ import annotations

import errno
import os
from typing import Any

from fsspec.core import has_magic
from fsspec.implementations.local import trailing_sep
from fsspec.utils import other_paths, stringify_path

Paths = str | os.PathLike[str] | list[str]
Pairs = list[tuple[str, str]]


def pairs(
    source_fs: Any, source: Paths, target_fs: Any, target: Paths, *, recursive: bool, maxdepth: int | None
) -> Pairs:
    """Each path of the source with that in the target, directories included if ``recursive``.

    Args:
        source_fs: where the source is.
        source: a path, a pattern, or a list of them.
        target_fs: where the target is.
        target: a file or a directory; for a list of sources also a list of as many files.
        recursive: whether to go through directories.
        maxdepth: how deep, at most.

    Raises:
        FileNotFoundError: there is nothing at the source.
    """
    source = source if isinstance(source, list) else str(stringify_path(source))
    target = stringify_path(target)
    if isinstance(source, list) and isinstance(target, list):
        return list(zip(source, target, strict=True))
    if isinstance(source, list):
        paths = source_fs.expand_path(source, recursive=recursive, maxdepth=maxdepth)
        return list(zip(paths, other_paths(paths, target, flatten=True), strict=True))
    paths = _expanded(source_fs, source, recursive=recursive, maxdepth=maxdepth)
    if not paths:
        return []
    goes_inside = _goes_inside(source, len(paths), target_fs, target)
    return list(zip(paths, other_paths(paths, target, exists=goes_inside), strict=True))


def _expanded(fs: Any, source: str, *, recursive: bool, maxdepth: int | None) -> list[str]:
    """The paths that a path or a pattern stands for, without directories if only files are meant."""
    if has_magic(source) and not recursive:
        found = fs.glob(fs._strip_protocol(source), maxdepth=maxdepth, detail=True)
        if not found:
            raise FileNotFoundError(errno.ENOENT, "nothing matches", source)
        return sorted(path for path, info in found.items() if not _is_directory(fs, path, info["type"]))
    paths: list[str] = fs.expand_path(source, recursive=recursive, maxdepth=maxdepth)
    if recursive and maxdepth is None:
        return paths
    return [path for path in paths if not (trailing_sep(path) or fs.isdir(path))]


def _is_directory(fs: Any, path: str, kind: str) -> bool:
    return kind == "directory" or (kind != "file" and fs.isdir(path))  # a link may lead to one


def _goes_inside(source: str, count: int, target_fs: Any, target: Any) -> bool:
    """Whether a single source keeps its own name, in a target that is a directory."""
    if has_magic(source):
        return count == 1
    is_directory = isinstance(target, str) and (trailing_sep(target) or target_fs.isdir(target))
    return is_directory and not trailing_sep(source)
