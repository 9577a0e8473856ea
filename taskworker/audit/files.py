"""The files of the audit trail: their names, and whether they hold what was written.

The newest hash, and the hash before the oldest record that is kept, are in a document of the catalog, which whoever can
write to the files cannot necessarily change.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from taskworker.audit.records import NO_HASH, Read, Torn, lines_of, read_header, read_line

_SUFFIX = ".log"
_PROBLEMS_MAX = 20


class Anchor(msgspec.Struct, frozen=True):
    """Where the trail begins and ends.

    Attributes:
        first: number of the oldest record that is kept.
        before: hash of the record before it.
        last: number of the newest record; 0: there is none yet.
        digest: its hash.
    """

    first: int = 1
    before: bytes = NO_HASH
    last: int = 0
    digest: bytes = NO_HASH


class End(NamedTuple):
    """The end of a file: number and hash of its last sound record, and the size up to there."""

    last: int
    digest: bytes
    size: int


class Verification(NamedTuple):
    """Whether the trail is what was written.

    Attributes:
        records: how many records it has.
        first: number of the oldest one.
        last: number of the newest one.
        problems: what is wrong; empty: nothing.
    """

    records: int
    first: int
    last: int
    problems: list[str]


def path_of(directory: Path, first: int) -> Path:
    """The file whose first record has this number."""
    return directory / f"{first:012d}{_SUFFIX}"


def first_in(path: Path) -> int:
    """Inverse of :func:`path_of`."""
    return int(path.stem)


def files_in(directory: Path) -> list[Path]:
    """The files of the trail, oldest first."""
    return sorted(path for path in directory.glob(f"*{_SUFFIX}") if path.stem.isascii() and path.stem.isdigit())


def end_of(path: Path) -> End:
    """Find the end of what is sound in a file; what follows was not written completely, or was changed."""
    number, digest, size = first_in(path) - 1, NO_HASH, 0
    with contextlib.closing(lines_of(path)) as lines, contextlib.suppress(Torn):
        head = next(lines, b"")
        digest = read_header(head)
        size = len(head)
        for line in lines:
            found = read_line(line, digest)
            if not found.is_sound or found.record.n != number + 1:
                break
            number, digest, size = found.record.n, found.digest, size + len(line)
    return End(number, digest, size)


def records_in(path: Path, problems: list[str]) -> Iterator[Read]:
    """Yield what can be read of a file, and note what cannot."""
    with contextlib.closing(lines_of(path)) as lines:
        try:
            before = read_header(next(lines, b""))
            for line in lines:
                found = read_line(line, before)
                before = found.digest
                yield found
        except Torn as torn:
            problems.append(f"{path.name}: {torn}")


def verify(paths: Sequence[Path], anchor: Anchor) -> Verification:
    """Check the files of a trail against each other and the anchor."""
    problems: list[str] = []
    count, last, digest = 0, anchor.first - 1, anchor.before
    seen_anchor = anchor.last == last
    for path in paths:
        with contextlib.closing(lines_of(path)) as lines, contextlib.suppress(Torn):
            if read_header(next(lines, b"")) != digest:
                problems.append(f"{path.name} does not begin where the records before it end")
        for found in records_in(path, problems):
            if found.record.n != last + 1:
                problems.append(
                    f"after record {last}, record {found.record.n} follows: some are missing, or were moved"
                )
            if not found.is_sound:
                problems.append(f"record {found.record.n} was changed, or is not the one that was written here")
            last, digest, count = found.record.n, found.digest, count + 1
            if last == anchor.last:
                seen_anchor = digest == anchor.digest
    if not seen_anchor:
        problems.append(
            f"record {anchor.last}, the newest one that the catalog knows, is missing or is another one: the end was "
            "cut off or replaced"
        )
    return Verification(count, anchor.first, last, problems[:_PROBLEMS_MAX])
