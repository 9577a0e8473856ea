"""SeaweedFS: a master, six volume servers and a filer, used through the filer's HTTP interface."""

from __future__ import annotations

import http.client
import itertools
import json
import shutil
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from benchmarks.measure import MIB, seconds_of
from benchmarks.peer_processes import HOST, REQUEST_TIMEOUT_S, SERVERS, PeerFailed, await_ready, free_ports
from benchmarks.s3_calls import ACCESS_KEY_ID, SECRET, read_head
from benchmarks.workload import small_content

REPLICATION = "020"
"""Two more copies, both on other racks than the first: any two losses are survived."""
VOLUMES_MAX = 64
VOLUME_MIB_MAX = 1024
_HEAD_END = b"\r\n\r\n"
_OK = (200, 201)


class SeaweedFS:
    """See :class:`benchmarks.cluster_peers.ClusterPeer`.

    Every volume server is a rack of its own, as replication asks for racks. Nothing listens beyond loopback.

    Args:
        home: a directory for the data.
        program: path of ``weed``.

    Raises:
        PeerFailed: it cannot be run here.
    """

    name = "SeaweedFS"
    note = "three copies, fsync=true; does not verify what it reads"
    repairs = False

    def __init__(self, home: Path, program: str) -> None:
        self._home, self._program = home, program
        self._running = ExitStack()
        self._files = 0
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> str:
        """``host:port`` of the filer."""
        return f"{HOST}:{self._filer}"

    def push(self, source: Path) -> float:
        """See :class:`benchmarks.cluster_peers.ClusterPeer`."""
        self._files += 1

        def action() -> None:
            with source.open("rb") as file:
                headers = {"Content-Length": str(source.stat().st_size)}
                self._exchange("PUT", f"/files/{self._files}?fsync=true", file, headers)

        return seconds_of(action)

    def get(self) -> float:
        """See :class:`benchmarks.cluster_peers.ClusterPeer`."""
        return seconds_of(lambda: self._exchange("GET", f"/files/{self._files}"))

    def push_small(self, series: str, count: int, size: int) -> float:
        """See :class:`benchmarks.cluster_peers.ClusterPeer`."""
        contents = [small_content(series, index, size) for index in range(count)]

        def action() -> None:
            with HttpCaller(self.address) as caller:
                for index, content in enumerate(contents):
                    caller.put(f"/{series}/{index}?fsync=true", content)

        return seconds_of(action)

    def repair(self) -> float:
        """Not supported."""
        raise PeerFailed("it repairs when an operator asks for it only")

    def close(self) -> None:
        """See :class:`benchmarks.cluster_peers.ClusterPeer`."""
        self._running.close()

    def _exchange(self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None) -> None:
        connection = http.client.HTTPConnection(HOST, self._filer, timeout=REQUEST_TIMEOUT_S, blocksize=MIB)
        buffer = memoryview(bytearray(MIB))
        try:
            connection.request(method, path, body, headers or {})  # type: ignore[arg-type]  # a file, or nothing
            response = connection.getresponse()
            if response.status not in _OK:
                raise PeerFailed(f"it answered {method} with {response.status} {response.reason}")
            while response.readinto(buffer):
                pass
        finally:
            connection.close()

    def _start(self) -> None:
        ports = iter(free_ports(2 * (SERVERS + 2)))
        self._master, self._filer = next(ports), next(ports)
        master = f"{HOST}:{self._master}.{next(ports)}"  # with the port of its gRPC
        options = [
            "-peers=none",
            "-mdir=.",
            f"-defaultReplication={REPLICATION}",
            f"-volumeSizeLimitMB={VOLUME_MIB_MAX}",
        ]
        self._run("master", "master", self._master, master.rpartition(".")[2], "-telemetry=false", *options)
        await_ready("SeaweedFS's master", lambda: self._asked("/cluster/status", "IsLeader") is True)
        for number, (port, inner) in enumerate(itertools.islice(zip(ports, ports, strict=False), SERVERS)):
            options = [f"-rack=rack-{number}", "-dataCenter=here", "-dir=.", f"-max={VOLUMES_MAX}"]
            self._run(f"server-{number}", "volume", port, inner, f"-master={master}", "-preStopSeconds=0", *options)
        await_ready("SeaweedFS", lambda: self._racks() == SERVERS)
        options = [f"-defaultReplicaPlacement={REPLICATION}", "-defaultStoreDir=.", "-localSocket=filer.sock"]
        self._filer_inner = next(ports)
        self._run("filer", "filer", self._filer, self._filer_inner, f"-master={master}", "-dataCenter=here", *options)
        await_ready("SeaweedFS's filer", self._takes_files)

    def serve_s3(self) -> str:
        """Serve the filer's files by S3, flushed as those of :meth:`push`; return ``host:port``.

        Raises:
            PeerFailed: it does not start.
        """
        rules = {"locations": [{"locationPrefix": "/buckets/", "replication": REPLICATION, "fsync": True}]}
        with HttpCaller(self.address) as caller:
            caller.put("/etc/seaweedfs/filer.conf", json.dumps(rules).encode())
        keys = [{"accessKey": ACCESS_KEY_ID, "secretKey": SECRET}]
        config = self._home / "s3.json"
        config.write_text(
            json.dumps({"identities": [{"name": "benchmark", "credentials": keys, "actions": ["Admin"]}]})
        )
        port, inner = free_ports(2)
        home = self._home / "s3"
        home.mkdir()
        options = [f"-filer={HOST}:{self._filer}.{self._filer_inner}", f"-config={config}", "-localSocket=s3.sock"]
        where = (f"-ip.bind={HOST}", f"-port={port}", f"-port.grpc={inner}", "-port.iceberg=0", "-port.lance=0")
        with (self._home / "s3.log").open("wb") as log:
            command = [self._program, "-logtostderr", "s3", *where, *options]
            process = subprocess.Popen(command, cwd=home, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._running.callback(_kill, process)
        await_ready("SeaweedFS's S3", lambda: _listens(port))
        return f"{HOST}:{port}"

    def _run(self, directory: str, role: str, port: int, inner_port: object, *options: str) -> None:
        home = self._home / directory
        home.mkdir()
        where = (f"-ip={HOST}", f"-ip.bind={HOST}", f"-port={port}", f"-port.grpc={inner_port}")
        with (self._home / f"{directory}.log").open("wb") as log:
            command = [self._program, "-logtostderr", role, *where, *options]
            process = subprocess.Popen(command, cwd=home, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._running.callback(_kill, process)

    def _asked(self, path: str, key: str) -> object:
        """Return what the master says about itself; None while it does not answer."""
        connection = http.client.HTTPConnection(HOST, self._master, timeout=REQUEST_TIMEOUT_S)
        try:
            connection.request("GET", path)
            found: object = json.loads(connection.getresponse().read())[key]
        except (OSError, http.client.HTTPException, ValueError, KeyError):
            return None
        finally:
            connection.close()
        return found

    def _racks(self) -> int:
        topology = self._asked("/dir/status", "Topology")
        centers = topology["DataCenters"] or [] if isinstance(topology, dict) else []
        return sum(len(center["Racks"] or []) for center in centers)

    def _takes_files(self) -> bool:
        try:
            self.push_small("first", 1, 1)
        except (PeerFailed, OSError):
            return False
        return True


def find() -> str | None:
    """Return the path of ``weed``, which may be beside this interpreter; None if it is not installed."""
    return shutil.which("weed") or shutil.which("weed", path=str(Path(sys.executable).parent))


class HttpCaller:
    """Small HTTP requests over one connection, with as little work as possible in this process.

    Answers must carry their length, as those of a filer to small requests do.

    Args:
        address: ``host:port``.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=REQUEST_TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def put(self, path: str, content: bytes) -> None:
        """Store a file.

        Raises:
            PeerFailed: the answer is not one of success.
        """
        self._request("PUT", path, content)

    def get(self, path: str) -> bytes:
        """Return the content of a file.

        Raises:
            PeerFailed: the answer is not one of success.
        """
        return self._request("GET", path)

    def __enter__(self) -> HttpCaller:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _request(self, method: str, path: str, content: bytes = b"") -> bytes:
        head = f"{method} {path} HTTP/1.1\r\nHost: {self._address}\r\nContent-Length: {len(content)}\r\n\r\n"
        self._socket.sendall(head.encode() + content)
        received = b""
        while _HEAD_END not in received:
            received += self._some()
        answer, _, body = received.partition(_HEAD_END)
        status, length = read_head(answer)
        while len(body) < length:
            body += self._some()
        if status not in _OK:
            raise PeerFailed(f"it answered {method} with {status} {body[:200]!r}")
        return body

    def _some(self) -> bytes:
        some = self._socket.recv(MIB)
        if not some:
            raise PeerFailed("it closed the connection")
        return some


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process at once; asked to end, a volume server takes seconds."""
    process.kill()
    process.wait()


def _listens(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=REQUEST_TIMEOUT_S).close()
    except OSError:
        return False
    return True
