"""Which versions and tombstones a rebuild takes for the store's own: volumes may be on machines that lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from storage.formats.authenticity import Authority
from storage.formats.versions import SIGNED_FORMAT, StoredVersion, Tombstone, is_signed_tombstone, is_signed_version
from storage.keys import Kind
from storage.maintenance.agreement import Agreement

_UNCHECKED = 0x80  # beside the kind in a question


class Refused(NamedTuple):
    """An object that nobody vouches for, and the volumes that show it.

    ``unchecked``: it bears a MAC, and the store's secret, which could tell whether that is right, is not known.
    """

    object_id: bytes
    kind: Kind
    holders: list[int]
    unchecked: bool


class Belief:
    """Believes what bears the store's MAC, and what enough volumes agree on.

    Without the MAC are what stores made before there was one, and everything where the store's secret is lost. Then
    the same bytes must be shown by volumes of as many owners as ``agreement`` asks for; one fewer may lie.

    Args:
        authority: vouches for what the store has signed.
        agreement: knows what volumes agree on; closed with this.
    """

    def __init__(self, authority: Authority, agreement: Agreement) -> None:
        self._authority = authority
        self.agreement = agreement

    def about_version(self, stored: StoredVersion) -> bytes | None:
        """None if a version is believed, whoever shows it; otherwise what :meth:`agreed` is to be asked about."""
        if self.agreement.quorum <= 1 or is_signed_version(stored, self._authority):
            return None
        return self._question(stored.version_id, Kind.VERSION, has_mac=stored.record.format == SIGNED_FORMAT)

    def about_tombstone(self, identifier: bytes, raw: bytes, tombstone: Tombstone) -> bytes | None:
        """None if a tombstone is believed, whoever shows it; otherwise what :meth:`agreed` is to be asked about."""
        if self.agreement.quorum <= 1 or is_signed_tombstone(raw, tombstone, self._authority):
            return None
        return self._question(identifier, Kind.TOMBSTONE, has_mac=tombstone.format == SIGNED_FORMAT)

    def _question(self, identifier: bytes, kind: Kind, *, has_mac: bool) -> bytes:
        unchecked = _UNCHECKED if has_mac and self._authority.secret is None else 0
        return identifier + bytes([kind | unchecked])

    def agreed(self, questions: Sequence[bytes], volume: int) -> set[bytes]:
        """Which objects of those that a volume shows are believed, because others show them as well."""
        return self.agreement.show(questions, volume) if questions else set()

    def refused(self) -> Iterator[Refused]:
        """What too few volumes agreed on."""
        for question, holders in self.agreement.rest():
            kind = Kind(question[-1] & ~_UNCHECKED)
            yield Refused(question[:-1], kind, holders, bool(question[-1] & _UNCHECKED))

    def close(self) -> None:
        """Forget what was shown."""
        self.agreement.close()
