"""What goes with the bytes of a push: once, for the engine, the client and the services."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from storage.erasure import ErasureProfile


@dataclass(frozen=True, slots=True)
class PushOptions:
    """See ``FileStorage.push``.

    Attributes:
        filename: 1…1024 bytes of UTF-8.
        user_id: the owner.
        profile: erasure profile; None: the store's.
        chunk_size: in bytes; None: the store's.
        time_ms: the author's clock, ms since 1970; None: now.
        note: free text kept in the version.
        sha256: hex digest of the content, checked before anything becomes visible; None: it is not known.
    """

    filename: str
    user_id: str
    profile: ErasureProfile | None = None
    chunk_size: int | None = None
    time_ms: int | None = None
    note: str = ""
    sha256: str | None = None

    def arguments(self) -> dict[str, Any]:
        """The arguments of ``FileStorage.push`` and ``FileStorage.upload`` that they are, by name."""
        return {each.name: getattr(self, each.name) for each in fields(self)}
