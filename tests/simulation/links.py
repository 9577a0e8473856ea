"""Simulated connections: bytes on their way between the pool's process and a worker's, and what may happen to them.

Both ends are the real ones: :class:`taskworker.transport.wire.connection.Connection` and
:class:`taskworker.transport.wire.answering.AnsweringConnection`. No byte moves by itself: :meth:`Link.act` lets one
thing happen, such as a frame that arrives, or a part of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from storage.limits import BytesLike
from taskworker.transport.frames import Call
from taskworker.transport.shard_calls import Lane
from taskworker.transport.wire.answering import AnsweringConnection
from taskworker.transport.wire.connection import Connection
from taskworker.transport.wire.framing import (
    GREETING_BYTES,
    HEADER_BYTES,
    WELCOME_BYTES,
    Kind,
    unpack_header,
)
from tests.simulation.frame_lies import told_wrongly

if TYPE_CHECKING:
    from tests.simulation.network import Network, Process
    from tests.simulation.servers import Server

_IN_PIECES = 0.05  # how likely only a part of a frame arrives at once
_FULL = 0.02  # how likely a system's buffer takes only a part of what is sent
_DELAYED = 0.01
_DELAYS_S = (0.02, 0.1, 0.3)
_LATE = 0.03  # appends are delayed more often, and for so long that others take the shards
_LATE_S = (0.1, 0.3, 0.6, 0.8)
_LIE = 0.002  # rarely: a liar that is caught in this way cannot lie about shards any more
_STALL = 0.3  # how likely a fault shows by silence, and not by the end of the connection
_PATIENT = (Call.KEYS, Call.RECORDS, Call.VERIFY, Call.REST, Call.COMPACT)  # the caller waits for minutes
_KIND_AT, _METHOD_AT = 8, 9
_LANE_AT = 6
_CALL, _APPENDS = int(Kind.CALL), int(Lane.APPENDS)  # looking up a member of an enumeration takes longer


class Pipe:
    """One direction of a connection.

    Attributes:
        flying: bytes that were sent and have not arrived.
        landed: bytes that have arrived and were not received.
        left: bytes that have not arrived of the frame that is arriving; 0: none has begun to arrive.
        greeted: whether what precedes all frames has begun to arrive.
        told: whether the arrival of the next frame was announced.
        later_s: when the next frame may arrive; 0: now.
        ending: whether nothing follows what is flying.
        ended: whether the receiver was told so.
    """

    __slots__ = ("ended", "ending", "flying", "greeted", "landed", "later_s", "left", "told")

    def __init__(self) -> None:
        self.flying = bytearray()
        self.landed = bytearray()
        self.left = 0
        self.greeted = self.told = self.ending = self.ended = False
        self.later_s = 0.0

    def receive(self, buffers: Sequence[memoryview]) -> int | None:
        """See :meth:`taskworker.transport.wire.streams.Stream.receive`."""
        landed = self.landed
        count = len(landed)
        if not count:
            return 0 if self.ended else None
        if len(buffers) == 1 and count <= len(buffers[0]):
            buffers[0][:count] = landed
            landed.clear()
            return count
        count = 0
        for buffer in buffers:
            step = min(len(buffer), len(landed))
            buffer[:step] = landed[:step]
            del landed[:step]
            count += step
            if not landed:
                break
        return count

    def arrive(self, count: int) -> None:
        """Let bytes arrive, all of the frame that is arriving."""
        if count == len(self.flying) and not self.landed:
            self.landed, self.flying = self.flying, self.landed
        else:
            self.landed += self.flying[:count]
            del self.flying[:count]
        self.left = self.left - count if self.left > count else 0

    def end(self) -> None:
        """Lose what is flying, and end."""
        self.flying.clear()
        self.ending = True


class _End:
    """What both ends of a connection have of :class:`taskworker.transport.wire.streams.Stream`."""

    __slots__ = ("_link",)

    def __init__(self, link: Link) -> None:
        self._link = link

    def send_file(self, descriptor: int, offset: int, count: int) -> int:
        raise NotImplementedError

    def retransmission_s(self) -> float:
        return 0.0

    def shortest_round_trip_s(self) -> float:
        return 0.0

    def fileno(self) -> int:
        return self._link.number

    def close(self) -> None:
        """See :class:`Stream`. Nothing is left to do."""


class ClientStream(_End):
    """The pool's end."""

    __slots__ = ()

    @property
    def link(self) -> Link:
        """The connection that this is an end of."""
        return self._link

    def receive(self, buffers: Sequence[memoryview], *, wait: bool) -> int | None:
        return self._link.down.receive(buffers)

    def send(self, buffers: Sequence[BytesLike], *, wait: bool, more: bool = False) -> int:
        return self._link.send_up(buffers)

    @property
    def has_more(self) -> bool:
        """See ``Stream``."""
        return False

    def unsent(self) -> int:
        return len(self._link.up.flying)

    def shutdown(self) -> None:
        self._link.hang_up()


class ServerStream(_End):
    """The worker's end."""

    __slots__ = ()

    def receive(self, buffers: Sequence[memoryview], *, wait: bool) -> int | None:
        return self._link.up.receive(buffers)

    def send(self, buffers: Sequence[BytesLike], *, wait: bool, more: bool = False) -> int:
        return self._link.send_down(buffers)

    @property
    def has_more(self) -> bool:
        """See ``Stream``."""
        return False

    def unsent(self) -> int:
        return len(self._link.down.flying)

    def shutdown(self) -> None:
        self._link.server_ends()


class Link:
    """A connection between the pool's process and a worker's.

    Args:
        network: the network of the simulation.
        process: the pool's process.
        server: the worker's process.
        number: the descriptor of both ends.

    Attributes:
        connection: the pool's end, once it was made.
        queued: whether the network lets the link act.
        held: whether no byte moves now.
    """

    def __init__(self, network: Network, process: Process, server: Server, number: int) -> None:
        self.network = network
        self._random = network.random
        self.process = process
        self.server = server
        self.number = number
        self.up, self.down = Pipe(), Pipe()
        self.stream = ClientStream(self)
        self.connection: Connection | None = None
        self.answering: AnsweringConnection | None = None
        self.queued = self.held = False
        self.client_waits = self.server_waits = False  # for room to send
        self.lane = 0
        self._doomed = 0  # the call whose answer will be lost
        self._leaving = False  # whether the worker has a reason to end the connection

    # -- the pool's end --------------------------------------------------------------------------

    def greeted(self, connection: Connection) -> None:
        """Note the pool's end, which has sent its greeting."""
        self.connection = connection
        self.lane = self.up.flying[_LANE_AT]

    def send_up(self, buffers: Sequence[BytesLike]) -> int:
        data = b"".join(buffers)
        if self.process.dead:
            if len(data) >= HEADER_BYTES and data[_KIND_AT] == _CALL:
                self.process.reach("")
            return len(data)
        if self.up.ending:  # the end has not been noticed yet
            if self.network.chance(0.5):
                raise BrokenPipeError
            return len(data)
        if self.held and self.lane == Lane.LONG and len(data) >= HEADER_BYTES and data[_METHOD_AT] in _PATIENT:
            self.cut()  # silence would let minutes pass
            return len(data)
        return self._send(self.up, data)

    def hang_up(self) -> None:
        """Let the pool's end go. What was sent may still arrive, or a part of it, even much later."""
        self._leaving = True
        self.connection = None
        self.client_waits = False
        self.down.end()
        self.up.ending = True
        if self.held and not self.server.reachable:
            return  # what was sent may arrive once the network works again
        if self.held:
            self.held = False
            self.up.flying.clear()
        del self.up.flying[self.network.some_of(len(self.up.flying)) :]
        self.network.queue(self)

    # -- the worker's end ------------------------------------------------------------------------

    def send_down(self, buffers: Sequence[BytesLike]) -> int:
        data = b"".join(buffers)
        if self.down.ending:
            raise BrokenPipeError
        return self._send(self.down, data)

    def server_ends(self) -> None:
        """Let the worker end the connection."""
        if not self.up.ended and not self._leaving:
            self.network.bugs.append(AssertionError("a worker closed a connection on which nothing was wrong"))
        self.up.end()
        self.down.ending = True
        self.network.queue(self)

    def stop(self) -> None:
        """Let the worker's process end: what was sent to it may have been received, or a part of it."""
        self.held = False
        if self.answering is not None and self.up.flying:
            self.up.left = 0
            self.up.arrive(self.network.some_of(len(self.up.flying)))
            self.answering.run()
        self.answering = None
        del self.down.flying[self.network.some_of(len(self.down.flying)) :]
        self.up.end()
        self.up.ended = self.down.ending = True
        self.network.queue(self)

    # -- faults ----------------------------------------------------------------------------------

    def hold(self) -> None:
        """Let no byte move until the link is released, or cut it."""
        under_way = self.connection is not None and self.connection._calls
        if (self.lane != Lane.LONG or not under_way) and self.network.chance(0.5):
            self.held = True
        else:
            self.cut()

    def release(self) -> None:
        """Let bytes move again."""
        if self.held:
            self.held = False
            self.network.queue(self)

    def cut(self) -> None:
        """End both directions, and lose what is under way."""
        self._leaving, self.held = True, False
        self.up.end()
        self.down.end()
        self.network.queue(self)

    def _fail(self) -> None:
        """Lose what is under way: the ends notice it at once, or there is only silence."""
        self._leaving = True
        if self.lane != Lane.LONG and self.network.chance(_STALL):
            self.held = True
        else:
            self.cut()

    def look(self, now_s: float) -> None:
        """Let the worker end the connection if the pool is too slow."""
        if self.answering is not None and self.answering.is_stuck(now_s):
            self._leaving = True
            self.answering.end()
            self.answering.run()

    # -- what moves ------------------------------------------------------------------------------

    def act(self) -> bool:
        """Let one thing happen; return whether there was any."""
        if self.held:
            return False
        if self._random() < 0.5:
            return self._carry_up() or self._carry_down() or self._make_room()
        return self._carry_down() or self._carry_up() or self._make_room()

    def _send(self, pipe: Pipe, data: bytes) -> int:
        size = len(data)
        if size > HEADER_BYTES and self._random() < _FULL:
            size = self.network.below(size)
            data = data[:size]
        pipe.flying += data
        self.network.queue(self)
        return size

    def _make_room(self) -> bool:
        if self.client_waits and self.connection is not None:
            self.connection.writable()
            return True
        if self.server_waits and self.answering is not None:
            self.server_waits = False
            self.answering.run()
            return True
        return False

    def _carry_up(self) -> bool:
        """Let something arrive at the worker."""
        pipe = self.up
        if not pipe.flying:
            if not pipe.ending or pipe.ended:
                return False
            pipe.ended = True
        else:
            if not pipe.left:
                begun = self._begin_up(pipe)
                if not pipe.left:
                    return begun
            self._arrive(pipe)
        if self.answering is not None:
            self.answering.run()
        return True

    def _begin_up(self, pipe: Pipe) -> bool:
        """Begin with the next frame to the worker, or let something else happen instead."""
        if not pipe.greeted:
            pipe.greeted, pipe.left = True, GREETING_BYTES
            return True
        if len(pipe.flying) < HEADER_BYTES:
            pipe.left = len(pipe.flying) if pipe.ending else 0
            return False
        header = unpack_header(pipe.flying)
        if header.kind == _CALL:
            if not pipe.told:
                pipe.told = True
                self._delay(pipe)
                self.network.calls_of_pool += self.process.is_pool
                if self.network.happen():
                    return True  # nothing is as it was
            if pipe.later_s and not self._is_due(pipe):
                return False
            if self.network.loses_request(self.server.address):
                self._lose_request(pipe, HEADER_BYTES + header.length)
                return True
            if self.network.loses_reply(self.server.address):
                self._doomed = header.call
        pipe.told, pipe.left = False, HEADER_BYTES + header.length
        return True

    def _lose_request(self, pipe: Pipe, length: int) -> None:
        pipe.arrive(min(len(pipe.flying), self.network.below(length)))
        if self.answering is not None:
            self.answering.run()
        self._fail()

    def _carry_down(self) -> bool:
        """Let something arrive at the pool."""
        pipe, connection = self.down, self.connection
        if not pipe.flying:
            if not pipe.ending or pipe.ended:
                return False
            pipe.ended = True
        else:
            if not pipe.left:
                begun = self._begin_down(pipe)
                if not pipe.left:
                    return begun
            self._arrive(pipe)
        if connection is not None:
            connection.readable()
        return True

    def _begin_down(self, pipe: Pipe) -> bool:
        """Begin with the next frame to the pool, or let something else happen instead."""
        if not pipe.greeted:
            pipe.greeted, pipe.left = True, WELCOME_BYTES
            return True
        if len(pipe.flying) < HEADER_BYTES:
            pipe.left = len(pipe.flying) if pipe.ending else 0
            return False
        header = unpack_header(pipe.flying)
        length = HEADER_BYTES + header.length
        if not pipe.told:
            pipe.told = True
            if self.server.liar and len(pipe.flying) >= length and self.network.chance(_LIE):
                pipe.flying[:length] = told_wrongly(pipe.flying[:length], self.network.rng)
                self.network.injected["frame lie"] += 1
                return True
            self._delay(pipe)
        if pipe.later_s and not self._is_due(pipe):
            return False
        if header.call == self._doomed and self._doomed:
            self._doomed = 0
            self.network.injected["reply lost"] += 1
            pipe.arrive(min(len(pipe.flying), self.network.below(length)))
            if self.connection is not None:
                self.connection.readable()
            self._fail()
            return True
        pipe.told, pipe.left = False, length
        return True

    def _arrive(self, pipe: Pipe) -> None:
        count, flying = pipe.left, len(pipe.flying)
        if flying < count:
            count = flying
        if self._random() < _IN_PIECES:
            count = 1 + self.network.below(count)
        pipe.arrive(count)

    def _is_due(self, pipe: Pipe) -> bool:
        due = pipe.later_s <= self.network.now_s()
        if due:
            pipe.later_s = 0.0
        return due

    def _delay(self, pipe: Pipe) -> None:
        likely, delays_s = (_LATE, _LATE_S) if self.lane == _APPENDS else (_DELAYED, _DELAYS_S)
        if not self.network.punctual and self._random() < likely:
            pipe.later_s = self.network.now_s() + delays_s[self.network.below(len(delays_s))]
            self.network.queue_later(pipe.later_s, self)
