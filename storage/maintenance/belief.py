"""Decides which versions and tombstones a rebuild accepts as the store's own, since volumes may lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from storage.formats.authenticity import Authority
from storage.formats.tombstones import AnyTombstone, is_signed_tombstone
from storage.formats.version_records import SIGNED_FORMAT
from storage.formats.versions import Outline, is_signed
from storage.keys import Kind
from storage.maintenance.agreement import Agreement

_UNCHECKED = 0x80  # beside the kind in a question


class Refused(NamedTuple):
    """An object that is not accepted, and the volumes that show it.

    ``unchecked``: it has a MAC, but the store's secret, which is needed to verify it, is unknown.
    """

    object_id: bytes
    kind: Kind
    holders: list[int]
    unchecked: bool


class Belief:
    """Accepts objects with the store's MAC, and objects that enough volumes agree on.

    Objects of stores from before MACs were introduced have none, and if the store's secret is lost, no MAC can be
    verified. Then volumes of as many owners as ``agreement`` requires must show the same bytes; one fewer may lie.

    Args:
        authority: verifies what the store has signed.
        agreement: counts what volumes agree on; closed with this object.
    """

    def __init__(self, authority: Authority, agreement: Agreement) -> None:
        self._authority = authority
        self.agreement = agreement

    def about_version(self, found: Outline) -> bytes | None:
        """None if a version is accepted whichever volume shows it; otherwise the question for :meth:`agreed`."""
        if self.agreement.quorum <= 1 or is_signed(found, self._authority):
            return None
        return self._question(found.version_id, Kind.VERSION, has_mac=found.format >= SIGNED_FORMAT)

    def about_tombstone(self, identifier: bytes, raw: bytes, tombstone: AnyTombstone) -> bytes | None:
        """None if a tombstone is accepted whichever volume shows it; otherwise the question for :meth:`agreed`."""
        if self.agreement.quorum <= 1 or is_signed_tombstone(raw, tombstone, self._authority):
            return None
        return self._question(identifier, Kind.TOMBSTONE, has_mac=tombstone.format >= SIGNED_FORMAT)

    def _question(self, identifier: bytes, kind: Kind, *, has_mac: bool) -> bytes:
        unchecked = _UNCHECKED if has_mac and self._authority.secret is None else 0
        return identifier + bytes([kind | unchecked])

    def agreed(self, questions: Sequence[bytes], volume: int) -> set[bytes]:
        """Which of the objects that a volume shows are accepted because others show them as well."""
        return self.agreement.show(questions, volume) if questions else set()

    def refused(self) -> Iterator[Refused]:
        """The objects that too few volumes agreed on."""
        for question, holders in self.agreement.rest():
            kind = Kind(question[-1] & ~_UNCHECKED)
            yield Refused(question[:-1], kind, holders, bool(question[-1] & _UNCHECKED))

    def close(self) -> None:
        """Close the agreement, and forget what was shown."""
        self.agreement.close()
