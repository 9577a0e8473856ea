"""The options of a push, shared by the engine, the client and the services."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from storage.erasure import ErasureProfile


@dataclass(frozen=True, slots=True)
class PushOptions:
    """The options of ``FileStorage.push``.

    Attributes:
        filename: 1…1024 bytes of UTF-8.
        user_id: the owner.
        profile: erasure profile; None: the store's.
        chunk_size: in bytes; None: the store's.
        time_ms: the author's clock, ms since 1970; None: now.
        note: free text kept in the version.
        sha256: hex SHA-256 of the content, checked before anything becomes visible; None: unknown.
    """

    filename: str
    user_id: str
    profile: ErasureProfile | None = None
    chunk_size: int | None = None
    time_ms: int | None = None
    note: str = ""
    sha256: str | None = None

    def arguments(self) -> dict[str, Any]:
        """The options as keyword arguments for ``FileStorage.push`` and ``FileStorage.upload``."""
        return {each.name: getattr(self, each.name) for each in fields(self)}
