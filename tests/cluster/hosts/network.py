"""Namespaces that reach each other over a bridge, as machines on one network do, and a tap on all that passes.

Each machine has a ``/srv`` of its own, and knows all by their names.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

import pytest

from tests.cluster.links.shape import Shape

_NETWORK = "10.77.0"
_TAP = """
import socket, sys
tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
tap.bind(("switch", 0))
tap.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
print("up", flush=True)
with open(sys.argv[1], "wb") as kept:
    while packet := tap.recv(65536):
        kept.write(packet)
        kept.flush()
"""


def why_not() -> str:
    """Why there can be no namespaces with a bridge on this machine; empty: there can."""
    if os.geteuid():
        return "it needs root, for network namespaces"
    probe = "ip link add veth0 type veth peer name veth1 && ip link add switch type bridge && ip tuntap add t mode tap"
    ended = subprocess.run(["unshare", "-n", "sh", "-c", probe], check=False, capture_output=True, text=True)
    return f"no network namespaces with bridges: {ended.stderr.strip()}" if ended.returncode else ""


def require_namespaces() -> None:
    """Skip the test, loudly, where there can be no namespaces."""
    if why := why_not():
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn(f"several machines are NOT tested: {why}", stacklevel=2)
        pytest.skip(f"several machines are NOT tested: {why}")


class Hosts:
    """Machines; a context manager. They end with it, and so do the processes on them.

    Args:
        count: how many.
        capture: gets all that passes between them.
        disks: gets the ``/srv`` of each machine, by its number.
        names: what each machine is called.
        shape: of the line of every machine but the first one; None: lines as fast as the kernel is.
    """

    def __init__(
        self,
        count: int,
        capture: Path,
        disks: Path | None = None,
        names: Sequence[str] = (),
        shape: Shape | None = None,
    ) -> None:
        self._count = count
        self._capture = capture
        self._disks = disks
        self._names = names
        self._shape = shape
        self._emulator: subprocess.Popen[bytes] | None = None
        self._switch: subprocess.Popen[bytes] | None = None
        self._hosts: list[subprocess.Popen[bytes]] = []
        self._tap: subprocess.Popen[bytes] | None = None

    def address(self, number: int) -> str:
        """The IP address of a machine."""
        return f"{_NETWORK}.{number + 1}"

    def inside(self, number: int) -> tuple[str, ...]:
        """What to write before a command to run it on a machine."""
        return _inside(self._hosts[number])

    def disk(self, number: int) -> Path:
        """A machine's ``/srv``, as others on this one see it."""
        assert self._disks is not None
        return self._disks / str(number)

    def run(self, number: int, *command: str, **environment: str) -> str:
        """Run a command on a machine; return what it writes to standard output. It must end well."""
        ended = subprocess.run(
            [*self.inside(number), *command],
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, **environment},
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    def captured(self) -> bytes:
        """All packets that have passed so far."""
        return self._capture.read_bytes()

    def __enter__(self) -> Hosts:
        try:
            self._make()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        for process in (self._tap, self._emulator, *self._hosts, self._switch):
            if process is not None:
                process.kill()
                process.communicate()

    def _make(self) -> None:
        self._switch = _namespace()
        switch = _inside(self._switch)
        _run(switch, "ip", "link", "add", "switch", "type", "bridge")
        _run(switch, "ip", "link", "set", "switch", "up")
        if self._shape is not None:
            self._start_emulator(self._shape)
        for number in range(self._count):
            host = _namespace()
            self._hosts.append(host)
            if self._shape is None or number == 0:
                port = f"port{number}"
                _run(switch, "ip", "link", "add", port, "type", "veth", "peer", "name", "net0", "netns", str(host.pid))
            else:
                port = f"line{number}a"
                _run(switch, "ip", "link", "set", f"line{number}b", "netns", str(host.pid), "name", "net0")
            _run(switch, "ip", "link", "set", port, "master", "switch", "up")
            _run(_inside(host), "ip", "link", "set", "lo", "up")
            _run(_inside(host), "ip", "address", "add", f"{self.address(number)}/24", "dev", "net0")
            _run(_inside(host), "ip", "link", "set", "net0", "up")
            self._mount(number)
        command = [*switch, sys.executable, "-c", _TAP, str(self._capture)]
        _run(switch, "ip", "link", "set", "switch", "promisc", "on")
        self._tap = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._tap.stdout is not None
        assert self._tap.stdout.readline() == b"up\n"

    def _start_emulator(self, shape: Shape) -> None:
        assert self._switch is not None
        lines = [f"line{number}" for number in range(1, self._count)]
        command = [*_inside(self._switch), sys.executable, "-m", "tests.cluster.links.emulator", "--taps", *lines]
        self._emulator = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]
        )
        assert self._emulator.stdin is not None
        assert self._emulator.stdout is not None
        assert self._emulator.stdout.readline() == b"up\n"
        for number in range(len(lines)):
            self._emulator.stdin.write(f"{number} {json.dumps(asdict(shape))}\n".encode())
            self._emulator.stdin.flush()

    def _mount(self, number: int) -> None:
        """Give a machine its own ``/srv``, and the names of all."""
        if self._disks is None:
            return
        self.disk(number).mkdir(parents=True)
        names = self._disks / "names"
        lines = [f"{self.address(each)} {name}\n" for each, name in enumerate(self._names)]
        names.write_text("".join(["127.0.0.1 localhost\n", *lines]))
        _run(self.inside(number), "mount", "--bind", str(self.disk(number)), "/srv")
        _run(self.inside(number), "mount", "--bind", str(names), "/etc/hosts")


def _namespace() -> subprocess.Popen[bytes]:
    # `cat` ends with this process, and the namespace with it.
    holder = subprocess.Popen(
        ["unshare", "--net", "--mount", "sh", "-c", "echo up; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"up\n"
    return holder


def _inside(holder: subprocess.Popen[bytes]) -> tuple[str, ...]:
    return ("nsenter", f"--net=/proc/{holder.pid}/ns/net", f"--mount=/proc/{holder.pid}/ns/mnt", f"--wd={Path.cwd()}")


def _run(inside: Sequence[str], *command: str) -> None:
    subprocess.run([*inside, *command], check=True)
