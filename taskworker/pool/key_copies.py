"""What the pool knows of copies of its master key outside of it."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from taskworker.auth.documents import Documents

_DOCUMENT = "pool-master-key-copied"


class _Copied(msgspec.Struct, frozen=True):
    key_id: str
    time_ms: int


_decoder = msgspec.msgpack.Decoder(_Copied)


class KeyCopies:
    """Remembers when the operator last made a copy of the master key, and of which key.

    Args:
        documents: where this is stored.
        now_ms: milliseconds since 1970.
    """

    def __init__(self, documents: Documents, now_ms: Callable[[], int]) -> None:
        self._documents = documents
        self._now_ms = now_ms

    def note(self, key_id: str) -> None:
        """Note that the operator has a copy of the key with this id."""
        self._documents.save_document(_DOCUMENT, msgspec.msgpack.encode(_Copied(key_id, self._now_ms())))

    def copied_ms(self, key_id: str) -> int:
        """Return when a copy of the key with this id was noted; 0: never."""
        raw = self._documents.document(_DOCUMENT)
        copied = _decoder.decode(raw) if raw else None
        return copied.time_ms if copied is not None and copied.key_id == key_id else 0
