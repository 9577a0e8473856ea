"""Which volumes show the same object: a table on disk, for a rebuild to find out what enough of them agree on."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from storage.formats.voices import Voice
from storage.limits import MIB
from storage.system.lmdb_env import Environment, Transaction

_TABLE = "holders"
_AGREED = b""  # in place of the holders' bits
_ROW_BYTES = 100  # of a key of 33 bytes and the bits, in pages that are two thirds full
_ROOM_BYTES_MIN = 4 * MIB  # which nobody is refused for, however full the disk is


class _Change(NamedTuple):
    """What showing some objects has changed: the rows that wait for more volumes, by volume and in all."""

    agreed: set[bytes]
    waiting: Counter[int]
    rows: int


class Agreement:
    """Counts who shows what. What volumes of ``quorum`` owners show is agreed on.

    Args:
        quorum: how many voices must agree.
        scratch: for a temporary file, made when first needed.
        voice_of: of each volume, see :func:`storage.formats.voices.voices`; each speaks for itself by default.
    """

    def __init__(self, quorum: int, scratch: Path, voice_of: Mapping[int, Voice] | None = None) -> None:
        self.quorum = quorum
        self._scratch = scratch
        self._voice_of = {} if voice_of is None else voice_of
        self._directory: Path | None = None
        self._holders: Environment | None = None
        self._waiting: Counter[int] = Counter()  # by volume: what it shows and too few others do
        self._rows = 0

    def voice(self, volume: int) -> Voice | int:
        """Who speaks from a volume."""
        return self._voice_of.get(volume, volume)

    def show(self, keys: Sequence[bytes], volume: int) -> set[bytes]:
        """A volume shows these objects; those of them that are agreed on."""
        change = self._opened().write(lambda txn: self._noted(txn, keys, volume))
        self._waiting.update(change.waiting)
        self._rows += change.rows
        return change.agreed

    def _noted(self, txn: Transaction, keys: Sequence[bytes], volume: int) -> _Change:
        table = self._opened().databases[_TABLE]
        change, rows = _Change(set(), Counter(), 0), 0
        for key in keys:
            known = txn.get(key, db=table)
            if known == _AGREED:
                change.agreed.add(key)
                continue
            before = int.from_bytes(known or b"", "little")
            holders = before | 1 << volume
            if holders == before:
                continue
            if len({self.voice(slot) for slot in _slots(holders)}) < self.quorum:
                txn.put(key, _packed(holders), db=table)
                change.waiting[volume] += 1
                rows += not before
                continue
            txn.put(key, _AGREED, db=table)
            change.agreed.add(key)
            change.waiting.subtract(_slots(before))
            rows -= before != 0
        return change._replace(rows=rows)

    def is_crowded(self) -> bool:
        """Whether what waits takes more of the disk than it leaves free."""
        return self._directory is not None and self._rows * _ROW_BYTES > room_bytes(self._directory)

    def fullest(self) -> int | None:
        """The volume that shows the most that waits, of the voice that does; None if nothing waits."""
        shown = {volume: count for volume, count in self._waiting.items() if count > 0}
        by_voice: Counter[Voice | int] = Counter()
        for volume, count in shown.items():
            by_voice[self.voice(volume)] += count
        return max(shown, key=lambda volume: (by_voice[self.voice(volume)], shown[volume], volume), default=None)

    def waiting(self, volume: int) -> int:
        """How many objects a volume shows that too few others do."""
        return self._waiting[volume]

    def forget(self, volume: int) -> None:
        """Take back what a volume has shown, except what is agreed on already."""
        if not self._waiting[volume]:
            return
        holders = self._opened()
        for page in holders.pages(_TABLE, b""):
            changed = [(key, _without(bits, volume)) for key, bits in page if _shows(bits, volume)]
            if changed:
                holders.write(lambda txn, changed=changed: self._rewrite(txn, changed))  # type: ignore[misc]
                self._rows -= sum(not bits for _, bits in changed)
        del self._waiting[volume]

    def _rewrite(self, txn: Transaction, rows: list[tuple[bytes, bytes]]) -> None:
        table = self._opened().databases[_TABLE]
        for key, bits in rows:
            if bits:
                txn.put(key, bits, db=table)
            else:
                txn.delete(key, db=table)

    def rest(self) -> Iterator[tuple[bytes, list[int]]]:
        """What too few volumes show, and which do."""
        for page in self._holders.pages(_TABLE, b"") if self._holders is not None else ():
            for key, bits in page:
                if bits != _AGREED:
                    yield key, _slots(int.from_bytes(bits, "little"))

    def _opened(self) -> Environment:
        if self._holders is None:
            self._scratch.mkdir(parents=True, exist_ok=True)
            self._directory = Path(tempfile.mkdtemp(prefix="rebuild-", dir=self._scratch))
            self._holders = Environment(self._directory, (_TABLE,), sync=False)
        return self._holders

    def close(self) -> None:
        """Remove the temporary file."""
        if self._holders is not None:
            self._holders.close()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)


def room_bytes(directory: Path) -> int:
    """How much of a disk may be taken by what waits: as much as is left free."""
    return max(shutil.disk_usage(directory).free, _ROOM_BYTES_MIN)


def _slots(holders: int) -> list[int]:
    return [slot for slot in range(holders.bit_length()) if holders >> slot & 1]


def _packed(holders: int) -> bytes:
    return holders.to_bytes(-(-holders.bit_length() // 8), "little")


def _shows(bits: bytes, volume: int) -> bool:
    return bool(int.from_bytes(bits, "little") >> volume & 1)


def _without(bits: bytes, volume: int) -> bytes:
    """The bits of the others; none if there is no other."""
    return _packed(int.from_bytes(bits, "little") & ~(1 << volume))
