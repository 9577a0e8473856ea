"""Callers who use files of others: with a grant of their owner, or with a link.

What was not granted is answered as if it did not exist, with the same text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Protocol

from google.protobuf.message import Message

from storage.errors import FileNotFound, PermissionDenied
from taskworker.auth.rights import LinkTarget, Principal, Right
from taskworker.protos import store_pb2, taskworker_pb2
from taskworker.rpc.conversion import parsed
from taskworker.rpc.message_fields import ids_in, messages_at, names_in
from taskworker.rpc.shown_versions import ShownVersions

_STORE = "taskworker.store.StoreService"
_FILES = "taskworker.FileService"
_LISTS = ("History", "ListFiles", "ListVersions")
_READING = frozenset(
    {f"{_STORE}.{call}" for call in ("GetStream", "LocateShards", "GetFile", "GetManifest", "Stat", *_LISTS)}
    | {f"{_FILES}.Get", f"{_FILES}.Synchronous"}
)
_READING_MANY = frozenset({f"{_STORE}.GetMany", f"{_STORE}.GetFiles"})
_WRITING = frozenset(
    {f"{_STORE}.{call}" for call in ("PushStream", "PushFile", "MissingChunks", "ReviseStream")}
    | {f"{_FILES}.Push", f"{_FILES}.Revise"}
)
_WITH_LINK = frozenset(
    {f"{_STORE}.{call}" for call in ("GetStream", "LocateShards", "GetFile", "GetManifest", "Stat")} | {f"{_FILES}.Get"}
)
_NEEDS_NO_FILE = frozenset({f"{_STORE}.Describe", "taskworker.sharing.SharingService.Linked"})


class Grants(Protocol):
    """Knows what users let others do with their files."""

    def may(self, user: str, owner: str, name: str, *, write: bool) -> bool:
        """Whether a user may read, or write, an owner's file of this name."""

    def owners(self, user: str) -> list[str]:
        """Who shares anything with a user."""


Hidden = Callable[[str, str], FileNotFound | None]
"""Returns what is answered about a file with this name or this id, if the caller may not know of it."""


class Guest(Protocol):
    """A caller, who is told on whose files the call works, and which of these it does not see."""

    guest_of: str
    hidden: Hidden


class Head(Protocol):
    """The newest version of a file."""

    @property
    def filename(self) -> str:
        """The file's name."""

    @property
    def version_id(self) -> str:
        """The version's id."""


HeadOf = Callable[[str, str], Head]
"""Returns the newest version of a user's file, by its id; raises FileNotFound if there is none."""


class Guests:
    """Decides what callers may do with files of others in one call.

    Args:
        call: full name of the call.
        grants: what users have shared.
        head_of: looks up files.
    """

    def __init__(self, call: str, grants: Grants, head_of: HeadOf) -> None:
        self._grants = grants
        self._head_of = head_of
        self._reads, self._writes = call in _READING or call in _READING_MANY, call in _WRITING
        self._call = call

    def admit(self, principal: Principal, caller: Guest, message: Message, paths: Iterable[tuple[str, ...]]) -> bool:
        """Let a message work on the files of another, if they are shared with the caller.

        Args:
            principal: who is calling.
            caller: is told whose files they are.
            message: gets the owner's name, and if it stores a version, a note that says by whom.
            paths: where the message names users.

        Returns:
            Whether it works on files of another who has shared something with the caller; if not, nothing was checked.

        Raises:
            FileNotFound: this file is not shared.
            PermissionDenied: it is shared for reading only.
        """
        if not (self._reads or self._writes) or not self._is_unlimited(principal):
            return False
        sharing = self._grants.owners(principal.user)
        if not sharing:
            return False
        holders: list[Any] = [one for path in paths for one in messages_at(message, path)]
        state = sync_state(message) if isinstance(message, taskworker_pb2.SynchronousRequest) else None
        if state is not None:
            holders.append(state)
        owner = self._owner_of(principal, message, holders, sharing)
        if not owner:
            return False
        for holder in holders:
            holder.user_id = owner
            if hasattr(holder, "note") and self._writes:
                holder.note = with_author(holder.note, principal.user)
        if state is not None:
            message.difference = state.SerializeToString()  # type: ignore[attr-defined]
        caller.guest_of = owner
        caller.hidden = partial(self._hidden, principal.user, owner)
        return True

    def _hidden(self, user: str, owner: str, name: str, file_id: str) -> FileNotFound | None:
        found = name or self._name_of(file_id, owner)
        if found is not None and self._grants.may(user, owner, found, write=False):
            return None
        return _no_name(name) if name else _no_id(file_id)

    def _owner_of(self, principal: Principal, message: Message, holders: list[Any], sharing: list[str]) -> str:
        """Find out on whose files a message works; empty: on the caller's own, or on those of somebody unrelated."""
        named = {one.user_id for one in holders} - {"", principal.user}
        if named:
            (owner, *others) = named
            if others or owner not in sharing or principal.may_act_for(owner):
                return ""
            self._require_all(principal, owner, message)
            return str(owner)
        ids = list(ids_in(message))
        if len(ids) != 1 or self._name_of(ids[0], principal.user) is not None:
            return ""
        for owner in sharing:
            name = self._name_of(ids[0], owner)
            if name is not None and self._grants.may(principal.user, owner, name, write=False):
                self._require(principal, owner, name, _no_id(ids[0]), writes=self._is_writing(message))
                return owner
        return ""

    def _is_unlimited(self, principal: Principal) -> bool:
        """Whether the caller's token is limited to no names: its limits are meant for the caller's own."""
        right = Right.WRITE_FILES if self._writes else Right.READ_FILES
        return principal.may(right, "")

    def _name_of(self, file_id: str, owner: str) -> str | None:
        try:
            return self._head_of(file_id, owner).filename
        except FileNotFound:
            return None

    def _require_all(self, principal: Principal, owner: str, message: Message) -> None:
        if self._call == f"{_STORE}.MissingChunks" or self._call in _READING_MANY:
            return  # answered without a look at what there is, or for each file by itself
        writes = self._is_writing(message)
        for name in names_in(message):
            self._require(principal, owner, name, _no_name(name), writes=writes)
        for file_id in ids_in(message):
            self._require(principal, owner, self._name_of(file_id, owner), _no_id(file_id), writes=writes)

    def _require(
        self, principal: Principal, owner: str, name: str | None, missing: FileNotFound, *, writes: bool
    ) -> None:
        if name is None or not self._grants.may(principal.user, owner, name, write=False):
            raise missing
        if writes and not self._grants.may(principal.user, owner, name, write=True):
            raise PermissionDenied(f"{owner[:80]!r} has shared this file with you for reading only")

    def _is_writing(self, message: Message) -> bool:
        if isinstance(message, taskworker_pb2.SynchronousRequest):
            return sync_state(message).HasField("diff")
        return self._writes


class LinkedCalls:
    """Limits one call to the file of the link that its caller has.

    Args:
        call: full name of the call.
        head_of: looks up files.
        shown: which versions links have shown.
    """

    def __init__(self, call: str, head_of: HeadOf | None, shown: ShownVersions) -> None:
        self._head_of = head_of
        self._shown = shown
        self._is_allowed = call in _WITH_LINK or call in _NEEDS_NO_FILE
        self._needs_file = call in _WITH_LINK
        self._call = call

    def require_allowed(self) -> None:
        """Check that links are for this call.

        Raises:
            PermissionDenied: they are not.
        """
        if not self._is_allowed:
            raise PermissionDenied(
                f"{self._call.rpartition('.')[2]} needs the right of a user; a link only reads a file"
            )

    def limited(self, owner: str, link_id: str, link: LinkTarget, message: Any) -> Any:
        """Return a message that asks for one version of the link's file.

        Whoever was shown the newest version may go on with it for a while, though it is not the newest any more.

        Raises:
            FileNotFound: it asks for something else.
        """
        if not self._needs_file:
            return message
        if getattr(message, "filename", ""):
            raise _no_name(message.filename)
        if message.file_id not in ("", link.file_id) or message.user_id not in ("", owner):
            raise _no_id(message.file_id)
        message.file_id, message.user_id = link.file_id, owner
        if not link.version_id:
            message.version_id = self._shown_version(owner, link_id, link.file_id, message.version_id)
        elif message.version_id in ("", link.version_id):
            message.version_id = link.version_id
        else:
            raise _no_id(message.file_id)
        return message

    def _shown_version(self, owner: str, link_id: str, file_id: str, wanted: str) -> str:
        """The version that a link to the newest one shows to who asks for this; empty: any."""
        if self._head_of is None:
            raise _no_id(file_id)
        head = self._head_of(file_id, owner).version_id
        if wanted in ("", head):
            self._shown.note(link_id, head)
        elif not self._shown.has(link_id, wanted):
            raise _no_id(file_id)
        return wanted or head


def with_author(note: str, author: str) -> str:
    """A version's note that says who stored it, if that is not the owner."""
    return f"{note} (by {author})".lstrip()


def sync_state(message: taskworker_pb2.SynchronousRequest) -> store_pb2.SyncState:
    """The state within a message; empty if there is none."""
    return parsed(store_pb2.SyncState.FromString, message.difference, "difference")


def _no_name(name: str) -> FileNotFound:
    return FileNotFound(f"there is no file named {name[:80]!r}; list the files to see what there is")


def _no_id(file_id: str) -> FileNotFound:
    return FileNotFound(f"there is no file {file_id[:80]!r}; list the files to see what there is")
