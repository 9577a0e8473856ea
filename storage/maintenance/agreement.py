"""Records on disk which volumes show which objects, so that a rebuild finds those that enough volumes agree on."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from storage.formats.voices import Voice
from storage.limits import MIB
from storage.system.lmdb_env import Environment
from storage.system.lmdb_types import Transaction
from storage.system.private_paths import make_own_directory

_TABLE = "holders"
_AGREED = b""  # replaces the bits of the holders
_ROW_BYTES = 100  # for a key of 33 bytes and the bits, in pages that are two thirds full
_ROOM_BYTES_MIN = 4 * MIB  # always allowed, however full the disk is


class _Change(NamedTuple):
    """The effect of showing some objects: changes in the number of rows that wait for more volumes."""

    agreed: set[bytes]
    waiting: Counter[int]
    rows: int


class Agreement:
    """Counts which volumes show which objects. Objects shown by volumes of ``quorum`` owners are agreed on.

    Args:
        quorum: how many voices must agree.
        scratch: directory for a temporary file, created when first needed.
        voice_of: the voice of each volume, see :func:`storage.formats.voices.voices`; default: each has its own.
    """

    def __init__(self, quorum: int, scratch: Path, voice_of: Mapping[int, Voice] | None = None) -> None:
        self.quorum = quorum
        self._scratch = scratch
        self._voice_of = {} if voice_of is None else voice_of
        self._directory: Path | None = None
        self._holders: Environment | None = None
        self._waiting: Counter[int] = Counter()  # by volume: objects that it shows but too few others do
        self._rows = 0

    def voice(self, volume: int) -> Voice | int:
        """The voice of a volume."""
        return self._voice_of.get(volume, volume)

    def show(self, keys: Sequence[bytes], volume: int) -> set[bytes]:
        """Note that a volume shows these objects; returns those that are agreed on."""
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
        """Whether waiting rows take more of the disk than they leave free."""
        return self._directory is not None and self._rows * _ROW_BYTES > room_bytes(self._directory)

    def fullest(self) -> int | None:
        """The volume with the most waiting objects, of the voice with the most; None if none wait."""
        shown = {volume: count for volume, count in self._waiting.items() if count > 0}
        by_voice: Counter[Voice | int] = Counter()
        for volume, count in shown.items():
            by_voice[self.voice(volume)] += count
        return max(shown, key=lambda volume: (by_voice[self.voice(volume)], shown[volume], volume), default=None)

    def waiting(self, volume: int) -> int:
        """How many objects a volume shows that too few others show."""
        return self._waiting[volume]

    def forget(self, volume: int) -> None:
        """Remove what a volume has shown, except what is already agreed on."""
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
        """The objects that too few volumes show, and these volumes."""
        for page in self._holders.pages(_TABLE, b"") if self._holders is not None else ():
            for key, bits in page:
                if bits != _AGREED:
                    yield key, _slots(int.from_bytes(bits, "little"))

    def _opened(self) -> Environment:
        if self._holders is None:
            make_own_directory(self._scratch)
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
    """How many bytes of the disk waiting rows may take: as many as are still free, but at least 4 MiB."""
    return max(shutil.disk_usage(directory).free, _ROOM_BYTES_MIN)


def _slots(holders: int) -> list[int]:
    return [slot for slot in range(holders.bit_length()) if holders >> slot & 1]


def _packed(holders: int) -> bytes:
    return holders.to_bytes(-(-holders.bit_length() // 8), "little")


def _shows(bits: bytes, volume: int) -> bool:
    return bool(int.from_bytes(bits, "little") >> volume & 1)


def _without(bits: bytes, volume: int) -> bytes:
    """The bits of the other volumes; empty if there are none."""
    return _packed(int.from_bytes(bits, "little") & ~(1 << volume))
