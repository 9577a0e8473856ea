"""A bare gRPC stream as a limit: 1 MiB messages of raw bytes, and handlers that only do the disk's part.

Push: the handler writes 1.5 times the bytes to six files and fsyncs them. Get: it reads a page-cached file and sends
it. There is no protobuf, no digests and no erasure code. It uses grpc's threaded Python server, which is faster for
this than the asyncio one. Run as a module, it is the server, in its own process.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from benchmarks.limits import ShardFiles
from benchmarks.measure import MIB
from storage.erasure import ErasureProfile

SERVICE = "benchmarks.BareStream"
MESSAGE_BYTES = MIB
CALL_BYTES = 4096
CHANNEL_OPTIONS = (("grpc.max_receive_message_length", 8 * MIB), ("grpc.max_send_message_length", 8 * MIB))


def pieces_of(path: Path) -> Iterator[bytes]:
    """Yield the file in messages of `MESSAGE_BYTES`."""
    with path.open("rb", buffering=0) as file:
        while piece := file.read(MESSAGE_BYTES):
            yield piece


class BareClient:
    """Streams to and from a bare server."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._push: grpc.StreamUnaryMultiCallable[bytes, bytes] = self._channel.stream_unary(
            f"/{SERVICE}/Push", None, None
        )
        self._get: grpc.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(
            f"/{SERVICE}/Get", None, None
        )
        self._call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(
            f"/{SERVICE}/Call", None, None
        )

    def push(self, path: Path) -> None:
        """Send the file to the server; return when the server has 1.5 times its bytes on disk."""
        self._push(pieces_of(path))

    def get(self, path: Path) -> int:
        """Receive the file from the server; return the number of bytes received."""
        return sum(len(message) for message in self._get(str(path).encode()))

    def call(self) -> bytes:
        """Make one unary call with an answer of `CALL_BYTES`."""
        return self._call(b"")

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()


def serve(directory: Path) -> None:
    """Print the port once it is open, and serve until standard input is closed."""
    server = grpc.server(ThreadPoolExecutor(4), options=CHANNEL_OPTIONS)
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "Push": grpc.stream_unary_rpc_method_handler(lambda stream, _: _store(directory, stream)),
        "Get": grpc.unary_stream_rpc_method_handler(lambda path, _: pieces_of(Path(path.decode()))),
        "Call": grpc.unary_unary_rpc_method_handler(lambda _request, _: bytes(CALL_BYTES)),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    sys.stdin.read()
    server.stop(None).wait()


def _store(directory: Path, stream: Iterator[bytes]) -> bytes:
    with tempfile.TemporaryDirectory(dir=directory, prefix="bare-") as name:
        files = ShardFiles(Path(name), ErasureProfile())
        try:
            for message in stream:
                files.append(memoryview(message))
            files.sync()
        finally:
            files.close()
    return b""


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
