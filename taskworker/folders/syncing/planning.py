"""Decides what a sync does with each path. Nothing here reads or writes anything."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from enum import StrEnum

from taskworker.folders.entries import NAME_BYTES_MAX, Entry, Kind


class Step(StrEnum):
    """What a sync does with a path."""

    NONE = "nothing"
    SETTLE = "note that both sides are equal"
    SEND = "send"
    FETCH = "fetch"
    KEEP_BOTH = "keep both: ours under another name"
    KEEP_BOTH_THERE = "keep both: theirs under another name"


def decide(
    local: Entry | None,
    stored: Entry | None,
    *,
    local_changed: bool,
    stored_changed: bool,
    equal: Callable[[], bool],
) -> Step:
    """What to do with a path.

    A change wins over a deletion, and a directory over what is not one. Of two changes, both are kept.

    Args:
        local: what the directory has there.
        stored: what the store has there.
        local_changed: whether that is something else than at the last sync.
        stored_changed: likewise.
        equal: whether both are the same file or link; asked only if it matters.
    """
    if not local_changed:
        return Step.FETCH if stored_changed else Step.NONE
    if not stored_changed:
        return Step.SEND
    if local is None:
        return Step.SETTLE if stored is None else Step.FETCH
    if stored is None:
        return Step.SEND
    if local.kind is Kind.DIRECTORY:
        return Step.SETTLE if stored.kind is Kind.DIRECTORY else Step.KEEP_BOTH_THERE
    if stored.kind is not Kind.DIRECTORY and equal():
        return Step.SETTLE
    return Step.KEEP_BOTH


def with_directories(
    steps: Mapping[bytes, Step], local: Mapping[bytes, Entry], stored: Mapping[bytes, Entry]
) -> dict[bytes, Step]:
    """The same steps, but where something will be below a path, a directory is there afterwards."""
    needed = {
        above
        for path, step in steps.items()
        if result_of(step, local.get(path), stored.get(path)) is not None
        for above in above_of(path)
    }
    changed = dict(steps)
    for path in needed & steps.keys():
        step, here, there = steps[path], local.get(path), stored.get(path)
        result = result_of(step, here, there)
        if result is not None and result.kind is Kind.DIRECTORY:
            continue
        if step is Step.SEND:  # a file that took the place of a directory, or a directory that was deleted
            changed[path] = Step.FETCH if here is None else Step.KEEP_BOTH
        elif step is Step.FETCH:
            changed[path] = Step.SEND if there is None else Step.KEEP_BOTH_THERE
    return changed


def result_of(step: Step, local: Entry | None, stored: Entry | None) -> Entry | None:
    """What is at a path after a step; None: nothing."""
    return stored if step in (Step.FETCH, Step.KEEP_BOTH) else local


def above_of(path: bytes) -> Iterator[bytes]:
    """The directories that a path is in, the innermost first, without the root."""
    while b"/" in path:
        path = path.rpartition(b"/")[0]
        yield path


def conflict_name(path: bytes, host: str, now_ms: int, is_taken: Callable[[bytes], bool]) -> bytes:
    """The path of a copy that is kept of a file beside another one of the same name.

    Args:
        path: the path of both.
        host: name of the machine from which the copy is.
        now_ms: when it was made, ms since 1970.
        is_taken: whether there is something at a path already.
    """
    directory, _, name = path.rpartition(b"/")
    stem, suffix = posixpath.splitext(name)
    suffix = suffix[:128].decode("utf-8", "ignore").encode()
    when = datetime.fromtimestamp(now_ms / 1000, UTC).strftime("%Y-%m-%d %H%M%S")
    number = 1
    while True:
        again = "" if number == 1 else f" {number}"
        where = host.replace("/", "_").encode("utf-8", "replace")[:64].decode("utf-8", "ignore")
        mark = f" (conflict, {where} {when}{again})".encode()
        room = NAME_BYTES_MAX - len(mark) - len(suffix)
        kept = stem[: max(room, 1)].decode("utf-8", "ignore").encode() if len(stem) > room else stem
        found = (directory + b"/" if directory else b"") + kept + mark + suffix
        if not is_taken(found):
            return found
        number += 1
