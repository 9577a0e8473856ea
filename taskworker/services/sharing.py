"""SharingService of ``sharing.proto``: users share their files."""

from __future__ import annotations

from typing import Protocol

from storage.errors import FileNotFound, InvalidArgument
from taskworker.auth import sharing as domain
from taskworker.protos import sharing_pb2
from taskworker.rpc.authorization import KnownCaller
from taskworker.rpc.binding import Caller


class SharedFiles(Protocol):
    """Looks up files; ``storage.FileStorage`` implements it."""

    def stat(self, file_id: str, *, user_id: str, version_id: str | None = None) -> FoundVersion:
        """A version of a file; raise FileNotFound or VersionNotFound if there is none."""

    def find(self, filename: str, *, user_id: str) -> FoundVersion | None:
        """The newest version of a file, by its name."""


class FoundVersion(Protocol):
    """A version that was found."""

    @property
    def file_id(self) -> str:
        """Id of its file."""

    @property
    def version_id(self) -> str:
        """Its id."""


class SharingService:
    """Lets users share their files; thread-safe.

    Args:
        sharing: what is shared.
        files: the files.
    """

    def __init__(self, sharing: domain.Sharing, files: SharedFiles) -> None:
        self._sharing = sharing
        self._files = files

    def Share(self, request: sharing_pb2.ShareRequest, _caller: Caller) -> sharing_pb2.Grant:  # noqa: N802
        """Let a user use files."""
        return _grant(
            self._sharing.share(
                request.user_id,
                request.name,
                request.with_user,
                write=request.write,
                ttl_s=request.ttl_s or None,
            )
        )

    def Unshare(self, request: sharing_pb2.UnshareRequest, _caller: Caller) -> sharing_pb2.UnshareResponse:  # noqa: N802
        """Take grants back."""
        ended = self._sharing.unshare(request.user_id, request.name, request.with_user)
        return sharing_pb2.UnshareResponse(grants=map(_grant, ended))

    def ListShares(  # noqa: N802
        self, request: sharing_pb2.ListSharesRequest, _caller: Caller
    ) -> sharing_pb2.ListSharesResponse:
        """What a user has shared, and what is shared with the user."""
        return sharing_pb2.ListSharesResponse(
            given=map(_grant, self._sharing.given(request.user_id)),
            received=map(_grant, self._sharing.received(request.user_id)),
        )

    def CreateLink(self, request: sharing_pb2.CreateLinkRequest, _caller: Caller) -> sharing_pb2.NewLink:  # noqa: N802
        """Make a link to a file."""
        if request.WhichOneof("file") == "filename":
            found = self._files.find(request.filename, user_id=request.user_id)
            if found is None:
                raise FileNotFound(
                    f"there is no file named {request.filename[:80]!r}; list the files to see what there is"
                )
            file_id = found.file_id
        else:
            file_id = request.file_id
        version = self._files.stat(file_id, user_id=request.user_id, version_id=request.version_id or None)
        made = self._sharing.create_link(
            request.user_id,
            version.file_id,
            version.version_id if request.version_id else "",
            ttl_s=request.ttl_s or None,
        )
        return sharing_pb2.NewLink(text=made.text, link=_link(made.link))

    def ListLinks(  # noqa: N802
        self, request: sharing_pb2.ListLinksRequest, _caller: Caller
    ) -> sharing_pb2.ListLinksResponse:
        """A user's links, without what makes them valid."""
        return sharing_pb2.ListLinksResponse(links=map(_link, self._sharing.links(request.user_id)))

    def RevokeLink(self, request: sharing_pb2.RevokeLinkRequest, _caller: Caller) -> sharing_pb2.Link:  # noqa: N802
        """End a link."""
        return _link(self._sharing.revoke_link(request.user_id, request.link_id))

    def Linked(self, _request: sharing_pb2.LinkedRequest, caller: Caller) -> sharing_pb2.LinkedFile:  # noqa: N802
        """What the link is for that the caller shows."""
        link = caller.principal.link if isinstance(caller, KnownCaller) else None
        if link is None:
            raise InvalidArgument("the caller shows no link, but is a user: ask for files by name")
        return sharing_pb2.LinkedFile(file_id=link.file_id, version_id=link.version_id)


def _grant(one: domain.Grant) -> sharing_pb2.Grant:
    return sharing_pb2.Grant(
        grant_id=one.grant_id,
        owner=one.owner,
        with_user=one.user,
        name=one.name,
        write=one.write,
        created_ms=one.created_ms,
        expires_ms=one.expires_ms,
    )


def _link(one: domain.Link) -> sharing_pb2.Link:
    return sharing_pb2.Link(
        link_id=one.link_id,
        owner=one.owner,
        file_id=one.file_id,
        version_id=one.version_id,
        created_ms=one.created_ms,
        expires_ms=one.expires_ms,
    )
