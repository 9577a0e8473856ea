"""Where users, tokens, admissions, secrets and rules are stored."""

from __future__ import annotations

from typing import Protocol


class Documents(Protocol):
    """The part of a catalog (``storage.catalog.Catalog``) that keeps small documents."""

    def document(self, name: str) -> bytes | None:
        """The document with this name."""

    def save_document(self, name: str, raw: bytes) -> None:
        """Store a document durably and atomically."""
