"""What users let others do with their files: grants to other users, and links that anybody with the link can use.

All are in one document of the catalog, which is read once and written with every change. Grants name files as their
owners do: whatever file has the name is shared. Links name files by id, so a link ends with its file.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import msgspec

from storage.clocks import wall_ms
from storage.errors import InvalidArgument, StoreFull
from storage.limits import check_filename
from taskworker.auth.documents import Documents
from taskworker.auth.link_tokens import is_link, new_link
from taskworker.auth.rights import LinkTarget, Principal, Right, Role, Scope
from taskworker.auth.user_tokens import hash_of_token
from taskworker.auth.users import TTL_S_MAX, check_name
from taskworker.errors import Unauthenticated

DOCUMENT = "sharing"
GRANTS_MAX = 20_000
GRANTS_OF_USER_MAX = 1_000
LINKS_MAX = 20_000
LINKS_OF_USER_MAX = 1_000
_ID_BYTES = 6


class Grant(msgspec.Struct, frozen=True):
    """What a user may do with files of another.

    Attributes:
        grant_id: names the grant.
        owner: whose files they are.
        user: who may use them.
        name: the file's name; if it ends with ``/``, all files whose names begin with it.
        write: whether the user may also store versions.
        created_ms: since when.
        expires_ms: until when; 0: until it is taken back.
    """

    grant_id: str
    owner: str
    user: str
    name: str
    write: bool
    created_ms: int
    expires_ms: int = 0

    def covers(self, name: str, now_ms: int, *, write: bool) -> bool:
        """Whether the user may now read, or write, the file of this name."""
        return self.is_valid(now_ms) and (self.write or not write) and is_within(name, self.name)

    def is_valid(self, now_ms: int) -> bool:
        """Whether it has not expired."""
        return not self.expires_ms or now_ms < self.expires_ms


class Link(msgspec.Struct, frozen=True):
    """A file that can be read with a link.

    Attributes:
        link_id: names the link; no secret.
        owner: whose file it is.
        digest: SHA-256 of the link.
        file_id: the file.
        version_id: the version; empty: always the newest one.
        created_ms: since when.
        expires_ms: until when; 0: until it is revoked.
    """

    link_id: str
    owner: str
    digest: bytes
    file_id: str
    version_id: str = ""
    created_ms: int = 0
    expires_ms: int = 0

    def is_valid(self, now_ms: int) -> bool:
        """Whether it has not expired."""
        return not self.expires_ms or now_ms < self.expires_ms


class NewLink(NamedTuple):
    """A link that was just made; ``text`` is not kept, and cannot be shown again."""

    text: str
    link: Link


class _Kept(msgspec.Struct, frozen=True):
    grants: tuple[Grant, ...] = ()
    links: tuple[Link, ...] = ()


_decoder = msgspec.msgpack.Decoder(_Kept)


def is_within(name: str, shared: str) -> bool:
    """Whether a name is one that a grant names."""
    return name.startswith(shared) if shared.endswith("/") else name == shared


class Sharing:
    """The grants and links of a server. Thread-safe.

    Args:
        documents: where they are stored.
        now_ms: milliseconds since 1970.
    """

    def __init__(self, documents: Documents, now_ms: Callable[[], int] = wall_ms) -> None:
        self._documents = documents
        self._now_ms = now_ms
        self._lock = threading.Lock()
        raw = documents.document(DOCUMENT)
        self._take(_decoder.decode(raw) if raw else _Kept())

    # -- grants ----------------------------------------------------------------------------------

    def share(self, owner: str, name: str, user: str, *, write: bool = False, ttl_s: float | None = None) -> Grant:
        """Let a user read, or also write, a file or all files with a prefix; a former grant of the same is replaced.

        Whether there is such a user is not told: users are not to find out who else there is.

        Raises:
            InvalidArgument: the name or the time is out of bounds, or the user is the owner.
            StoreFull: there are too many grants.
        """
        check_name(user)
        check_filename(name)
        if user == owner:
            raise InvalidArgument("files are shared with other users; these are your own")
        with self._lock:
            now_ms = self._now_ms()
            grant = Grant(secrets.token_hex(_ID_BYTES), owner, user, name, write, now_ms, _end(ttl_s, now_ms))
            others = [one for one in self._kept.grants if one.is_valid(now_ms) and not _is_same(one, owner, name, user)]
            if len(others) >= GRANTS_MAX or sum(one.owner == owner for one in others) >= GRANTS_OF_USER_MAX:
                raise StoreFull(f"there are too many grants, at most {GRANTS_OF_USER_MAX:,} of a user; take some back")
            self._save(msgspec.structs.replace(self._kept, grants=(*others, grant)))
            return grant

    def unshare(self, owner: str, name: str, user: str = "") -> list[Grant]:
        """Take a grant back, from one user or from all.

        Returns:
            What was taken back.

        Raises:
            InvalidArgument: nothing was granted.
        """
        with self._lock:
            ended = [
                one for one in self._kept.grants if (one.owner, one.name) == (owner, name) and user in ("", one.user)
            ]
            if not ended:
                raise InvalidArgument(f"{name[:80]!r} is not shared{' with that user' if user else ''}; see the shares")
            left = tuple(one for one in self._kept.grants if one not in ended)
            self._save(msgspec.structs.replace(self._kept, grants=left))
            return ended

    def given(self, owner: str) -> list[Grant]:
        """What a user has shared, and has not expired."""
        now_ms = self._now_ms()
        return [one for one in self._kept.grants if one.owner == owner and one.is_valid(now_ms)]

    def received(self, user: str) -> list[Grant]:
        """What is shared with a user, and has not expired."""
        now_ms = self._now_ms()
        return [one for grants in self._by_user.get(user, {}).values() for one in grants if one.is_valid(now_ms)]

    def may(self, user: str, owner: str, name: str, *, write: bool) -> bool:
        """Whether a user may read, or write, an owner's file of this name."""
        now_ms = self._now_ms()
        return any(one.covers(name, now_ms, write=write) for one in self._by_user.get(user, {}).get(owner, ()))

    def owners(self, user: str) -> list[str]:
        """Who shares anything with a user."""
        now_ms = self._now_ms()
        found = self._by_user.get(user)
        return [] if found is None else [owner for owner, all_of in found.items() if _any_valid(all_of, now_ms)]

    def forget(self, user: str) -> int:
        """End all grants and links from and to a user who was removed; return how many."""
        with self._lock:
            grants = tuple(one for one in self._kept.grants if user not in (one.owner, one.user))
            links = tuple(one for one in self._kept.links if one.owner != user)
            ended = len(self._kept.grants) + len(self._kept.links) - len(grants) - len(links)
            if ended:
                self._save(_Kept(grants, links))
            return ended

    # -- links -----------------------------------------------------------------------------------

    def create_link(self, owner: str, file_id: str, version_id: str = "", *, ttl_s: float | None = None) -> NewLink:
        """Make a link to a file.

        Args:
            owner: whose file it is.
            file_id: the file.
            version_id: the version; empty: always the newest one.
            ttl_s: for how many seconds it is valid; None: until it is revoked.

        Raises:
            InvalidArgument: the time is out of bounds.
            StoreFull: there are too many links.
        """
        with self._lock:
            now_ms = self._now_ms()
            links = [one for one in self._kept.links if one.is_valid(now_ms)]
            if len(links) >= LINKS_MAX or sum(one.owner == owner for one in links) >= LINKS_OF_USER_MAX:
                raise StoreFull(f"there are too many links, at most {LINKS_OF_USER_MAX:,} of a user; revoke some")
            text = new_link()
            link = Link(
                link_id=secrets.token_hex(_ID_BYTES),
                owner=owner,
                digest=hash_of_token(text),
                file_id=file_id,
                version_id=version_id,
                created_ms=now_ms,
                expires_ms=_end(ttl_s, now_ms),
            )
            self._save(msgspec.structs.replace(self._kept, links=(*links, link)))
            return NewLink(text, link)

    def links(self, owner: str) -> list[Link]:
        """A user's links that have not expired, oldest first."""
        now_ms = self._now_ms()
        return [one for one in self._kept.links if one.owner == owner and one.is_valid(now_ms)]

    def revoke_link(self, owner: str, link_id: str) -> Link:
        """End a link at once.

        Raises:
            InvalidArgument: the user has no link of this id.
        """
        with self._lock:
            found = next((one for one in self._kept.links if (one.owner, one.link_id) == (owner, link_id)), None)
            if found is None:
                raise InvalidArgument(f"there is no link {link_id[:80]!r}; list the links to see their ids")
            self._save(
                msgspec.structs.replace(self._kept, links=tuple(one for one in self._kept.links if one is not found))
            )
            return found

    def move_links(self, successor: Callable[[str, str, str], str | None]) -> None:
        """Have links show other versions with the same content, as those that they show are about to be dropped.

        Args:
            successor: returns, by owner, file and version, the version that takes its place; None: it stays.
        """
        shown = {(one.owner, one.file_id, one.version_id) for one in self._kept.links if one.version_id}
        became = {version: anew for version in shown if (anew := successor(*version)) is not None}
        if not became:
            return
        with self._lock:
            self._save(
                msgspec.structs.replace(self._kept, links=tuple(_moved(one, became) for one in self._kept.links))
            )

    def principal_of_link(self, text: str) -> Principal:
        """Return who has a link: somebody who may read one file, in the name of its owner.

        Raises:
            Unauthenticated: it is no link, or it has expired or was revoked. The text does not contain it.
        """
        digest = hash_of_token(text)
        link = self._by_digest.get(digest) if is_link(text) else None
        if link is None or not secrets.compare_digest(link.digest, digest):
            raise Unauthenticated("the link is not valid here, or no more; ask whoever gave it to you")
        if not link.is_valid(self._now_ms()):
            raise Unauthenticated("the link has expired; ask whoever gave it to you for another one")
        scopes = (Scope(Right.READ_FILES),)
        return Principal(link.owner, Role.USER, scopes, link.link_id, link=LinkTarget(link.file_id, link.version_id))

    # -- backups ---------------------------------------------------------------------------------

    def everything(self) -> tuple[tuple[Grant, ...], tuple[Link, ...]]:
        """All grants and links that have not expired."""
        now_ms = self._now_ms()
        kept = self._kept
        return (
            tuple(one for one in kept.grants if one.is_valid(now_ms)),
            tuple(one for one in kept.links if one.is_valid(now_ms)),
        )

    def restore(self, grants: Iterable[Grant], links: Iterable[Link]) -> tuple[int, int]:
        """Add grants and links of a backup, except those that are there already, and those that have expired.

        Returns:
            How many grants and links were added.

        Raises:
            InvalidArgument: nobody can have one of the names. Nothing was added.
            StoreFull: there would be too many.
        """
        with self._lock:
            kept, now_ms = self._kept, self._now_ms()
            given = {(one.owner, one.name, one.user) for one in kept.grants if one.is_valid(now_ms)}
            known = {one.link_id for one in kept.links} | {one.digest for one in kept.links}
            new_grants = [
                one for one in grants if one.is_valid(now_ms) and (one.owner, one.name, one.user) not in given
            ]
            new_links = [one for one in links if one.is_valid(now_ms) and not known & {one.link_id, one.digest}]
            for grant in new_grants:
                check_name(grant.owner)
                check_name(grant.user)
                check_filename(grant.name)
            for link in new_links:
                check_name(link.owner)
            if len(kept.grants) + len(new_grants) > GRANTS_MAX or len(kept.links) + len(new_links) > LINKS_MAX:
                raise StoreFull(f"there would be more than {GRANTS_MAX:,} grants or {LINKS_MAX:,} links")
            if new_grants or new_links:
                self._save(_Kept((*kept.grants, *new_grants), (*kept.links, *new_links)))
            return len(new_grants), len(new_links)

    # -- what is kept ----------------------------------------------------------------------------

    def _save(self, kept: _Kept) -> None:
        """Write everything, then use it. Needs the lock."""
        self._documents.save_document(DOCUMENT, msgspec.msgpack.encode(kept))
        self._take(kept)

    def _take(self, kept: _Kept) -> None:
        by_user: dict[str, dict[str, list[Grant]]] = {}
        for one in kept.grants:
            by_user.setdefault(one.user, {}).setdefault(one.owner, []).append(one)
        self._by_digest = {one.digest: one for one in kept.links}
        self._by_user = by_user
        self._kept = kept


def _end(ttl_s: float | None, now_ms: int) -> int:
    if ttl_s is None:
        return 0
    if not 1.0 <= ttl_s <= TTL_S_MAX:
        raise InvalidArgument(f"this is valid for 1 second to 10 years, not for {ttl_s:g} s")
    return now_ms + int(ttl_s * 1000)


def _any_valid(grants: list[Grant], now_ms: int) -> bool:
    return any(one.is_valid(now_ms) for one in grants)


def _is_same(one: Grant, owner: str, name: str, user: str) -> bool:
    return (one.owner, one.name, one.user) == (owner, name, user)


def _moved(link: Link, became: Mapping[tuple[str, str, str], str]) -> Link:
    anew = became.get((link.owner, link.file_id, link.version_id))
    return link if anew is None else msgspec.structs.replace(link, version_id=anew)
