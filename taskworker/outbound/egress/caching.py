"""An in-memory cache of responses by HTTP's rules (RFC 9111, with hishel), separate for each function and user."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from cachetools import LRUCache
from hishel import AsyncBaseStorage, CacheOptions, Entry, Headers, Request, Response

_PLACE_CHARS = 2 * hashlib.sha256().digest_size
_ENTRIES_PER_URL = 8
_ENTRY_OVERHEAD = 2048
_HEADER_OVERHEAD = 256  # two strings, a list and a place in a dictionary (measured: 190)
_TTL_S = 24 * 3600.0
_CHANGED_MAX = 4096
"""How many changed places are remembered for running requests."""
PRIVATE = CacheOptions(shared=False, supported_methods=["GET", "HEAD"], allow_stale=False)


def place_key(function: str, user: str, url: str) -> str:
    """The key shared by all responses of a URL, for one function and user."""
    return _digest(function, user, url)


def entry_key(place: str, credentials: Iterable[str]) -> str:
    """The key of a response; requests with other credentials have other keys, whatever ``Vary`` says.

    RFC 9111 assumes a private cache has one user, but a function may act for several, by their tokens.
    """
    return f"{place}{_digest(*credentials)}"


def _digest(*texts: str) -> str:
    parts = [text.encode("utf-8", "surrogatepass") for text in texts]
    return hashlib.sha256(b"".join(len(part).to_bytes(8, "big") + part for part in parts)).hexdigest()


def _place_of(key: str) -> str:
    return key[:_PLACE_CHARS]


@dataclass(slots=True)
class _Kept:
    key: str
    entry: Entry
    body: bytes
    until: float

    @property
    def cost(self) -> int:
        """Bytes that it takes in memory, about."""
        asked = self.entry.request
        headers = _bytes_of(asked.headers) + _bytes_of(self.entry.response.headers)
        return len(self.body) + len(asked.url) + headers + _ENTRY_OVERHEAD


def _bytes_of(headers: Headers) -> int:
    return sum(len(name) + len(value) + _HEADER_OVERHEAD for name, value in headers.items())


class MemoryStorage(AsyncBaseStorage):
    """Keeps the most recently used responses, up to a number of bytes. For one event loop.

    Args:
        bytes_max: bytes of all responses, with their headers and those of their requests.
        body_bytes_max: bytes of a body; larger ones are passed on but not cached.
        clock_s: monotonic seconds.
    """

    def __init__(self, bytes_max: int, body_bytes_max: int, clock_s: Callable[[], float] = time.monotonic) -> None:
        super().__init__(default_ttl=_TTL_S, max_stream_size=min(bytes_max // 4, body_bytes_max))
        self._clock_s = clock_s
        self._bytes_max = bytes_max
        self._bytes = 0
        self._kept: OrderedDict[uuid.UUID, _Kept] = OrderedDict()
        self._by_place: dict[str, list[uuid.UUID]] = {}
        self._changes = 0
        self._changed: LRUCache[str, int] = LRUCache(_CHANGED_MAX)

    @property
    def moment(self) -> int:
        """The current moment, for `changed_since`."""
        return self._changes

    def changed(self, place: str) -> None:
        """Invalidate what is cached for a place, since the resource may have changed (RFC 9111, 4.4)."""
        self._changes += 1
        self._changed[place] = self._changes
        self.forget(place)

    def forget(self, place: str) -> None:
        """Drop everything cached for a place."""
        for identity in list(self._by_place.get(place, ())):
            self._drop(identity)

    def changed_since(self, place: str, moment: int) -> bool:
        """Whether a place changed after a moment: a response requested before then may be outdated."""
        return self._changed.get(place, 0) > moment

    async def create_entry(
        self,
        request: Request,
        response: Response,
        key: str,
        *,
        ttl: float | None = None,
        tti: float | None = None,
    ) -> Entry:
        """See ``AsyncBaseStorage``."""
        until = self._clock_s() + (_TTL_S if ttl is None else ttl)
        entry = Entry(uuid.uuid4(), request, response)
        saved = replace(entry, response=replace(response, stream=None, headers=Headers(dict(response.headers.items()))))
        return replace(entry, response=replace(response, stream=self._saving(response.stream, saved, key, until)))

    async def get_entries(self, key: str) -> list[Entry]:
        """See ``AsyncBaseStorage``."""
        found = []
        for identity in list(self._by_place.get(_place_of(key), ())):
            kept = self._kept[identity]
            if kept.key != key:
                continue
            if kept.until < self._clock_s():
                self._drop(identity)
                continue
            self._kept.move_to_end(identity)
            response = replace(kept.entry.response, stream=_stream_of(kept.body))
            found.append(replace(kept.entry, response=response))
        return found

    async def update_headers(self, id: uuid.UUID, headers: Headers) -> None:  # noqa: A002 - the port's
        """See ``AsyncBaseStorage``."""
        kept = self._kept.get(id)
        if kept is not None:
            self._bytes -= kept.cost
            kept.entry = replace(kept.entry, response=replace(kept.entry.response, headers=headers))
            self._bytes += kept.cost
            self._make_room()

    async def remove_entry(self, id: uuid.UUID) -> None:  # noqa: A002
        """See ``AsyncBaseStorage``."""
        self._drop(id)

    async def _saving(self, stream: Any, entry: Entry, key: str, until: float) -> AsyncIterator[bytes]:
        """Pass on a stream, and cache it once it is complete."""
        parts: list[bytes] | None = []
        size = 0
        async for part in stream:
            size += len(part)
            if parts is not None:
                parts = None if size > (self.max_stream_size or 0) else [*parts, part]
            yield part
        if parts is not None:
            self._keep(_Kept(key, entry, b"".join(parts), until))

    def _keep(self, kept: _Kept) -> None:
        same = self._by_place.setdefault(_place_of(kept.key), [])
        same.append(kept.entry.id)
        self._kept[kept.entry.id] = kept
        self._bytes += kept.cost
        while len(same) > _ENTRIES_PER_URL:
            self._drop(same[0])
        self._make_room()

    def _make_room(self) -> None:
        while self._bytes > self._bytes_max:
            self._drop(next(iter(self._kept)))

    def _drop(self, identity: uuid.UUID) -> None:
        kept = self._kept.pop(identity, None)
        if kept is None:
            return
        self._bytes -= kept.cost
        place = _place_of(kept.key)
        same = self._by_place[place]
        same.remove(identity)
        if not same:
            del self._by_place[place]


async def _stream_of(body: bytes) -> AsyncIterator[bytes]:
    yield body
