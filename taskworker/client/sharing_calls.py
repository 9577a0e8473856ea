"""The calls by which users share their files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from storage import Version
from storage.errors import InvalidArgument
from taskworker.client.base import ClientBase
from taskworker.client.checked import arguments_checked
from taskworker.client.deadline import Deadline
from taskworker.protos import sharing_pb2
from taskworker.protos.sharing_pb2_grpc import SharingServiceStub


@dataclass(frozen=True, slots=True)
class Share:
    """What a user may do with files of another.

    Attributes:
        grant_id: names the grant.
        owner: whose files they are.
        with_user: who may use them.
        name: the file's name; if it ends with ``/``, all files whose names begin with it.
        write: whether the user may also store versions.
        created_ms: since when, milliseconds since 1970.
        expires_ms: until when; None: until it is taken back.
    """

    grant_id: str
    owner: str
    with_user: str
    name: str
    write: bool
    created_ms: int
    expires_ms: int | None


@dataclass(frozen=True, slots=True)
class Shares:
    """What a user has shared, and what is shared with the user."""

    given: list[Share]
    received: list[Share]


@dataclass(frozen=True, slots=True)
class Link:
    """A link with which anybody can read a file.

    Attributes:
        link_id: names the link; no secret.
        owner: whose file it is.
        file_id: the file.
        version_id: the version; None: always the newest one.
        created_ms: since when, milliseconds since 1970.
        expires_ms: until when; None: until it is revoked.
    """

    link_id: str
    owner: str
    file_id: str
    version_id: str | None
    created_ms: int
    expires_ms: int | None


@dataclass(frozen=True, slots=True)
class NewLink:
    """A link that was just made; ``text`` is what to give away, and cannot be shown again."""

    text: str
    link: Link


class SharingCalls(ClientBase):
    """The client's methods for sharing files."""

    @cached_property
    def _sharing(self) -> SharingServiceStub:
        return SharingServiceStub(self._channel.channel)

    @arguments_checked
    def share(
        self,
        name: str,
        *,
        with_user: str,
        user_id: str | None = None,
        write: bool = False,
        ttl_s: float | None = None,
        timeout_s: float | None = None,
    ) -> Share:
        """Let another user read a file, or also write it. The user names the owner as ``user_id`` to get it.

        Args:
            name: the file's name; if it ends with ``/``, all files whose names begin with it are shared.
            with_user: who may use it. Whether there is such a user is not told.
            user_id: whose file it is; None: the caller's. Only operators may name others.
            write: whether the user may also store versions, whose notes then say by whom they are.
            ttl_s: for how many seconds; None: until it is taken back.
            timeout_s: see :class:`Client`.

        Raises:
            InvalidArgument: nobody can have this name, or it is the owner's.
            StoreFull: the owner has shared too much.
            PoolIsBlind: this client has a key, and the name ends with ``/``; single files can be shared with users who
                have the key as well.
        """
        deadline = self._deadline(timeout_s)
        owner, name = self._stored_name(name, user_id, deadline)
        request = sharing_pb2.ShareRequest(
            user_id=owner, name=name, with_user=with_user, write=write, ttl_s=ttl_s or 0.0
        )
        return self._share(self._channel.unary(self._sharing.Share, request, deadline))

    @arguments_checked
    def unshare(
        self, name: str, *, with_user: str = "", user_id: str | None = None, timeout_s: float | None = None
    ) -> list[Share]:
        """Take back what was shared under this name, by default from everybody; return what was taken back.

        Raises:
            InvalidArgument: nothing was shared.
        """
        deadline = self._deadline(timeout_s)
        owner, name = self._stored_name(name, user_id, deadline)
        request = sharing_pb2.UnshareRequest(user_id=owner, name=name, with_user=with_user)
        answer = self._channel.unary(self._sharing.Unshare, request, deadline)
        return [self._share(one) for one in answer.grants]

    @arguments_checked
    def shares(self, *, user_id: str | None = None, timeout_s: float | None = None) -> Shares:
        """What the user has shared, and what is shared with the user."""
        request = sharing_pb2.ListSharesRequest(user_id=user_id or "")
        answer = self._channel.unary(self._sharing.ListShares, request, self._deadline(timeout_s))
        return Shares([self._share(one) for one in answer.given], [self._share(one) for one in answer.received])

    @arguments_checked
    def create_link(
        self,
        file_id: str,
        *,
        user_id: str | None = None,
        version_id: str | None = None,
        ttl_s: float | None = None,
        timeout_s: float | None = None,
    ) -> NewLink:
        """Make a link with which anybody can read a file: ``Client(address, token=link)``.

        Args:
            file_id: the file.
            user_id: whose file it is; None: the caller's. Only operators may name others.
            version_id: the version that it shows; None: always the newest one.
            ttl_s: for how many seconds it is valid; None: until it is revoked.
            timeout_s: see :class:`Client`.

        Raises:
            FileNotFound: there is no such file.
            VersionNotFound: the file has no such version.
            StoreFull: the owner has too many links.
            PoolIsBlind: this client has a key, which whoever opens a link lacks.
        """
        self._require_clear("whoever opens a link lacks the key, so a link to a sealed file is of no use")
        request = sharing_pb2.CreateLinkRequest(
            user_id=user_id or "", file_id=file_id, version_id=version_id or "", ttl_s=ttl_s or 0.0
        )
        made = self._channel.unary(self._sharing.CreateLink, request, self._deadline(timeout_s))
        return NewLink(made.text, _link(made.link))

    @arguments_checked
    def links(self, *, user_id: str | None = None, timeout_s: float | None = None) -> list[Link]:
        """The user's links, oldest first."""
        request = sharing_pb2.ListLinksRequest(user_id=user_id or "")
        answer = self._channel.unary(self._sharing.ListLinks, request, self._deadline(timeout_s))
        return [_link(one) for one in answer.links]

    @arguments_checked
    def revoke_link(self, link_id: str, *, user_id: str | None = None, timeout_s: float | None = None) -> Link:
        """End a link at once.

        Raises:
            InvalidArgument: the user has no such link.
        """
        request = sharing_pb2.RevokeLinkRequest(user_id=user_id or "", link_id=link_id)
        return _link(self._channel.unary(self._sharing.RevokeLink, request, self._deadline(timeout_s)))

    @arguments_checked
    def linked(self, *, timeout_s: float | None = None) -> Version:
        """The version that a link shows, which is given as this client's ``token``. Get it by its ids.

        Raises:
            Unauthenticated: the link is not valid, or no more.
            FileNotFound: its file was deleted.
            InvalidArgument: this client shows no link.
        """
        deadline = self._deadline(timeout_s)
        found = self._channel.unary(self._sharing.Linked, sharing_pb2.LinkedRequest(), deadline)
        version = self._stat(found.file_id, "", found.version_id or None, deadline)
        return self._shown(version, version.user_id)

    def _stored_name(self, name: str, user_id: str | None, deadline: Deadline) -> tuple[str, str]:
        """The owner to name, and the name under which the server has the files."""
        if self._sealed is None:
            return user_id or "", name
        if user_id is None:
            raise InvalidArgument("a sealed name is made of the user's and the file's: give user_id")
        if name.endswith("/"):
            self._require_clear("sealed names have no common beginnings: share files one by one")
        return user_id, self._sealed.stored_name(user_id, name, deadline)

    def _share(self, one: sharing_pb2.Grant) -> Share:
        share = _share(one)
        return share if self._sealed is None else replace(share, name=self._sealed.shown_name(share.owner, share.name))


def _share(one: sharing_pb2.Grant) -> Share:
    return Share(
        grant_id=one.grant_id,
        owner=one.owner,
        with_user=one.with_user,
        name=one.name,
        write=one.write,
        created_ms=one.created_ms,
        expires_ms=one.expires_ms or None,
    )


def _link(one: sharing_pb2.Link) -> Link:
    return Link(
        link_id=one.link_id,
        owner=one.owner,
        file_id=one.file_id,
        version_id=one.version_id or None,
        created_ms=one.created_ms,
        expires_ms=one.expires_ms or None,
    )
