"""A bare call over two hops: from a client through a relay to an end and back, with messages of given sizes.

The handlers do nothing. Servers and channels are the project's own, with all their options, but without protobuf,
wrapping or checks. Run as a module, it is the relay or the end, in its own process.
"""

from __future__ import annotations

import sys

import grpc

from taskworker.rpc.admission import DEFAULT_CALLS
from taskworker.rpc.dialling import dial
from taskworker.rpc.serving import Server

SERVICE = "benchmarks.BareCalls"
CALLS = 64


class BareClient:
    """Calls a relay or an end. Messages are raw bytes."""

    def __init__(self, address: str) -> None:
        self._channel = dial(address)
        self.call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(f"/{SERVICE}/Call")

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()


def _serve(answer_bytes: int, forward_to: str, forward_bytes: int) -> None:
    """Print the port once it is open, and serve until standard input is closed."""
    answer, forwarded = bytes(answer_bytes), bytes(forward_bytes)
    onward = BareClient(forward_to) if forward_to else None

    def relay(_request: bytes, _context: grpc.ServicerContext) -> bytes:
        assert onward is not None
        onward.call(forwarded)
        return answer

    def end(_request: bytes, _context: grpc.ServicerContext) -> bytes:
        return answer

    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(end if onward is None else relay)
    service = grpc.method_handlers_generic_handler(SERVICE, {"Call": handler})
    server = Server({SERVICE: service}, calls=DEFAULT_CALLS + CALLS)
    print(server.start("127.0.0.1:0"), flush=True)
    sys.stdin.read()
    server.stop(0.0)
    if onward is not None:
        onward.close()


if __name__ == "__main__":
    _serve(int(sys.argv[1]), *((sys.argv[2], int(sys.argv[3])) if len(sys.argv) > 2 else ("", 0)))
