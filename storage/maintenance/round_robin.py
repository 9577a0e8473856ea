"""Has stores show their records in turn and within limits, so that no store can delay the others for long."""

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

# Nodes are not asked for: they are read when accepted versions name them, so that no store can send others.
SHOWN = frozenset({Kind.VERSION, Kind.TOMBSTONE})
# A version has up to 64 KiB of references to chunks, and texts and attributes of 22 KiB.
RECORD_BYTES_MAX = 128 * 1024
_SHOWING_MAX = 8  # stores at the same time; each takes a page or two of memory
_IN_STEP_S = 5.0  # a store that took so much longer than the others waits for them
# The last few stores may all lie. Each of them may take this long, plus twice the total time of those that have ended,
# plus an allowance for each accepted record.
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
        """The sort key; the lowest is next. Stores advance in step, so that objects they agree on wait only briefly."""
        return int(self.spent_s / _IN_STEP_S), self.shown, self.slot

    def stop(self) -> None:
        """Tell the store to stop, if it has not ended."""
        close = getattr(self.pages, "close", None)
        if close is not None:
            close()


class _RefusedError(Exception):
    """A store shows what an honest one never would, or exceeds the limit on number or time."""


class RoundRobin:
    """Has stores show their records, in turn.

    If the stores are on others' machines, two kinds are refused: the store that shows the most objects which no other
    shows, once these no longer fit on the disk; and, once only as many are left as may lie at once, those that do not
    finish. Of what these have shown, only signed objects and those agreed on count. They are noted as not examined.

    Args:
        volumes: the stores.
        examined: records how each store has ended.
        agreement: knows which objects wait for others to agree.
        liars_max: how many stores may lie at once.
        believed_max: the most records of a store that can be accepted if it repeats none.
        clock_s: monotonic seconds.
        take: enters records of a slot, and returns how many were accepted.
    """

    def __init__(
        self,
        volumes: Fleet[Any],
        examined: Examined,
        agreement: Agreement,
        *,
        liars_max: int,
        believed_max: Callable[[], int],
        clock_s: Callable[[], float],
        take: Callable[[int, list[Shard]], int],
    ) -> None:
        self._volumes = volumes
        self._examined = examined
        self._agreement = agreement
        self._liars_max = liars_max
        self._believed_max = believed_max
        self._clock_s = clock_s
        self._take = take
        self._waiting: deque[tuple[int, ShardStore]] = deque()
        self._showing: list[_Stream] = []
        self._ended_s = 0.0  # total time of the stores that have ended

    def run(self) -> None:
        """Ask all available stores that were not asked yet."""
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
        # Local volumes are read one after another, as several may be on one disk.
        most = _SHOWING_MAX if self._volumes.remote else 1
        # Slow stores do not keep others from starting, however many there are.
        most += sum(stream.spent_s > PATIENCE_S for stream in self._showing)
        while self._waiting and len(self._showing) < most:
            slot, volume = self._waiting.popleft()
            self._showing.append(_Stream(slot, volume, volume.records(SHOWN)))
        return bool(self._showing)

    def _go_on(self, stream: _Stream) -> None:
        began_s = self._clock_s()
        try:
            page = next(stream.pages, None)
        except (VolumeFailed, VolumeUnavailable) as error:
            # A worker that sends nonsense, or is too slow, eventually loses trust.
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
        stream.spent_s += self._clock_s() - began_s
        self._check_pace(stream)

    def _check_pace(self, stream: _Stream) -> None:
        left = [*(showing.slot for showing in self._showing), *(slot for slot, _ in self._waiting)]
        if stream.spent_s <= PATIENCE_S or not self._volumes.remote:
            return
        if len({self._agreement.voice(slot) for slot in left}) > self._liars_max:
            return  # at least one of them is honest, and it may be this one
        believed = min(stream.believed, self._believed_max())
        if stream.spent_s > PATIENCE_S + _SHARE_OF_ENDED * self._ended_s + believed / _BELIEVED_PER_S_MIN:
            raise _RefusedError(
                f"has shown {stream.shown:,} records within {stream.spent_s:,.0f} s, of which {believed:,} are "
                "accepted, and has not finished"
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
