"""Resolves users' references: a file by id or name, a version by the start of its id, a range of bytes."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING

from taskworker.cli.exits import ExitCode, Failure
from taskworker.cli.text import visible

if TYPE_CHECKING:
    from storage import Version
    from taskworker.cli.backend import Backend

_VERSION_ID = re.compile(r"[0-9a-f]{4,64}")
_VERSION_ID_LENGTH = 64
_RANGE = re.compile(r"([0-9]{0,19})-([0-9]{0,19})")  # up to the largest file size


def resolve_file(backend: Backend, reference: str) -> Version:
    """The head of the file with this id, otherwise of the file with this name."""
    from taskworker.client.references import by_id_or_name

    found = by_id_or_name(reference, stat=backend.stat, find=backend.find)
    if found is None:
        raise no_such_file(backend, reference)
    return found


def no_such_file(backend: Backend, reference: str) -> Failure:
    """The failure for an id or name that no file has."""
    backend.require_key()
    shown = visible(reference)
    if _is_folder(backend, reference):
        return Failure(
            f"there is no file '{shown}', but a folder: `taskworker get {shown}/` restores it, and "
            f"`taskworker ls {shown}/` lists its files",
            ExitCode.NOT_FOUND,
        )
    return Failure(f"there is no file '{shown}'; `taskworker ls` lists yours", ExitCode.NOT_FOUND)


def _is_folder(backend: Backend, name: str) -> bool:
    from storage import StorageError

    with suppress(StorageError):  # what is told is that there is no such file
        return not name.endswith("/") and backend.find(f"{name}/") is not None
    return False


def resolve_version(backend: Backend, file_reference: str, version_reference: str | None) -> Version:
    """A version of a file: its head, or the one whose id starts with the reference."""
    head = resolve_file(backend, file_reference)
    if version_reference is None:
        return head
    if not _VERSION_ID.fullmatch(version_reference):
        raise Failure("a version is named by 4 to 64 hex digits of its id; `taskworker log` shows them", ExitCode.USAGE)
    if len(version_reference) == _VERSION_ID_LENGTH:
        return backend.stat(head.file_id, version_reference)
    candidates = [v for v in backend.history(head.file_id) if v.version_id.startswith(version_reference)]
    if not candidates:
        raise Failure(
            f"'{visible(head.filename)}' has no version {version_reference}; `taskworker log` shows what it has",
            ExitCode.NOT_FOUND,
        )
    if len(candidates) > 1:
        raise Failure(f"{len(candidates)} versions start with {version_reference}: give more of the id", ExitCode.USAGE)
    return candidates[0]


def resolve_range(text: str | None, size: int) -> tuple[int, int]:
    """Convert a range in curl's form, ``A-B``, ``A-`` or ``-N``, to its first byte and the one after its last."""
    if text is None:
        return 0, size
    match = _RANGE.fullmatch(text)
    if match is None or text == "-":
        raise Failure("a range is A-B (both included), A- (to the end) or -N (the last N bytes)", ExitCode.USAGE)
    first, last = match.groups()
    start, stop = (int(first), int(last) + 1 if last else size) if first else (max(0, size - int(last)), size)
    if start >= stop or start >= size:
        raise Failure(f"the range {text} contains no bytes of a file of {size:,} bytes", ExitCode.USAGE)
    return start, min(stop, size)
