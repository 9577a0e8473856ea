"""A user who takes all that a pool gives: ``python -m tests.cluster.campaign.flooder ADDRESS TOKEN FLOOD``.

===============  ===========================================================================
``connections``  1,000 connections, on which no call is made
``streams``      10,000 pushes that send their header and no more, each begun again when it ends
``revisions``    64 revisions at a time of the largest file that fits, checked against a SHA-256
``quota``        pushes of 1 MiB, until nothing fits, and then still
===============  ===========================================================================

It prints a line once it has begun, and goes on until standard input ends.
"""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from blake3 import blake3

from taskworker.protos import store_pb2, taskworker_pb2
from taskworker.protos.store_pb2_grpc import StoreServiceStub
from taskworker.protos.taskworker_pb2_grpc import FileServiceStub

CONNECTIONS = 1000
STREAMS = 10_000
REVISIONS = 64
_CHANNELS = 8
_MIB = 1 << 20
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])

outcomes: Counter[str] = Counter()


class Flood:
    """What a flood works with."""

    def __init__(self, address: str, token: str) -> None:
        self.address = address
        self.metadata = (("authorization", f"Bearer {token}"),)
        options = [("grpc.use_local_subchannel_pool", 1)]
        self.channels = [grpc.insecure_channel(address, options=options) for _ in range(_CHANNELS)]
        self.store: Any = StoreServiceStub(self.channels[0])
        self.files: Any = FileServiceStub(self.channels[1])


def connections(flood: Flood) -> None:
    """Open connections and keep them; open those again that the server closes."""
    host, _, port = flood.address.rpartition(":")
    held: list[socket.socket] = []
    while True:
        while len(held) < CONNECTIONS:
            try:
                one = socket.create_connection((host, int(port)), timeout=5)
                one.sendall(_PREFACE)
                one.setblocking(False)
                held.append(one)
            except OSError as error:
                outcomes[type(error).__name__] += 1
                break
        begun()
        threading.Event().wait(1.0)
        held = [one for one in held if not _is_closed(one)]


def _is_closed(one: socket.socket) -> bool:
    try:
        while data := one.recv(4096):
            del data
    except BlockingIOError:
        return False
    except OSError:
        pass
    one.close()
    outcomes["closed by the server"] += 1
    return True


def streams(flood: Flood) -> None:
    """Keep so many pushes open, from few threads: gRPC makes one for each request iterator."""
    calls: list[Any] = [
        channel.stream_unary("/taskworker.store.StoreService/PushStream", request_serializer=bytes)
        for channel in flood.channels
    ]
    header = store_pb2.PushPart(header=store_pb2.PushHeader(filename="idle")).SerializeToString()
    ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
    never = threading.Event()

    def silent() -> Iterator[bytes]:
        yield header
        never.wait()

    began = 0
    under_way = 0
    while True:
        while under_way < STREAMS and began < 2 * STREAMS:
            call: Any = calls[began % _CHANNELS].future(silent(), metadata=flood.metadata)
            call.add_done_callback(ended.put)
            began, under_way = began + 1, under_way + 1
            if under_way >= 500 or not ended.empty():
                break
        begun()
        try:
            one = ended.get(timeout=0.5)
        except queue.Empty:
            continue
        outcomes[f"{one.code().name}: {(one.details() or '')[:60]}"] += 1
        under_way, began = under_way - 1, began % STREAMS


def quota(flood: Flood) -> None:
    """Push until it is full, and go on."""
    number = 0
    while True:
        data = os.urandom(_MIB - 100_000)
        part = store_pb2.PushPart(
            header=store_pb2.PushHeader(filename=f"full {number}"),
            data=data,
            commit=store_pb2.PushCommit(size=len(data)),
        )
        number += 1
        told(flood.store.PushFile, part, flood)
        begun()


def revisions(flood: Flood) -> None:
    """Check a file of equal chunks again and again."""
    head = _wide(flood)
    count = head.size // _MIB
    outcomes[f"a file of {count} MiB"] += 1
    check = taskworker_pb2.ReviseRequest(
        file_id=head.file_id, sha256="0" * 64, difference=_diff(head.version_id, count, [])
    )

    def go_on() -> None:
        while True:
            told(flood.files.Revise, check, flood)

    for _ in range(REVISIONS - 1):
        threading.Thread(target=go_on, daemon=True).start()
    begun()
    go_on()


def _wide(flood: Flood) -> store_pb2.Version:
    """The largest file of equal chunks that fits into the quota."""
    try:
        found: store_pb2.Version = flood.store.Stat(store_pb2.StatRequest(filename="wide"), metadata=flood.metadata)
        return found
    except grpc.RpcError:
        pass  # there is none yet
    piece = os.urandom(_MIB)
    identifier = blake3(piece).digest()
    part = store_pb2.PushPart(
        header=store_pb2.PushHeader(filename="wide", chunk_size=_MIB),
        data=piece,
        commit=store_pb2.PushCommit(size=_MIB),
    )
    while not told(flood.store.PushFile, part, flood):
        pass  # the same user's other floods may have all places
    base = _stat(flood, store_pb2.StatRequest(filename="wide"))
    count = 4096
    while count > 1:
        diff = _diff(base.version_id, count, [store_pb2.Patch(index=at, chunk_id=identifier) for at in range(1, count)])
        request = taskworker_pb2.ReviseRequest(file_id=base.file_id, difference=diff)
        if told(flood.files.Revise, request, flood):
            break
        count //= 2
    return _stat(flood, store_pb2.StatRequest(file_id=base.file_id))


def _stat(flood: Flood, request: store_pb2.StatRequest) -> store_pb2.Version:
    """A version that exists, as soon as the same user's other floods leave a place to ask for it."""
    while True:
        try:
            found: store_pb2.Version = flood.store.Stat(request, metadata=flood.metadata)
        except grpc.RpcError as error:
            failed: Any = error
            if failed.code() not in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE):
                raise
            threading.Event().wait(0.02)
        else:
            return found


def _diff(base: str, count: int, patches: list[store_pb2.Patch]) -> bytes:
    diff = store_pb2.ManifestDiff(base_version=base, new_size=count * _MIB, chunk_size=_MIB, patches=patches)
    return diff.SerializeToString()


def told(call: Callable[..., object], request: object, flood: Flood) -> bool:
    """Make a call and count how it ended; return whether it succeeded. After a refusal, wait for a moment."""
    try:
        call(request, metadata=flood.metadata, timeout=30)
    except grpc.RpcError as error:
        failed: Any = error
        outcomes[f"{failed.code().name}: {(failed.details() or '')[:60]}"] += 1
        threading.Event().wait(0.02)
        return False
    outcomes["OK"] += 1
    return True


_begun = threading.Event()


def begun() -> None:
    """Say once that it has begun."""
    if not _begun.is_set():
        _begun.set()
        print("begun", flush=True)


FLOODS = {"connections": connections, "streams": streams, "revisions": revisions, "quota": quota}


def main() -> None:
    """Flood until standard input ends."""
    address, token, kind = sys.argv[1:]
    os.nice(19)  # what it takes of this machine's processors is not the pool's doing

    def go() -> None:
        try:
            FLOODS[kind](Flood(address, token))
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    threading.Thread(target=go, daemon=True).start()
    sys.stdin.read()
    print("; ".join(f"{count:,} times {what}" for what, count in outcomes.most_common(4)), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
