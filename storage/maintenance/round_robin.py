"""Stores show their records in turn, and each within bounds, so that none of them can hold up the others for long."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from storage.fleet.fleet import Fleet
from storage.keys import Kind, kind_of
from storage.maintenance.agreement import Agreement
from storage.maintenance.examined import Examined
from storage.shards import Shard, ShardStore, VolumeFailed, VolumeUnavailable

# Nodes are not asked for: they are read as versions that are believed name them, so that nobody can send any others.
SHOWN = frozenset({Kind.VERSION, Kind.TOMBSTONE})
# A version has up to 32 KiB of chunk ids, and texts of a few KiB.
RECORD_BYTES_MAX = 64 * 1024
_SHOWING_MAX = 8  # stores at once; each has a page or two in memory
_IN_STEP_S = 5.0  # who took so much longer than the others waits for them
# What the last few, which may all lie, may take in all: so long, and twice as long as those that have ended together,
# and longer for each of their records that was believed.
PATIENCE_S = 600.0
_SHARE_OF_ENDED = 2.0
_BELIEVED_PER_S_MIN = 200


@dataclass(slots=True)
class _Stream:
    """A store that is showing its records."""

    slot: int
    volume: ShardStore
    pages: Iterator[list[Shard]]
    spent_s: float = 0.0
    shown: int = 0
    believed: int = 0

    def turn(self) -> tuple[int, int, int]:
        """Whose is the lowest is next: all go on in step, so that what they agree on waits for each other briefly."""
        return int(self.spent_s / _IN_STEP_S), self.shown, self.slot

    def stop(self) -> None:
        """Tell the store to stop, if it has not ended."""
        close = getattr(self.pages, "close", None)
        if close is not None:
            close()


class _RefusedError(Exception):
    """A store shows what no honest one does, or more, or longer, than is put up with."""


class RoundRobin:
    """Has stores show their records.

    Where they are on others' machines, the one that shows the most of what nobody else does is refused once that no
    longer fits on the disk; and when only so many are left as may lie at once, those that do not come to an end.
    Of what these have shown, only what is agreed on, or signed, counts. They are noted as not examined.

    Args:
        volumes: the stores.
        examined: learns how each has ended.
        agreement: knows what waits for others to agree.
        liars_max: how many may lie at once.
        believed_max: how many records of a single store can be believed, if it shows none over and over again.
        now_s: a clock, in seconds.
        take: takes the records of a slot in, and says how many of them are believed.
    """

    def __init__(
        self,
        volumes: Fleet[Any],
        examined: Examined,
        agreement: Agreement,
        *,
        liars_max: int,
        believed_max: Callable[[], int],
        now_s: Callable[[], float],
        take: Callable[[int, list[Shard]], int],
    ) -> None:
        self._volumes = volumes
        self._examined = examined
        self._agreement = agreement
        self._liars_max = liars_max
        self._believed_max = believed_max
        self._now_s = now_s
        self._take = take
        self._waiting: deque[tuple[int, ShardStore]] = deque()
        self._showing: list[_Stream] = []
        self._ended_s = 0.0  # how long those took together that have come to an end

    def run(self) -> None:
        """Ask all that are there and were not asked yet."""
        self._waiting.extend(self._examined.pending())
        try:
            while self._fill_up():
                stream = min(self._showing, key=_Stream.turn)
                try:
                    self._go_on(stream)
                    self._make_room()
                except _RefusedError as refusal:
                    self._refuse(stream.slot, str(refusal))
        finally:
            for stream in self._showing:
                stream.stop()

    def _fill_up(self) -> bool:
        # Disks of this machine are read one after another, as several volumes may be on one of them.
        most = _SHOWING_MAX if self._volumes.remote else 1
        # Those that take long keep nobody from beginning, however many they are.
        most += sum(stream.spent_s > PATIENCE_S for stream in self._showing)
        while self._waiting and len(self._showing) < most:
            slot, volume = self._waiting.popleft()
            self._showing.append(_Stream(slot, volume, volume.records(SHOWN)))
        return bool(self._showing)

    def _go_on(self, stream: _Stream) -> None:
        began_s = self._now_s()
        try:
            page = next(stream.pages, None)
        except (VolumeFailed, VolumeUnavailable) as error:
            # A worker that answers nonsense, or is too slow, loses trust by it, in the end.
            self._showing.remove(stream)
            self._volumes.failed(stream.slot, stream.volume, error)
            self._examined.note_failed(stream.slot, str(error))
            return
        if page is None:
            self._showing.remove(stream)
            self._examined.note(stream.slot)
            self._ended_s += stream.spent_s
            return
        if self._volumes.remote:
            _check_records(page)
        stream.believed += self._take(stream.slot, page)
        stream.shown += max(1, len(page))
        stream.spent_s += self._now_s() - began_s
        self._check_pace(stream)

    def _check_pace(self, stream: _Stream) -> None:
        left = [*(showing.slot for showing in self._showing), *(slot for slot, _ in self._waiting)]
        if stream.spent_s <= PATIENCE_S or not self._volumes.remote:
            return
        if len({self._agreement.voice(slot) for slot in left}) > self._liars_max:
            return  # one of them is honest, and may just as well be this one
        believed = min(stream.believed, self._believed_max())
        if stream.spent_s > PATIENCE_S + _SHARE_OF_ENDED * self._ended_s + believed / _BELIEVED_PER_S_MIN:
            raise _RefusedError(
                f"has shown {stream.shown:,} records, of which {believed:,} are believed, within "
                f"{stream.spent_s:,.0f} s, and comes to no end"
            )

    def _make_room(self) -> None:
        while self._volumes.remote and self._agreement.is_crowded():
            slot = self._agreement.fullest()
            if slot is None:
                return
            count = self._agreement.waiting(slot)
            self._refuse(slot, f"has shown {count:,} records that too few others show, more than fits on the disk")

    def _refuse(self, slot: int, reason: str) -> None:
        for stream in [stream for stream in self._showing if stream.slot == slot]:
            self._showing.remove(stream)
            stream.stop()
        self._agreement.forget(slot)
        self._volumes.note_lie(slot, b"", reason)
        self._examined.note_failed(slot, f"it {reason}")


def _check_records(page: list[Shard]) -> None:
    for shard in page:
        if kind_of(shard.key) not in SHOWN:
            raise _RefusedError("has shown a record that it was not asked for")
        if len(shard.payload) > RECORD_BYTES_MAX:
            raise _RefusedError(f"has shown a record of {len(shard.payload):,} bytes")
