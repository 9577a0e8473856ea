"""Removes parts whose uploads have ended: a gateway that was killed may have stored one after it had ended."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from storage.errors import FileNotFound
from taskworker.gateways.s3.accounts import Account
from taskworker.gateways.s3.lifecycle_passes import PAGE, Expired, pages_below
from taskworker.gateways.s3.names import PARTS, UPLOADS, is_upload_id, parts_prefix, upload_id_in
from taskworker.gateways.s3.times import DAY_MS

_log = logging.getLogger(__name__)
_UPLOADS_MAX = 10_000
"""So many uploads with parts are looked up together, by one walk through all uploads that were begun."""


def remove_stray_parts(
    account: Callable[[], Account], now_ms: Callable[[], int], told: Expired, stopped: Callable[[], bool]
) -> Iterator[None]:
    """Remove a user's parts of uploads that are not there any more, if they are older than a day.

    The file that says that an upload was begun is stored before its parts, and removed when it ends.

    Args:
        account: returns the account to act by, which may have another connection after each step.
        now_ms: returns milliseconds since 1970; called if there are such parts.
        told: where it is counted what was done.
        stopped: whether to end before all is done.

    Yields:
        After each page of parts or uploads.

    Raises:
        StorageError: the pool refuses something, or does not answer.
    """
    found = set[str]()
    for upload_ids in _with_parts(account):
        found |= upload_ids
        if stopped():
            return
        yield
        if len(found) >= _UPLOADS_MAX:
            yield from _remove_ended(account, found, now_ms, told, stopped)
            found = set()
    yield from _remove_ended(account, found, now_ms, told, stopped)


def _with_parts(account: Callable[[], Account]) -> Iterator[set[str]]:
    """The ids of all uploads of which there are parts, some at a time."""
    after: str | None = None
    while True:
        by = account()
        page = by.client.list_page(user_id=by.user, prefix=PARTS, after=after, limit=PAGE)
        upload_ids = [file.filename.removeprefix(PARTS).partition("/")[0] for file in page.files]
        yield {upload_id for upload_id in upload_ids if is_upload_id(upload_id)}
        if page.next_after is None:
            return
        after = max(page.next_after, f"{parts_prefix(upload_ids[-1])}~")  # the names of parts are digits


def _remove_ended(
    account: Callable[[], Account],
    upload_ids: set[str],
    now_ms: Callable[[], int],
    told: Expired,
    stopped: Callable[[], bool],
) -> Iterator[None]:
    """Remove the old parts of those of the uploads that are not there."""
    if not upload_ids:
        return
    ended = set(upload_ids)
    for uploads in pages_below(account, UPLOADS):
        ended.difference_update(upload_id_in(upload.filename) for upload in uploads)
        if stopped():
            return
        yield
    for upload_id in sorted(ended):
        before_ms = now_ms() - DAY_MS
        for parts in pages_below(account, parts_prefix(upload_id)):
            old = [part.file_id for part in parts if part.sequence // 1000 < before_ms]
            by = account()
            for outcome in by.client.delete_many(old, user_id=by.user):
                if outcome.error is None:
                    told.parts += 1
                elif not isinstance(outcome.error, FileNotFound):
                    _log.warning("a part of an upload of %r that has ended stays: %s", by.user, outcome.error)
            if stopped():
                return
            yield
