"""A user's sealed files on a server: what is sent is sealed, and what comes is verified and opened."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace

from storage import FileNotFound, Version
from storage.errors import KeyRequired, SealBroken
from storage.limits import BytesLike
from storage.options import PushOptions
from taskworker.client.channel import Channel
from taskworker.client.deadline import Deadline, retried
from taskworker.client.fetching import Fetch, Fetching, Wanted
from taskworker.client.sealed.content import SealedContent, sealed_stream
from taskworker.client.sealed.keys import OwnKey, divided
from taskworker.client.sealed.layout import Layout, layout_of
from taskworker.client.sealed.names import PREFIX
from taskworker.client.sealed.reading import RawRange, SealedVersion
from taskworker.client.sources import SeekableSource, Source
from taskworker.errors import CallNotOffered
from taskworker.protos import store_pb2
from taskworker.rpc.conversion import version_from_proto
from taskworker.rpc.limits import KIB, PAGE_MAX

_SMALL_BYTES_MAX = 64 * KIB
"""Stored files up to this size come with their version, in one message."""
_REMEMBERED_MAX = 10_000


class SealedFiles:
    """One key's files on a server. Thread-safe.

    It remembers what the server said of files and versions, and refuses another answer later.

    Args:
        channel: the connection.
        key: the user's key.
        retries: how often reads are retried.
    """

    def __init__(self, channel: Channel, key: OwnKey, retries: int) -> None:
        self.key = key
        self.channel = channel
        self._retries = retries
        self._lock = threading.Lock()
        self._said: dict[str, tuple[object, ...]] = {}

    # -- what is sent ---------------------------------------------------------------------------------

    def prepared(self, options: PushOptions, source: Source, deadline: Deadline) -> tuple[PushOptions, Source]:
        """What to send in place of a file: sealed content, under a sealed name.

        Raises:
            InvalidArgument: the name or the note is too long, or the content has another SHA-256.
        """
        chunk_size = options.chunk_size or self.channel.describe(deadline).chunk_size
        note = self.key.sealed_note(options.user_id, options.note, options.sha256)
        sealed = replace(
            options,
            filename=self.key.sealed_name(options.user_id, options.filename),
            chunk_size=chunk_size,
            note=note,
            sha256=None,
        )
        keys = self.key.of_file(options.user_id, options.filename)
        if not isinstance(source, SeekableSource):
            return sealed, sealed_stream(source, keys, chunk_size, note, options.sha256)
        content = SealedContent(source, keys, Layout(source.size, chunk_size), note)
        content.require_sha256(options.sha256)
        return sealed, content

    # -- what comes -----------------------------------------------------------------------------------

    def opened(self, stored: Version, user_id: str) -> Version:
        """A version of a user's file as that user knows it.

        Raises:
            KeyRequired: it is sealed with another key.
            SealBroken: it is not sealed, or another user's, or was changed, or the server has said something else of it
                before.
        """
        if stored.user_id != user_id:
            raise SealBroken(
                f"the server answered with a file of {stored.user_id!r}; if that user shares it, give user_id (--user)"
            )
        name = self.key.opened_name(stored.user_id, stored.file_id, stored.filename)
        note, author = self.key.opened_note(stored.user_id, stored.file_id, stored.note)
        layout = layout_of(stored.size, stored.chunk_size)
        self._require_same(stored.file_id, stored.user_id, stored.filename)
        self._require_same(stored.version_id, stored.file_id, stored.size, stored.chunk_size, stored.note)
        return replace(
            stored,
            filename=name,
            size=layout.size,
            note=f"{note.text} {author}".strip() if author else note.text,
            sha256=note.sha256.hex() if note.sha256 is not None else None,
            attributes={},  # nobody with the key has given any
        )

    def _require_same(self, subject: str, *said: object) -> None:
        with self._lock:
            before = self._said.pop(subject, said)
            while len(self._said) >= _REMEMBERED_MAX:
                del self._said[next(iter(self._said))]
            self._said[subject] = said
        if before != said:
            raise SealBroken(f"the server says something else of {subject} than before; do not trust it")

    def stored_name(self, user_id: str, filename: str) -> str:
        """The name under which the server has a file."""
        return self.key.sealed_name(user_id, filename)

    def shown_name(self, user_id: str, stored: str) -> str:
        """The clear form of a name, or the name itself if this key does not open it."""
        try:
            return self.key.opened_name(user_id, "", stored)
        except (KeyRequired, SealBroken):
            return stored

    def find(self, user_id: str, filename: str, deadline: Deadline) -> Version | None:
        """The head of the file with this name; None if there is none."""
        request = store_pb2.StatRequest(user_id=user_id, filename=self.stored_name(user_id, filename))
        try:
            stored = version_from_proto(self.channel.unary(self.channel.store.Stat, request, deadline))
        except FileNotFound:
            return None
        found = self.opened(stored, user_id)
        if found.filename != filename:
            raise SealBroken("the server answered with another file than was asked for; do not trust it")
        return found

    def every(self, user_id: str, prefix: str, deadline: Deadline) -> list[Version]:
        """The heads of all files whose names begin with a prefix, by name. The server cannot choose or sort them.

        Raises:
            KeyRequired: there are none, but some that are sealed with other keys.
        """
        heads = [self.opened(stored, user_id) for stored in self._stored(user_id, self.key.prefix, deadline)]
        if not heads:
            self.require_used(user_id, deadline)
        chosen = (head for head in heads if head.filename.startswith(prefix))
        return sorted(chosen, key=lambda head: head.filename.encode())

    def _stored(self, user_id: str, prefix: str, deadline: Deadline) -> Iterator[Version]:
        after: str | None = ""
        while after is not None:
            request = store_pb2.ListFilesRequest(user_id=user_id, prefix=prefix, after=after, limit=PAGE_MAX)
            page = self.channel.unary(self.channel.store.ListFiles, request, deadline)
            yield from map(version_from_proto, page.files)
            after = page.next_after or None

    def require_used(self, user_id: str, deadline: Deadline) -> None:
        """Refuse a key with which none of a user's files is sealed, although some are with others: it is a mistake.

        Raises:
            KeyRequired: so it is.
        """
        for prefix in (self.key.prefix, PREFIX):
            request = store_pb2.ListFilesRequest(user_id=user_id, prefix=prefix, limit=1)
            for one in self.channel.unary(self.channel.store.ListFiles, request, deadline).files:
                self.key.opened_name(user_id, one.file_id, one.filename)  # says which key it needs
                return

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
            self.key.of_file(version.user_id, version.filename),
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
