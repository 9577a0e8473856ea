"""The scenario ``floods``: one user takes all that the pool gives; others, and the workers, do not notice."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import grpc

from taskworker.client.users import UserClient
from taskworker.protos import store_pb2
from taskworker.protos.store_pb2_grpc import StoreServiceStub
from tests.cluster.campaign.flooder import FLOODS
from tests.cluster.campaign.memory import MIB, MemoryWatch
from tests.cluster.campaign.run import Run
from tests.cluster.campaign.verdicts import spread
from tests.cluster.processes import Cluster

_QUOTA_MIB = 256
_TIMES_MAX = 3.0
_MEMORY_MAX = 512 * MIB
_FILE_BYTES = 4096


def floods(run: Run) -> None:
    """One user floods a pool in each way, then in all at once; each time, another user's calls are timed."""
    options = ("--quota", f"bytes={_QUOTA_MIB}MiB")
    with Cluster(run.directory, options=options) as cluster, UserClient(cluster.address) as users:
        tokens = {}
        for name in ("mallory", "ann"):
            users.add(name)
            tokens[name] = users.create_token(name)[0]
        ann = User(cluster.address, tokens["ann"])
        ann.times(1.0)
        idle = ann.times(float(run.rounds))
        run.verdicts.note(f"idle: {spread(idle, 'ms')}")
        with MemoryWatch(cluster.pool_process.pid) as memory:
            for kinds in (*((kind,) for kind in FLOODS), tuple(FLOODS)):
                _flood(run, cluster, tokens["mallory"], ann, kinds, idle)
            peak = memory.peak()
        run.verdicts.check(
            f"the pool's memory stays below {_MEMORY_MAX // MIB} MiB", str(peak), holds=peak.anonymous <= _MEMORY_MAX
        )
        status = cluster.status()
        away = [one.worker_id for one in status.workers if one.state != "alive"]
        late = [one.text for one in status.events if one.kind in ("suspect", "lost")]
        run.verdicts.errors("no worker's heartbeat was late", [*away, *late])
        (taken,) = [one for one in users.users() if one.user == "mallory"]
        run.verdicts.check(
            "the user takes no more than the quota",
            f"{(taken.bytes + taken.uncommitted_bytes) / MIB:.0f} of {_QUOTA_MIB} MiB",
            holds=taken.bytes + taken.uncommitted_bytes <= _QUOTA_MIB * MIB,
        )


def _flood(run: Run, cluster: Cluster, token: str, ann: User, kinds: tuple[str, ...], idle: list[float]) -> None:
    name = " and ".join(kinds) if len(kinds) < len(FLOODS) else "all at once"
    flooders = [Flooder(cluster.address, token, kind, cluster.directory) for kind in kinds]
    try:
        found = ann.times(float(run.rounds))
    finally:
        told = [one.end() for one in flooders]
    for kind, line in zip(kinds, told, strict=True):
        run.verdicts.note(f"{kind}: {line}")
    times = _p99(found) / _p99(idle) if found else float("inf")
    run.verdicts.check(
        f"{name}: another user's p99 is at most {_TIMES_MAX:g} times that of an idle pool",
        f"{times:.1f} times ({spread(found, 'ms')})",
        holds=times <= _TIMES_MAX,
    )
    run.verdicts.errors(f"{name}: another user's calls succeed", ann.failures)
    ann.failures.clear()


def _p99(values: list[float]) -> float:
    return sorted(values)[len(values) * 99 // 100]


class Flooder:
    """A process of the user who floods."""

    def __init__(self, address: str, token: str, kind: str, directory: Path) -> None:
        with (directory / f"flooder-{kind}.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.cluster.campaign.flooder", address, token, kind],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._process.stdout is not None
        said = self._process.stdout.readline().strip()
        if said != "begun":
            self._process.kill()
            self._process.communicate()
            raise AssertionError(f"the flood {kind} did not begin: {said!r}; see {log.name}")

    def end(self) -> str:
        """End it; return what it says of its calls."""
        said, _ = self._process.communicate()
        return said.strip()


class User:
    """A user who stores and reads small files, one after another.

    Attributes:
        failures: texts of calls that failed.
    """

    def __init__(self, address: str, token: str) -> None:
        self._stub: Any = StoreServiceStub(grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]))
        self._metadata = (("authorization", f"Bearer {token}"),)
        self.failures: list[str] = []
        self._number = 0

    def times(self, seconds: float) -> list[float]:
        """How long each push and get took, in milliseconds."""
        found: list[float] = []
        end_s = time.monotonic() + seconds
        pause = threading.Event()
        while time.monotonic() < end_s:
            self._number += 1
            data = os.urandom(_FILE_BYTES)
            name = f"file {self._number % 50}"
            began_s = time.monotonic()
            try:
                part = store_pb2.PushPart(
                    header=store_pb2.PushHeader(filename=name), data=data, commit=store_pb2.PushCommit(size=len(data))
                )
                self._stub.PushFile(part, metadata=self._metadata, timeout=30)
                got = self._stub.GetFile(store_pb2.GetFileRequest(filename=name), metadata=self._metadata, timeout=30)
                assert got.data == data
            except grpc.RpcError as error:
                self.failures.append(str(error)[:300])
                pause.wait(0.1)
                continue
            found.append((time.monotonic() - began_s) * 1000)
            pause.wait(0.005)
        return found
