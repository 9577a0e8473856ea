"""Trees on disk: made from descriptions, and described for comparison."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

_SECOND_NS = 1_000_000_000
_NAMES = st.binary(min_size=1, max_size=6).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..", b".twignore")
)
_TEXT_NAMES = (
    st.text(min_size=1, max_size=4)
    .filter(
        lambda name: "/" not in name and "\0" not in name and name not in (".", "..", ".twignore") and _is_utf8(name)
    )
    .map(str.encode)
)
_MTIMES = st.integers(-(1 << 31) * _SECOND_NS, (1 << 33) * _SECOND_NS)
_CONTENTS = st.one_of(
    st.binary(max_size=200),
    st.tuples(st.binary(min_size=1, max_size=3), st.integers(1, 300_000)).map(lambda each: each[0] * each[1]),
)


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def trees(*, text_names: bool) -> st.SearchStrategy[dict[bytes, Any]]:
    """Small trees: a dict is a directory, and a pair of a kind and what it needs is something else."""
    names = _TEXT_NAMES if text_names else _NAMES
    leaves = st.one_of(
        st.tuples(st.just("file"), _CONTENTS, st.sampled_from([0o644, 0o600, 0o755, 0o400]), _MTIMES),
        st.tuples(st.just("link"), _NAMES, _MTIMES),
        st.tuples(st.just("fifo"), st.sampled_from([0o644, 0o600]), _MTIMES),
    )
    return st.dictionaries(
        names,
        st.recursive(leaves, lambda inner: st.dictionaries(names, inner, max_size=3), max_leaves=6),
        max_size=4,
    )


def make(directory: Path, tree: dict[bytes, Any]) -> None:
    """Write a described tree to disk."""
    directory.mkdir(exist_ok=True)
    for name, what in tree.items():
        path = directory / os.fsdecode(name)
        if isinstance(what, dict):
            make(path, what)
        elif what[0] == "file":
            path.write_bytes(what[1])
            path.chmod(what[2])
            os.utime(path, ns=(what[3], what[3]))
        elif what[0] == "link":
            path.symlink_to(os.fsdecode(what[1]))
            os.utime(path, ns=(what[2], what[2]), follow_symlinks=False)
        else:
            os.mkfifo(path)
            path.chmod(what[1])
            os.utime(path, ns=(what[2], what[2]))


def described(directory: Path) -> dict[bytes, tuple[object, ...]]:
    """Everything in a tree that a folder keeps, by path; names of one file share a number."""
    links: dict[int, int] = {}
    found: dict[bytes, tuple[object, ...]] = {}
    for path in sorted([directory, *_all_in(directory)]):
        status = path.lstat()
        what: object = None
        if stat.S_ISREG(status.st_mode):
            what = path.read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            what = os.readlink(os.fsencode(path))
        group = links.setdefault(status.st_ino, len(links)) if status.st_nlink > 1 and path.is_file() else None
        key = os.fsencode(path)[len(os.fsencode(directory)) :]
        found[key] = (stat.S_IFMT(status.st_mode), stat.S_IMODE(status.st_mode), status.st_mtime_ns, what, group)
    return found


def _all_in(directory: Path) -> Iterator[Path]:
    for path in directory.iterdir():
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _all_in(path)
