"""How long a client that reads slowly uses what the pool said of where shards are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, cast

import pytest

from storage import ErasureProfile, Version
from storage.keys import Kind, stripe_key
from taskworker.client.channel import Channel
from taskworker.client.deadline import Deadline
from taskworker.client.direct import fetch
from taskworker.client.direct.fetch import DirectFetch
from taskworker.client.direct.fleet import AwaitAll, Entered
from taskworker.client.direct.page import Holder, Page
from taskworker.client.direct.reader import Reader
from taskworker.client.direct.reads import DirectReads
from taskworker.client.fetching import Wanted
from taskworker.client.scope import CallScope

CHUNK = 64 << 10
PAGES, EACH = 4, 3
VALID_S = 300.0


class World:
    """A pool that issues pages, and workers that refuse tickets which have expired."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.issued: dict[bytes, float] = {}
        self.refused = 0
        self.failed = False
        self.fleet = self

    def page(self, first: int) -> Page:
        ticket = b"%d" % len(self.issued)
        self.issued[ticket] = self.now_s
        return Page(
            first=first,
            stripes=[stripe_key(Kind.CHUNK, bytes([number]) * 32, 1, 1) for number in range(first, first + EACH)],
            lengths=[CHUNK] * EACH,
            keys=None,
            holders=[Holder("w", "")],
            placed=[(0,)] * EACH,
            ticket=ticket,
            valid_s=VALID_S,
            authorities=b"",
        )

    def located(self, _channel: Channel, wanted: Wanted, _deadline: Deadline, _scope: CallScope | None = None) -> Page:
        return self.page(wanted.offset // CHUNK)

    def enter(self, page: Page, _await_all: AwaitAll) -> Entered:
        return Entered(page, {})

    def together(self, _chunk_bytes: int) -> int:
        return 1

    def submit(self, work: Callable[..., Any], *arguments: object) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(work(*arguments))
        return done

    def read(self, _reader: Reader, entered: Entered, first: int, targets: Sequence[memoryview]) -> None:
        page = entered.page
        self.refused += self.now_s > self.issued[page.ticket] + page.valid_s
        for at, target in enumerate(targets):
            target[:] = bytes([page.first + first + at]) * len(target)

    def note_worked(self, _file_id: str) -> None:
        pass

    def note_failed(self, _file_id: str) -> None:
        self.failed = True


@pytest.mark.parametrize("pause_s", [0.0, 10.0, 60.0, 75.0, 110.0, 290.0, 1000.0])
def test_no_read_begins_with_a_ticket_that_has_expired(monkeypatch: pytest.MonkeyPatch, pause_s: float) -> None:
    """However long the reader of a file takes for each chunk."""
    world = World()
    monkeypatch.setattr(fetch, "locate_page", world.located)
    version = Version(
        file_id="0" * 32,
        version_id="1" * 64,
        user_id="ann",
        filename="f",
        size=PAGES * EACH * CHUNK,
        chunk_size=CHUNK,
        parent_id=None,
        profile=ErasureProfile(1, 1),
        time_ms=0,
        sequence=1,
        sha256=None,
        note="",
    )
    wanted = Wanted(version.file_id, "ann", version.version_id)
    reading = DirectFetch(
        cast(DirectReads, world),
        cast(Channel, None),
        wanted,
        version,
        world.page(0),
        Deadline(None),
        0,
        lambda: world.now_s,
    )
    world.now_s += pause_s  # it is read some time after it was opened
    got = bytearray()
    for piece in reading:
        got += piece
        world.now_s += pause_s
    assert bytes(got) == b"".join(bytes([number]) * CHUNK for number in range(PAGES * EACH))
    assert not world.refused
    assert not world.failed
