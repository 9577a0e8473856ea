"""A server of a few methods that do little, and a process of it.

========  ==========================================================================
method    what it does
========  ==========================================================================
ECHO      answers with the call's body
SLOW      the same, in another thread
COUNT     a stream of as many messages as the body says (4 bytes), numbered
LARGE     answers with as many bytes as the body says (4 bytes), from memory
REFUSE    fails with the body as its description
========  ==========================================================================
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from enum import IntEnum

from storage.errors import InvalidArgument
from taskworker.cli.allocator import keep_one_arena
from taskworker.transport.wire.outgoing import Parts
from taskworker.transport.wire.server import WireServer
from taskworker.transport.wire.serving import Caller, Method, Style

NUMBER = struct.Struct("<I")


class Do(IntEnum):
    """The methods."""

    ECHO = 1
    SLOW = 2
    COUNT = 3
    LARGE = 4
    REFUSE = 5


class Said(InvalidArgument):
    """What the caller wanted to be told."""

    def __init__(self, description: bytes) -> None:
        super().__init__(description.decode("latin-1"))
        self.description = description


def _echo(body: memoryview, _caller: Caller) -> Parts:
    return (bytes(body),)


def _count(body: memoryview, _caller: Caller) -> Iterator[Parts]:
    for number in range(NUMBER.unpack(body)[0]):
        yield (NUMBER.pack(number),)


def _large(body: memoryview, _caller: Caller) -> Parts:
    return (bytes(NUMBER.unpack(body)[0]),)


def _refuse(body: memoryview, _caller: Caller) -> Parts:
    raise Said(bytes(body))


METHODS = {
    int(Do.ECHO): Method("echo", Style.QUICK, _echo),
    int(Do.SLOW): Method("slow", Style.SLOW, _echo),
    int(Do.COUNT): Method("count", Style.STREAM, _count),
    int(Do.LARGE): Method("large", Style.QUICK, _large),
    int(Do.REFUSE): Method("refuse", Style.QUICK, _refuse),
}


def describe(error: Exception) -> bytes:
    """The description that the caller wanted, or the error's text."""
    return error.description if isinstance(error, Said) else str(error).encode()


def echo_server() -> WireServer:
    """A server of these methods."""
    return WireServer(METHODS, describe)


if __name__ == "__main__":
    keep_one_arena()  # as workers do
    server = echo_server()
    print(server.start(sys.argv[1]), flush=True)
    sys.stdin.read()
    server.stop(0.0)
