"""An S3 gateway in its own process, as the command line starts it, and the client of large objects."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.client_relay import RelayCaller
from benchmarks.measure import seconds_of
from benchmarks.processes import MemoryWatch, PeakMemory, obey
from benchmarks.program_pools import Program
from benchmarks.s3_calls import ACCESS_KEY_ID, SECRET, S3Caller
from benchmarks.workload import USER, RandomContent


class Gateway:
    """A gateway of a pool. Its access key is that of :mod:`benchmarks.s3_calls`.

    Args:
        home: a directory for its files; it need not exist.
        pool: ``host:port`` of the pool.
        options: more of them for the command.
    """

    def __init__(self, home: Path, pool: str, *options: str) -> None:
        self._home, self._pool, self._options = home, pool, options

    def __enter__(self) -> Self:
        self._home.mkdir(parents=True, exist_ok=True)
        keys = self._home / "keys.json"
        with os.fdopen(os.open(keys, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump({ACCESS_KEY_ID: {"secret": SECRET, "user": USER}}, file)
        arguments = ["--pool", self._pool, "gateway", "s3", "--listen", "127.0.0.1:0", "--keys", str(keys)]
        arguments += self._options
        with ExitStack() as stack:
            self._program = stack.enter_context(Program(arguments, self._home / "gateway.log"))
            self._watch = MemoryWatch(self._program.pid)
            stack.callback(self._watch.stop)
            self._running = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.__exit__(kind, error, trace)

    @property
    def address(self) -> str:
        """``host:port`` that it listens at."""
        return self._program.address

    @property
    def pid(self) -> int:
        """The process id."""
        return self._program.pid

    @property
    def memory(self) -> PeakMemory:
        """Its peak memory so far."""
        return self._watch.peak()


class _Tasks:
    """The tasks of a client process. Connections stay open between tasks."""

    def __init__(self) -> None:
        self._callers: dict[str, S3Caller] = {}
        self._relays: dict[str, RelayCaller] = {}
        self._held: list[S3Caller] = []

    def connect(self, address: str, makes_bucket: bool = True) -> None:
        """Connect to a server, and make the bucket."""
        self._callers[address] = S3Caller(address)
        if makes_bucket:
            self._callers[address].make_bucket()

    def put(self, address: str, name: str, source: str) -> dict[str, float]:
        """Put a file as an object; return the seconds that this took."""
        return {"took": seconds_of(lambda: self._callers[address].put_file(name, Path(source)))}

    def get(self, address: str, name: str) -> dict[str, float]:
        """Read an object to its end; return the seconds that this took."""
        return {"took": seconds_of(lambda: self._callers[address].drain(name))}

    def connect_relay(self, address: str) -> None:
        """Connect to a relay."""
        self._relays[address] = RelayCaller(address)

    def put_relayed(self, address: str, name: str, source: str) -> dict[str, float]:
        """Have a relay push a file; return the seconds that this took."""
        return {"took": seconds_of(lambda: self._relays[address].put_file(name, Path(source)))}

    def get_relayed(self, address: str, name: str) -> dict[str, float]:
        """Have a relay get a file, and read it to its end; return the seconds that this took."""
        return {"took": seconds_of(lambda: self._relays[address].drain(name))}

    def hold(self, address: str, count: int) -> None:
        """Open more connections, and keep them."""
        self._held += [S3Caller(address) for _ in range(count)]

    def ask_held(self, name: str) -> dict[str, float]:
        """Ask for an object at all connections held, before any answer is read; return how many were answered."""
        for caller in self._held:
            caller.ask(name)
        return {"answered": sum(bool(caller.answer()) for caller in self._held)}

    def let_go(self) -> None:
        """Close the connections held."""
        for caller in self._held:
            caller.close()
        self._held.clear()


def source_of(directory: Path, name: str, size: int) -> Path:
    """A file with random content, which depends on its name."""
    return RandomContent(name, size).write_to(directory / name)


if __name__ == "__main__":
    obey(_Tasks())
