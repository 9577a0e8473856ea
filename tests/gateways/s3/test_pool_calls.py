"""How many calls of the pool the usual requests take: each costs more than all that the gateway itself does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from taskworker.auth.contexts import AccessTo
from taskworker.client import Client
from taskworker.gateways.http_server import HttpServer
from taskworker.gateways.s3.accounts import FileAccounts
from taskworker.gateways.s3.app import S3App
from tests.functions.processes import FunctionPool
from tests.gateways.s3.conftest import connect, keys_file


class Counted(grpc.UnaryUnaryClientInterceptor):
    """Notes the names of calls, which show the token of this user."""

    def __init__(self, address: str) -> None:
        self._token = AccessTo(address)().token
        self.names: list[str] = []

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        self.names.append(details.method.rpartition("/")[2])
        return continuation(details._replace(metadata=[("authorization", f"Bearer {self._token}")]), request)


class Stand:
    """A gateway whose calls of the pool are noted, and whose time is set.

    Attributes:
        s3: a client of it.
        now_s: its time, in seconds.
    """

    def __init__(self, url: str, counted: Counted, now_s: list[float]) -> None:
        self.s3 = connect(url)
        self.now_s = now_s
        self._counted = counted

    def calls(self, request: str, **arguments: Any) -> list[str]:
        """The calls of the pool that a request takes."""
        self._counted.names.clear()
        answer = getattr(self.s3, request)(**arguments)
        if "Body" in answer:
            answer["Body"].read()
        return list(self._counted.names)


@pytest.fixture
def stand(pool: FunctionPool, tmp_path: Path) -> Iterator[Stand]:
    counted, now_s = Counted(pool.address), [0.0]
    with grpc.insecure_channel(pool.address) as channel:
        client = Client(pool.address, channel=grpc.intercept_channel(channel, counted))
        app = S3App(FileAccounts(keys_file(tmp_path), client), clock_s=lambda: now_s[0])
        server = HttpServer(app, "127.0.0.1:0", half_close=True)
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            yield Stand(f"http://{server.address}", counted, now_s)
        finally:
            server.stop()
            thread.join(30)


def test_a_small_object_takes_one_call(stand: Stand, bucket: str) -> None:
    stand.s3.put_object(Bucket=bucket, Key="k", Body=b"content")
    assert stand.calls("put_object", Bucket=bucket, Key="k", Body=b"more") == ["PushFile"]
    assert stand.calls("get_object", Bucket=bucket, Key="k") == ["GetFile"]
    assert stand.calls("head_object", Bucket=bucket, Key="k") == ["Stat"]


def test_settings_are_looked_up_every_other_second_by_one_more_call(stand: Stand, bucket: str) -> None:
    stand.s3.put_object(Bucket=bucket, Key="k", Body=b"content")
    stand.now_s[0] += 3
    assert stand.calls("get_object", Bucket=bucket, Key="k") == ["GetFile", "GetFile"]
    stand.now_s[0] += 3
    assert stand.calls("put_object", Bucket=bucket, Key="k", Body=b"more") == ["GetFile", "PushFile"]
    stand.now_s[0] += 3
    assert stand.calls("head_object", Bucket=bucket, Key="k") == ["Stat", "GetFile"]
