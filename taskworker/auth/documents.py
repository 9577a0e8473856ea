"""Where users, tokens and admissions are stored."""

from __future__ import annotations

from typing import Protocol


class Documents(Protocol):
    """The part of a catalog (``storage.catalog.Catalog``) that this package needs."""

    def document(self, name: str) -> bytes | None:
        """The document with this name."""

    def save_document(self, name: str, raw: bytes) -> None:
        """Store a document durably and atomically."""
