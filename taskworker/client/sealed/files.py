"""A user's sealed files on a server: what is sent is sealed, and what comes is verified and opened."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace

from storage import FileNotFound, Version
from storage.errors import ConflictError, KeyRequired, SealBroken
from storage.limits import BytesLike
from storage.options import PushOptions
from taskworker.client.channel import Channel
from taskworker.client.deadline import Deadline, retried
from taskworker.client.fetching import Fetch, Fetching, Wanted
from taskworker.client.sealed.content import SealedContent, sealed_stream
from taskworker.client.sealed.keys import Note, OwnKey, OwnKeys, divided
from taskworker.client.sealed.layout import Layout, layout_of
from taskworker.client.sealed.names import PREFIX, key_in
from taskworker.client.sealed.reading import RawRange, SealedVersion
from taskworker.client.sources import SeekableSource, Source
from taskworker.errors import CallNotOffered
from taskworker.protos import store_pb2
from taskworker.rpc.conversion import version_from_proto
from taskworker.rpc.limits import KIB, PAGE_MAX

_SMALL_BYTES_MAX = 64 * KIB
"""Stored files up to this size come with their version, in one message."""
_REMEMBERED_MAX = 10_000

Send = Callable[[Source, PushOptions], Version]
"""Sends content; returns the version as the server knows it."""


@dataclass(frozen=True, slots=True)
class Located:
    """Where the file of a name is.

    Attributes:
        key: the key that it is sealed with; for a new file, the current one.
        head: its head, as the server knows it; None: there is no such file.
    """

    key: OwnKey
    head: Version | None


class SealedFiles:
    """The files on a server that are sealed with a user's own keys. Thread-safe.

    A file is sealed with one key, which its stored name tells: with the current one, or with a former one until
    :mod:`~taskworker.client.sealed.rotating` has stored it anew. If both are there, as that is under way, the file
    under the former key counts until all of its versions are stored anew.

    It remembers what the server said of files and versions, and refuses another answer later.

    Args:
        channel: the connection.
        keys: the user's keys.
        retries: how often reads are retried.
    """

    def __init__(self, channel: Channel, keys: OwnKeys, retries: int) -> None:
        self.keys = keys
        self.channel = channel
        self._retries = retries
        self._lock = threading.Lock()
        self._said: dict[str, tuple[object, ...]] = {}

    # -- what is sent ---------------------------------------------------------------------------------

    def push(self, options: PushOptions, source: Source, deadline: Deadline, send: Send) -> Version:
        """Push a file: with the current key, or with the one that the file of this name is sealed with.

        Args:
            options: of the push.
            source: its content.
            deadline: for all calls but those of ``send``.
            send: pushes what is sealed; returns the version as the server knows it.

        Raises:
            InvalidArgument: the name or the note is too long, or the content has another SHA-256.
            ConflictError: the file was stored with the current key meanwhile, and the source cannot be read again.
        """
        for may_repeat in (isinstance(source, SeekableSource), False):
            place = self.located(options.user_id, options.filename, deadline)
            guarded = self._guarded(options, place, deadline)
            try:
                return send(*self.prepared(place.key, guarded, source, deadline))
            except (ConflictError, FileNotFound):
                if guarded is options or not may_repeat:
                    raise
        raise AssertionError("the second time, there is an answer")

    def _guarded(self, options: PushOptions, place: Located, deadline: Deadline) -> PushOptions:
        """The options, so that a file under a former key is not pushed to once it is stored anew."""
        if place.key is self.keys.current or place.head is None or options.if_absent or options.if_head is not None:
            return options
        if not self.channel.describe(deadline).has_conditions:
            return options
        return replace(options, if_head=place.head.version_id)

    def prepared(
        self, key: OwnKey, options: PushOptions, source: Source, deadline: Deadline, *, goes_on: bool = False
    ) -> tuple[Source, PushOptions]:
        """What to send in place of a file: content, sealed with a key, under a sealed name; see :class:`Note`.

        Raises:
            InvalidArgument: the name or the note is too long, or the content has another SHA-256.
        """
        chunk_size = options.chunk_size or self.channel.describe(deadline).chunk_size
        note = key.sealed_note(options.user_id, options.note, options.sha256, goes_on=goes_on)
        sealed = replace(
            options,
            filename=key.sealed_name(options.user_id, options.filename),
            chunk_size=chunk_size,
            note=note,
            sha256=None,
        )
        keys = key.of_file(options.user_id, options.filename)
        if not isinstance(source, SeekableSource):
            return sealed_stream(source, keys, chunk_size, note, options.sha256), sealed
        content = SealedContent(source, keys, Layout(source.size, chunk_size), note)
        content.require_sha256(options.sha256)
        return content, sealed

    # -- what comes -----------------------------------------------------------------------------------

    def opened(self, stored: Version, user_id: str) -> Version:
        """A version of a user's file as that user knows it.

        Raises:
            KeyRequired: it is sealed with another key.
            SealBroken: it is not sealed, or another user's, or was changed, or the server has said something else of it
                before.
        """
        return self.opened_with_note(stored, user_id)[0]

    def opened_with_note(self, stored: Version, user_id: str) -> tuple[Version, Note]:
        """Like :meth:`opened`, also with what is noted of the version."""
        if stored.user_id != user_id:
            raise SealBroken(
                f"the server answered with a file of {stored.user_id!r}; if that user shares it, give user_id (--user)"
            )
        key = self.keys.key_of(stored.file_id, stored.filename)
        name = key.opened_name(stored.user_id, stored.file_id, stored.filename)
        note, author = key.opened_note(stored.user_id, stored.file_id, stored.note)
        layout = layout_of(stored.size, stored.chunk_size)
        self._require_same(stored.file_id, stored.user_id, stored.filename)
        self._require_same(stored.version_id, stored.file_id, stored.size, stored.chunk_size, stored.note)
        version = replace(
            stored,
            filename=name,
            size=layout.size,
            note=f"{note.text} {author}".strip() if author else note.text,
            sha256=note.sha256.hex() if note.sha256 is not None else None,
            attributes={},  # nobody with the key has given any
        )
        return version, note

    def _require_same(self, subject: str, *said: object) -> None:
        with self._lock:
            before = self._said.pop(subject, said)
            while len(self._said) >= _REMEMBERED_MAX:
                del self._said[next(iter(self._said))]
            self._said[subject] = said
        if before != said:
            raise SealBroken(f"the server says something else of {subject} than before; do not trust it")

    def located(self, user_id: str, filename: str, deadline: Deadline) -> Located:
        """Where the file of this name is, or would be. Without former keys, nothing is asked for."""
        if not self.keys.former:
            return Located(self.keys.current, None)
        return self._located(user_id, filename, deadline)

    def _located(self, user_id: str, filename: str, deadline: Deadline) -> Located:
        unfinished: Located | None = None
        for key in self.keys:
            head = self.head(key, user_id, filename, deadline)
            if head is not None:
                if not self.opened_with_note(head, user_id)[1].goes_on:
                    return Located(key, head)
                unfinished = unfinished or Located(key, head)
        return unfinished or Located(self.keys.current, None)

    def head(self, key: OwnKey, user_id: str, filename: str, deadline: Deadline) -> Version | None:
        """The head of the file that is sealed with a key, as the server knows it; None if there is none.

        Raises:
            SealBroken: the server answered with another file.
        """
        request = store_pb2.StatRequest(user_id=user_id, filename=key.sealed_name(user_id, filename))
        try:
            stored = version_from_proto(self.channel.unary(self.channel.store.Stat, request, deadline))
        except FileNotFound:
            return None
        if stored.filename != request.filename:
            self.opened(stored, user_id)  # may know better what is wrong
            raise SealBroken("the server answered with another file than was asked for; do not trust it")
        return stored

    def stored_name(self, user_id: str, filename: str, deadline: Deadline) -> str:
        """The name under which the server has a file, or would have it."""
        return self.located(user_id, filename, deadline).key.sealed_name(user_id, filename)

    def shown_name(self, user_id: str, stored: str) -> str:
        """The clear form of a name, or the name itself if no key at hand opens it."""
        try:
            return self.keys.opened_name(user_id, "", stored)
        except (KeyRequired, SealBroken):
            return stored

    def find(self, user_id: str, filename: str, deadline: Deadline) -> Version | None:
        """The head of the file with this name; None if there is none."""
        stored = self._located(user_id, filename, deadline).head
        return None if stored is None else self.opened(stored, user_id)

    def every(self, user_id: str, prefix: str, deadline: Deadline) -> list[Version]:
        """The heads of all files whose names begin with a prefix, by name. The server cannot choose or sort them.

        Raises:
            KeyRequired: there are none, but some that are sealed with other keys.
        """
        heads = [head for _, head in self._places(user_id, deadline).values()]
        if not heads:
            self.require_used(user_id, deadline)
        chosen = (head for head in heads if head.filename.startswith(prefix))
        return sorted(chosen, key=lambda head: head.filename.encode())

    def under_former_keys(self, user_id: str, deadline: Deadline) -> dict[str, OwnKey]:
        """The keys of those files, by name, that are not sealed with the current key."""
        if not self.keys.former:
            return {}
        places = self._places(user_id, deadline)
        return {name: key for name, (key, _) in places.items() if key is not self.keys.current}

    def _places(self, user_id: str, deadline: Deadline) -> dict[str, tuple[OwnKey, Version]]:
        """The key and the head of each file, by name; see :meth:`located`."""
        places: dict[str, tuple[OwnKey, Version]] = {}
        unfinished: set[str] = set()
        for key in self.keys:
            for stored in self.stored_with(key, user_id, deadline):
                head, note = self.opened_with_note(stored, user_id)
                if head.filename not in places or (head.filename in unfinished and not note.goes_on):
                    places[head.filename] = key, head
                    (unfinished.add if note.goes_on else unfinished.discard)(head.filename)
        return places

    def stored_with(self, key: OwnKey, user_id: str, deadline: Deadline) -> Iterator[Version]:
        """The heads of a user's files that are sealed with a key, as the server knows them."""
        return self._stored(user_id, key.prefix, deadline)

    def _stored(self, user_id: str, prefix: str, deadline: Deadline) -> Iterator[Version]:
        after: str | None = ""
        while after is not None:
            request = store_pb2.ListFilesRequest(user_id=user_id, prefix=prefix, after=after, limit=PAGE_MAX)
            page = self.channel.unary(self.channel.store.ListFiles, request, deadline)
            yield from map(version_from_proto, page.files)
            after = page.next_after or None

    def require_used(self, user_id: str, deadline: Deadline) -> None:
        """Refuse keys with which none of a user's files is sealed, although some are with others: it is a mistake.

        Raises:
            KeyRequired: so it is.
        """
        for prefix in (*(key.prefix for key in self.keys), PREFIX):
            request = store_pb2.ListFilesRequest(user_id=user_id, prefix=prefix, limit=1)
            for one in self.channel.unary(self.channel.store.ListFiles, request, deadline).files:
                self.keys.opened_name(user_id, one.file_id, one.filename)  # says which key it needs
                return

    def other_keys(self, user_id: str, deadline: Deadline) -> list[str]:
        """The ids of further keys with which files of a user are sealed."""
        others: list[str] = []
        after = ""
        while True:
            request = store_pb2.ListFilesRequest(user_id=user_id, prefix=PREFIX, after=after, limit=1)
            page = self.channel.unary(self.channel.store.ListFiles, request, deadline)
            for one in page.files:
                key_id = key_in(one.filename)
                if key_id is not None and key_id not in (key.id for key in self.keys):
                    others.append(key_id)
                # All names of this key are skipped: "/" comes right after ".".
                after = one.filename if key_id is None else f"{PREFIX}{key_id}/"
            if not page.files or not page.next_after:
                return others

    def fetch(self, wanted: Wanted, deadline: Deadline) -> SealedFetch:
        """The verified content of a range of a version; see :meth:`open_version`."""
        return SealedFetch(self.open_version(wanted, lambda: deadline), wanted.offset, wanted.length)

    def fetching(self, wanted: Wanted, deadline: Callable[[], Deadline]) -> Fetching:
        """What fetches ranges of a version; see :meth:`open_version`."""
        content = self.open_version(wanted, deadline)
        return lambda part: SealedFetch(content, part.offset, part.length)

    def open_version(self, wanted: Wanted, deadline: Callable[[], Deadline]) -> SealedVersion:
        """Open a version, whose range is not used.

        Args:
            wanted: the version.
            deadline: the deadline of the next call, of which reading makes more.

        Raises:
            KeyRequired: it is sealed with another key.
            SealBroken: it is not what was stored.
        """
        stored, data = self._stored_version(wanted, deadline())
        if stored.file_id != wanted.file_id or (wanted.version_id or stored.version_id) != stored.version_id:
            raise SealBroken("the server answered with another file or version than was asked for; do not trust it")

        def fetch(offset: int, length: int) -> Iterator[BytesLike]:
            if data is not None:
                yield memoryview(data)[offset : offset + length]
                return
            part = Wanted(stored.file_id, wanted.user_id, stored.version_id, offset, length)
            with closing(Fetch(self.channel, part, deadline=deadline(), retries=self._retries)) as pieces:
                yield from pieces

        return self.verified(stored, wanted.user_id, fetch)

    def verified(self, stored: Version, user_id: str, fetch: RawRange) -> SealedVersion:
        """A version, once its footer is verified."""
        version = self.opened(stored, user_id)
        return SealedVersion(
            self.keys.key_of(stored.file_id, stored.filename).of_file(version.user_id, version.filename),
            layout_of(stored.size, stored.chunk_size),
            stored=stored,
            version=version,
            note=divided(stored.note)[0],
            fetch=fetch,
        )

    def _stored_version(self, wanted: Wanted, deadline: Deadline) -> tuple[Version, bytes | None]:
        if self.channel.has_small_calls:
            small = store_pb2.GetFileRequest(
                user_id=wanted.user_id,
                file_id=wanted.file_id,
                version_id=wanted.version_id or "",
                bytes_max=_SMALL_BYTES_MAX,
            )
            try:
                part = retried(
                    lambda: self.channel.unary(self.channel.store.GetFile, small, deadline), deadline, self._retries
                )
            except CallNotOffered:  # an older server
                self.channel.has_small_calls = False
            else:
                stored = version_from_proto(part.version)
                return stored, part.data if len(part.data) == stored.size else None
        request = store_pb2.StatRequest(
            user_id=wanted.user_id, file_id=wanted.file_id, version_id=wanted.version_id or ""
        )
        found = retried(lambda: self.channel.unary(self.channel.store.Stat, request, deadline), deadline, self._retries)
        return version_from_proto(found), None


class SealedFetch:
    """The verified content of a range of a sealed version, like :class:`Fetch`."""

    def __init__(self, content: SealedVersion, offset: int, length: int | None) -> None:
        self.version = content.version
        left = max(0, content.layout.size - offset)
        self.size = left if length is None else min(length, left)
        self._pieces = content.content(offset, self.size)

    def __iter__(self) -> Iterator[memoryview]:
        return self._pieces

    def __enter__(self) -> SealedFetch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End what is being fetched."""
        self._pieces.close()
