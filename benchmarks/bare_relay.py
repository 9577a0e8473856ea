"""A bare relay as a limit: data takes the path of a pool, from client to relay to six sinks and back, unprocessed.

Messages have 1 MiB of raw bytes and are passed on unchanged. Push: every other message is passed on twice, so that the
sinks get 1.5 times the bytes; each sink writes and fsyncs its sixth. Get: the relay reads from four sinks. There is no
protobuf, no digests and no erasure code. Run as a module, it is a sink or the relay, in its own process.
"""

from __future__ import annotations

import itertools
import os
import queue
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc

from benchmarks.bare_stream import CHANNEL_OPTIONS, pieces_of
from benchmarks.processes import ServerProcess, started_together

SERVICE = "benchmarks.BareRelay"
SINKS = 6
READ_SINKS = 4
QUEUED_MESSAGES = 4
STALLED_S = 60.0

Handlers = dict[str, "grpc.RpcMethodHandler[bytes, bytes]"]


class Peer:
    """A client of a relay or a sink."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        self.store: grpc.StreamUnaryMultiCallable[bytes, bytes] = self._channel.stream_unary(
            f"/{SERVICE}/Store", None, None
        )
        self.load: grpc.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(
            f"/{SERVICE}/Load", None, None
        )
        self.put: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(f"/{SERVICE}/Put", None, None)
        self.mend: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(
            f"/{SERVICE}/Mend", None, None
        )
        self.forget: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(
            f"/{SERVICE}/Forget", None, None
        )

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()


class BareRelay:
    """A relay and its sinks in their own processes, and a client of the relay in this one."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __enter__(self) -> Self:
        self._running = self._run()
        self._relay = self._running.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.__exit__(kind, error, trace)

    def push(self, path: Path) -> None:
        """Send the file; return when the sinks have 1.5 times its bytes on disk."""
        self._relay.store(pieces_of(path))

    def get(self, size: int) -> int:
        """Receive ``size`` bytes of what was pushed last; return the number of bytes received."""
        return sum(len(message) for message in self._relay.load(b"%d" % size))

    def put(self, content: bytes) -> None:
        """Send a small content; return when each sink has a quarter of it on disk."""
        self._relay.put(content)

    def mend(self, size: int) -> None:
        """Have the relay read ``size`` bytes from four sinks and write a quarter of them to the other two."""
        self._relay.mend(b"%d" % size)

    def forget(self) -> None:
        """Remove everything that was pushed."""
        self._relay.forget(b"")

    @contextmanager
    def _run(self) -> Iterator[Peer]:
        directories = [self._directory / f"sink-{number}" for number in range(SINKS)]
        for directory in directories:
            directory.mkdir()
        sinks = [ServerProcess("benchmarks.bare_relay", "sink", directory) for directory in directories]
        with ExitStack() as stack:
            stack.enter_context(started_together(sinks))
            addresses = [sink.address for sink in sinks]
            relay = Peer(stack.enter_context(ServerProcess("benchmarks.bare_relay", "relay", *addresses)).address)
            stack.callback(relay.close)
            relay.put(b"")
            yield relay


class _Sink:
    """Stores what it receives in files of one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._number = 0
        self._small = os.open(directory / "small", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)

    @property
    def handlers(self) -> Handlers:
        return {
            "Store": grpc.stream_unary_rpc_method_handler(lambda stream, _: self._store(stream)),
            "Load": grpc.unary_stream_rpc_method_handler(lambda _request, _: pieces_of(self._newest)),
            "Put": grpc.unary_unary_rpc_method_handler(lambda content, _: self._put(content)),
            "Forget": grpc.unary_unary_rpc_method_handler(lambda _request, _: self._forget()),
        }

    @property
    def _newest(self) -> Path:
        return self._directory / f"file-{self._number}"

    def _store(self, stream: Iterator[bytes]) -> bytes:
        self._number += 1
        file = os.open(self._newest, os.O_CREAT | os.O_WRONLY, 0o644)
        folder = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for message in stream:
                os.write(file, message)
            os.fsync(file)
            os.fsync(folder)
        finally:
            os.close(file)
            os.close(folder)
        return b""

    def _put(self, content: bytes) -> bytes:
        os.write(self._small, content)
        os.fsync(self._small)
        return b""

    def _forget(self) -> bytes:
        for path in self._directory.glob("file-*"):
            path.unlink()
        return b""


class _Relay:
    """Passes everything on to the sinks."""

    def __init__(self, sinks: Sequence[Peer]) -> None:
        self._sinks = sinks

    @property
    def handlers(self) -> Handlers:
        return {
            "Store": grpc.stream_unary_rpc_method_handler(lambda stream, _: self._store(stream)),
            "Load": grpc.unary_stream_rpc_method_handler(lambda size, _: self._load(int(size))),
            "Put": grpc.unary_unary_rpc_method_handler(lambda content, _: self._put(content)),
            "Mend": grpc.unary_unary_rpc_method_handler(lambda size, _: self._mend(int(size))),
            "Forget": grpc.unary_unary_rpc_method_handler(
                lambda request, _: self._each(lambda sink: sink.forget, request)
            ),
        }

    def _store(self, stream: Iterator[bytes]) -> bytes:
        return _spread(self._sinks, (copy for index, each in enumerate(stream) for copy in [each] * (2 - index % 2)))

    def _load(self, size: int) -> Iterator[bytes]:
        streams = [iter(sink.load(b"")) for sink in self._sinks[:READ_SINKS]]
        for stream in itertools.cycle(streams):
            message = next(stream, b"")[:size]
            size -= len(message)
            yield message
            if not size:
                return

    def _mend(self, size: int) -> bytes:
        return _spread(self._sinks[READ_SINKS:], itertools.islice(self._load(size), 0, None, READ_SINKS))

    def _put(self, content: bytes) -> bytes:
        return self._each(lambda sink: sink.put, content[: -(-len(content) // READ_SINKS)])

    def _each(self, method: Callable[[Peer], grpc.UnaryUnaryMultiCallable[bytes, bytes]], request: bytes) -> bytes:
        for answer in [method(sink).future(request) for sink in self._sinks]:
            answer.result()
        return b""


def _spread(sinks: Sequence[Peer], messages: Iterator[bytes]) -> bytes:
    """Send messages to the sinks in turn, and wait until all of them have stored theirs."""
    lanes: list[queue.Queue[bytes | None]] = [queue.Queue(QUEUED_MESSAGES) for _ in sinks]
    answers = [sink.store.future(iter(lane.get, None)) for sink, lane in zip(sinks, lanes, strict=True)]
    for lane, message in zip(itertools.cycle(lanes), messages, strict=False):
        lane.put(message, timeout=STALLED_S)
    for lane in lanes:
        lane.put(None, timeout=STALLED_S)
    for answer in answers:
        answer.result()
    return b""


def serve(handlers: Handlers) -> None:
    """Print the port once it is open, and serve until standard input is closed."""
    server = grpc.server(ThreadPoolExecutor(4), options=CHANNEL_OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    sys.stdin.read()
    server.stop(None).wait()


if __name__ == "__main__":
    if sys.argv[1] == "sink":
        serve(_Sink(Path(sys.argv[2])).handlers)
    else:
        serve(_Relay([Peer(address) for address in sys.argv[2:]]).handlers)
