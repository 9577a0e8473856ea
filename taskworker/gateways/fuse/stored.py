"""What trees need of a store or a pool: the port of folders, and pages of names."""

from __future__ import annotations

from typing import Protocol, cast

from storage import FilePage, FileStorage, Version
from taskworker.client import Client
from taskworker.client.folders import ClientFiles
from taskworker.client.listing_calls import ListingCalls
from taskworker.folders.embedded import StoreFiles
from taskworker.folders.ports import Files

_PAGE = 500
HIDDEN = "s3-delete-marker"
"""The attribute of versions by which the S3 gateway notes that a file was deleted (``MARKER`` of its metadata)."""


class Stored(Files, Protocol):
    """The files of one user. Methods raise errors of ``storage``."""

    def page(self, prefix: str, after: str | None, delimiter: str, limit: int = _PAGE) -> FilePage:
        """A page of names, as directories are listed, without what the S3 gateway has deleted."""

    def versions(self, head: Version, before: str | None) -> list[Version]:
        """Some versions of a file, newest first, that come after the version ``before``; none: there are no more."""


class StoredInStore(StoreFiles):
    """The files of one user in an embedded store."""

    def page(self, prefix: str, after: str | None, delimiter: str, limit: int = _PAGE) -> FilePage:
        """See :class:`Stored`."""
        return self._store.list_page(
            user_id=self._user, prefix=prefix, delimiter=delimiter, after=after, limit=limit, hidden=HIDDEN
        )

    def versions(self, head: Version, before: str | None) -> list[Version]:
        """See :class:`Stored`."""
        return self._store.history(head.file_id, user_id=self._user, limit=_PAGE, before=before)


class StoredInPool(ClientFiles):
    """The files of one user in a pool."""

    def page(self, prefix: str, after: str | None, delimiter: str, limit: int = _PAGE) -> FilePage:
        """See :class:`Stored`."""
        return cast(ListingCalls, self._client).list_page(
            user_id=self._user, prefix=prefix, delimiter=delimiter, after=after, limit=limit, hidden=HIDDEN
        )

    def versions(self, head: Version, before: str | None) -> list[Version]:
        """See :class:`Stored`."""
        return self._client.history(head.file_id, user_id=self._user, limit=_PAGE, before=before)


def stored(place: FileStorage | Client, user_id: str) -> Stored:
    """The files of a user, wherever they are."""
    return StoredInPool(place, user_id) if isinstance(place, Client) else StoredInStore(place, user_id)
