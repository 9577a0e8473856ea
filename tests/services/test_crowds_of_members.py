"""Neither strangers nor a worker can take all of what a pool has for those that join, and for its members."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from taskworker.auth.identity import POOL_DNS_NAME
from taskworker.client.pool import PoolClient
from taskworker.protos import pool_pb2
from taskworker.protos.pool_pb2_grpc import PoolServiceStub
from taskworker.rpc.dialling import dial_secure
from taskworker.worker.member import enroll
from tests.services.calls import methods, outcome
from tests.services.member_workers import serving
from tests.services.members import Stand
from tests.services.proxy import Proxy

METHODS = methods()
ENROLL = "/taskworker.members.EnrollmentService/Enroll"
HEARTBEAT = "/taskworker.pool.PoolService/Heartbeat"
CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
INVOKE = "/taskworker.functions.InvocationService/Invoke"
LONG_S = 30.0


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    stand = Stand(tmp_path_factory.mktemp("stand"))
    yield stand
    stand.close()


class Crowd:
    """Calls whose messages never come."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._ended = threading.Event()
        self._calls: list[Any] = []

    def _nothing(self) -> Iterator[bytes]:
        self._ended.wait()
        yield from ()

    def call(self, channel: grpc.Channel, path: str, count: int, first: tuple[bytes, ...] = ()) -> None:
        """Begin so many calls, each of which sends no more than its first messages."""

        def messages() -> Iterator[bytes]:
            yield from first
            yield from self._nothing()

        call: Any = channel.stream_unary(path)
        self._calls += [call.future(messages()) for _ in range(count)]

    def await_some_that_ended(self) -> None:
        """Wait until the server has turned some of them away."""
        while not any(call.done() for call in self._calls):
            self._ended.wait(0.02)

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        for call in self._calls:
            call.cancel()
        self._ended.set()


def _connections(stack: ExitStack, address: str, credentials: grpc.ChannelCredentials) -> Iterator[grpc.Channel]:
    """Channels with connections of their own."""
    options = (("grpc.ssl_target_name_override", POOL_DNS_NAME), ("grpc.use_local_subchannel_pool", 1))
    while True:
        yield stack.enter_context(grpc.secure_channel(address, credentials, options))


def test_strangers_do_not_keep_workers_from_joining(stand: Stand, tmp_path: Path) -> None:
    with PoolClient(stand.address) as operator:
        token, address = operator.new_join_token("w9")
    trusted = grpc.ssl_channel_credentials(stand.members["w1"].credentials.pair.authorities_pem)
    with Crowd() as crowd, ExitStack() as stack, Proxy(address, origin="127.0.0.2") as proxy:
        connections = _connections(stack, proxy.address, trusted)
        for path in (WATCH, REFLECTION, CHECK, ENROLL):
            for _ in range(8):
                crowd.call(next(connections), path, 4, first=(b"",) if path == WATCH else ())
        crowd.await_some_that_ended()
        (tmp_path / "w9").mkdir()
        assert enroll(tmp_path / "w9", address, token, "w9").worker_id == "w9"


def test_a_worker_does_not_keep_others_from_their_heartbeats(stand: Stand) -> None:
    greedy = stand.members["w1"]
    with Crowd() as crowd, ExitStack() as stack, stand.members["w2"].dial() as other:
        PoolServiceStub(other).Describe(pool_pb2.DescribeRequest(), timeout=LONG_S)
        connections = _connections(stack, greedy.members_address, greedy.credentials.for_grpc_channel())
        for _ in range(30):
            channel = next(connections)
            for path in (HEARTBEAT, CHECK, REFLECTION):
                crowd.call(channel, path, 10)
        for _ in range(20):
            assert PoolServiceStub(other).Describe(pool_pb2.DescribeRequest(), timeout=LONG_S).pool_id


def test_a_worker_does_not_keep_another_from_its_pool(stand: Stand) -> None:
    member = stand.members["w1"]
    name = member.credentials.identity.dns_name
    pool = stand.server.pool.credentials
    assert pool is not None
    cancel = METHODS["taskworker.functions.InvocationService.Cancel"]
    with (
        serving(member, stand.directory) as address,
        Crowd() as crowd,
        dial_secure(address, stand.members["w2"].credentials.for_grpc_channel(), name) as greedy,
        dial_secure(address, pool.for_grpc_channel(), name) as channel,
    ):
        for path in (INVOKE, CHECK, WATCH, REFLECTION):
            crowd.call(greedy, path, 100, first=(b"",) if path == WATCH else ())
        assert outcome(greedy, METHODS["grpc.health.v1.Health.Check"])[0] is not grpc.StatusCode.OK
        for _ in range(20):
            assert outcome(channel, cancel)[0] is grpc.StatusCode.OK
