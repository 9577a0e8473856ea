"""Which versions and tombstones a rebuild takes for the store's own: volumes may be on machines that lie."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from storage.authenticity import Authority
from storage.keys import Kind
from storage.lmdb_env import Environment, Transaction
from storage.versions import SIGNED_FORMAT, StoredVersion, Tombstone, is_signed_tombstone, is_signed_version
from storage.voices import Voice

_TABLE = "holders"
_BELIEVED = b""  # in place of the holders' bits
_UNCHECKED = 0x80  # beside the kind in a key


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
    the same bytes must be shown by volumes of ``quorum`` owners, of which at most ``quorum`` - 1 lie.

    Args:
        authority: vouches for what the store has signed.
        quorum: how many voices must agree.
        scratch: for a temporary file of who shows what; made when first needed.
        voice_of: of each volume, see :func:`storage.voices.voices`; each speaks for itself by default.
    """

    def __init__(
        self, authority: Authority, quorum: int, scratch: Path, voice_of: Mapping[int, Voice] | None = None
    ) -> None:
        self._authority = authority
        self.quorum = quorum
        self._scratch = scratch
        self._voice_of = {} if voice_of is None else voice_of
        self._directory: Path | None = None
        self._holders: Environment | None = None

    def in_version(self, stored: StoredVersion, volume: int) -> bool:
        """Whether to take a version that a volume shows."""
        return is_signed_version(stored, self._authority) or self._is_agreed(
            stored.version_id, Kind.VERSION, volume, has_mac=stored.record.format == SIGNED_FORMAT
        )

    def in_tombstone(self, identifier: bytes, raw: bytes, tombstone: Tombstone, volume: int) -> bool:
        """Whether to take a tombstone that a volume shows."""
        return is_signed_tombstone(raw, tombstone, self._authority) or self._is_agreed(
            identifier, Kind.TOMBSTONE, volume, has_mac=tombstone.format == SIGNED_FORMAT
        )

    def _is_agreed(self, identifier: bytes, kind: Kind, volume: int, *, has_mac: bool) -> bool:
        if self.quorum <= 1:
            return True
        unchecked = _UNCHECKED if has_mac and self._authority.secret is None else 0
        return self._opened().write(self._note(identifier + bytes([kind | unchecked]), volume))

    def _note(self, key: bytes, volume: int) -> Callable[[Transaction], bool]:
        def work(txn: Transaction) -> bool:
            table = self._opened().databases[_TABLE]
            known = txn.get(key, db=table)
            if known == _BELIEVED and known is not None:
                return True
            holders = int.from_bytes(known or b"", "little") | 1 << volume
            agreed = len({self._voice_of.get(slot, slot) for slot in _slots(holders)}) >= self.quorum
            bits = _BELIEVED if agreed else holders.to_bytes(-(-holders.bit_length() // 8), "little")
            txn.put(key, bits, db=table)
            return agreed

        return work

    def _opened(self) -> Environment:
        if self._holders is None:
            self._scratch.mkdir(parents=True, exist_ok=True)
            self._directory = Path(tempfile.mkdtemp(prefix="rebuild-", dir=self._scratch))
            self._holders = Environment(self._directory, (_TABLE,), sync=False)
        return self._holders

    def refused(self) -> Iterator[Refused]:
        """What too few volumes agreed on."""
        for page in self._holders.pages(_TABLE, b"") if self._holders is not None else ():
            for key, bits in page:
                holders = int.from_bytes(bits, "little")
                if bits != _BELIEVED:
                    yield Refused(key[:-1], Kind(key[-1] & ~_UNCHECKED), _slots(holders), bool(key[-1] & _UNCHECKED))

    def close(self) -> None:
        """Remove the temporary file."""
        if self._holders is not None:
            self._holders.close()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)


def _slots(holders: int) -> list[int]:
    return [slot for slot in range(holders.bit_length()) if holders >> slot & 1]
