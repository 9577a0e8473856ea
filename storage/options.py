"""The options of a push, shared by the engine, the client and the services."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from storage.erasure import ErasureProfile
from storage.limits import check_attributes

Attributes = Mapping[str, bytes] | Callable[[], Mapping[str, bytes]]
"""Attributes of a version, or a function that returns them once all of the content was read."""


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
        attributes: kept with the version; None: none, and those of a head with the same content stay.
        if_absent: whether to commit only if there is no file of this name.
        if_head: id of the version that must be the head at the commit; None: any, or none.
    """

    filename: str
    user_id: str
    profile: ErasureProfile | None = None
    chunk_size: int | None = None
    time_ms: int | None = None
    note: str = ""
    sha256: str | None = None
    attributes: Attributes | None = None
    if_absent: bool = False
    if_head: str | None = None

    def attributes_now(self) -> dict[str, bytes] | None:
        """The attributes; if they come from a function, it is called.

        Raises:
            InvalidArgument: they are malformed or too large.
        """
        given = self.attributes() if callable(self.attributes) else self.attributes
        return None if given is None else check_attributes(given)

    def arguments(self) -> dict[str, Any]:
        """The options as keyword arguments for ``FileStorage.push`` and ``FileStorage.upload``."""
        return {each.name: getattr(self, each.name) for each in fields(self)}
