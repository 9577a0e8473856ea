"""A pool's namespace with a link to each worker's namespace, and to that of a guest, who reaches all over it.

All addresses are of 127.0.0.0/8, as servers listen on no others. Each namespace has only its own of them, so that the
rest is reached over the links.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

from tests.cluster.links.shape import Shape

POOL_HOST = "127.1.0.1"
GUEST_HOST = "127.3.0.1"
_INSIDE = "LINKS_INSIDE"
_MTU = 1400


def why_not() -> str:
    """Why there can be no namespaces with links on this machine; empty: there can."""
    if os.geteuid() != 0:
        return "it needs root, for network namespaces"
    probe = "ip tuntap add dev probe mode tun && ip link set lo up"
    try:
        ended = subprocess.run(["unshare", "-n", "sh", "-c", probe], check=False, capture_output=True, text=True)
    except FileNotFoundError as error:
        return f"it needs the command {error.filename}"
    return f"no network namespaces with TUN devices: {ended.stderr.strip()}" if ended.returncode else ""


def is_inside() -> bool:
    """Whether this process runs in a namespace of its own, made by :func:`run_inside`."""
    return _INSIDE in os.environ


def run_inside(command: Sequence[str]) -> int:
    """Run a command in a network namespace of its own; return its exit code."""
    return subprocess.run(["unshare", "-n", *command], check=False, env={**os.environ, _INSIDE: "1"}).returncode


class Network:
    """Links from this process's namespace to others; a context manager. The namespaces end with it.

    Args:
        count: how many, without that of the guest, whose number is ``count``.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._holders: list[subprocess.Popen[bytes]] = []
        self._emulator: subprocess.Popen[bytes] | None = None

    def host(self, number: int) -> str:
        """The address at the other end of a link."""
        return f"127.2.0.{number + 1}" if number < self._count else GUEST_HOST

    def inside(self, number: int) -> tuple[str, ...]:
        """What to write before a command to run it at the other end of a link."""
        return ("nsenter", f"--net=/proc/{self._holders[number].pid}/ns/net")

    def shape(self, number: int, shape: Shape) -> None:
        """Shape a link from now on."""
        assert self._emulator is not None
        assert self._emulator.stdin is not None
        self._emulator.stdin.write(f"{number} {json.dumps(asdict(shape))}\n".encode())
        self._emulator.stdin.flush()

    def shape_all(self, shape: Shape) -> None:
        """Shape all links from now on, the guest's as well."""
        for number in range(self._count + 1):
            self.shape(number, shape)

    def __enter__(self) -> Network:
        try:
            self._make()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        for process in (self._emulator, *self._holders):
            if process is not None:
                process.kill()
                process.communicate()

    def _make(self) -> None:
        _only_address(POOL_HOST, ())
        _run((), "sysctl", "-qw", "net.ipv4.ip_forward=1")
        names = [f"link{number}" for number in range(self._count + 1)]
        command = [sys.executable, "-m", "tests.cluster.links.emulator", *names]
        root = Path(__file__).parents[3]
        self._emulator = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root)
        assert self._emulator.stdout is not None
        assert self._emulator.stdout.readline() == b"up\n"
        for number, name in enumerate(names):
            # `cat` ends with this process, and the namespace with it.
            holder = subprocess.Popen(
                ["unshare", "-n", "sh", "-c", "echo up; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            self._holders.append(holder)
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"up\n"
            _run((), "ip", "link", "set", f"{name}b", "netns", str(holder.pid))
            inside = self.inside(number)
            _only_address(self.host(number), inside)
            _route(f"{name}a", POOL_HOST, self.host(number), ())
            _route(f"{name}b", self.host(number), POOL_HOST, inside)
            for other in range(self._count) if number == self._count else [self._count]:
                _also(f"{name}b", self.host(number), self.host(other), inside)


def _only_address(host: str, inside: Sequence[str]) -> None:
    """Have a namespace's own loopback reach nothing but 127.0.0.1 and this address."""
    _run(inside, "ip", "link", "set", "lo", "up")
    _run(inside, "ip", "address", "del", "127.0.0.1/8", "dev", "lo")
    for address in ("127.0.0.1", host):
        _run(inside, "ip", "address", "add", f"{address}/32", "dev", "lo")
    _run(inside, "sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1")


def _route(device: str, source: str, target: str, inside: Sequence[str]) -> None:
    _run(inside, "ip", "link", "set", device, "up", "mtu", str(_MTU))
    _also(device, source, target, inside)


def _also(device: str, source: str, target: str, inside: Sequence[str]) -> None:
    _run(inside, "ip", "route", "add", f"{target}/32", "dev", device, "src", source)


def _run(inside: Sequence[str], *command: str) -> None:
    subprocess.run([*inside, *command], check=True)
