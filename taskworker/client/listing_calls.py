"""The calls that list files and versions in pages, as directories are listed."""

from __future__ import annotations

from collections.abc import Sequence

from storage import FilePage, Version, VersionPage
from taskworker.client.base import ClientBase
from taskworker.client.checked import arguments_checked
from taskworker.client.deadline import Deadline
from taskworker.errors import CallNotOffered
from taskworker.protos import store_pb2
from taskworker.rpc.conversion import version_from_proto
from taskworker.rpc.limits import PAGE_MAX

_LIMIT = 1000


class ListingCalls(ClientBase):
    """The client's methods that return pages."""

    @arguments_checked
    def list_page(
        self,
        *,
        user_id: str,
        prefix: str = "",
        delimiter: str = "",
        after: str | None = None,
        limit: int = _LIMIT,
        hidden: str = "",
        with_attributes: Sequence[str] = (),
        timeout_s: float | None = None,
    ) -> FilePage:
        """A page of a user's files by name, as directories are listed; it takes about as long as it has entries.

        Args:
            user_id: the owner.
            prefix: only names that start with this.
            delimiter: names that have this text after the prefix are not listed: what they have in common up to it is,
                once, among the page's ``prefixes``. Empty: all names are listed.
            after: continue after this name; after all names that begin with it, if it is one of the ``prefixes``.
            limit: at most this many files and prefixes together; a page may have fewer though there are more.
            hidden: leave out files whose head has an attribute of this name. Empty: leave out none.
            with_attributes: names of the attributes that the versions come with.
            timeout_s: seconds.

        Raises:
            PoolIsBlind: this client has a key, so that the server does not know the names.
        """
        deadline = self._deadline(timeout_s)
        self._require_pages(deadline)
        files: list[Version] = []
        prefixes: list[str] = []
        while (room := limit - len(files) - len(prefixes)) > 0:
            request = store_pb2.ListFilesRequest(
                user_id=user_id,
                prefix=prefix,
                after=after or "",
                limit=min(room, PAGE_MAX),
                attributes=with_attributes,
                delimiter=delimiter,
                hidden=hidden,
            )
            page = self._channel.unary(self._channel.store.ListFiles, request, deadline)
            files += map(version_from_proto, page.files)
            prefixes += page.prefixes
            after = page.next_after or None
            if after is None:
                break
        return FilePage(files, prefixes, after)

    @arguments_checked
    def list_versions(
        self,
        *,
        user_id: str,
        prefix: str = "",
        delimiter: str = "",
        after: str | None = None,
        before: str | None = None,
        limit: int = _LIMIT,
        timeout_s: float | None = None,
    ) -> VersionPage:
        """A page of all versions of a user's files: by name, and those of each file from newest to oldest.

        Args:
            user_id: the owner.
            prefix: see :meth:`list_page`.
            delimiter: likewise.
            after: likewise.
            before: begin with those versions of the file ``after`` that come after this one in its history.
            limit: at most this many versions and prefixes together.
            timeout_s: seconds.

        Raises:
            VersionNotFound: the file ``after`` has no version ``before``.
            InvalidArgument: ``before`` is given without ``after``.
            PoolIsBlind: see :meth:`list_page`.
        """
        deadline = self._deadline(timeout_s)
        self._require_pages(deadline)
        versions: list[Version] = []
        latest: set[str] = set()
        prefixes: list[str] = []
        while (room := limit - len(versions) - len(prefixes)) > 0:
            request = store_pb2.ListVersionsRequest(
                user_id=user_id,
                prefix=prefix,
                delimiter=delimiter,
                after=after or "",
                before=before or "",
                limit=min(room, PAGE_MAX),
            )
            page = self._channel.unary(self._channel.store.ListVersions, request, deadline)
            versions += map(version_from_proto, page.versions)
            latest.update(page.latest)
            prefixes += page.prefixes
            after, before = page.next_after or None, page.next_before or None
            if after is None:
                break
        return VersionPage(versions, frozenset(latest), prefixes, after, before)

    def _require_pages(self, deadline: Deadline) -> None:
        self._require_clear("to list files in pages")
        if not self._channel.describe(deadline).has_conditions:
            raise CallNotOffered(f"the server at {self.address} is of a release that lists no pages; upgrade it")
