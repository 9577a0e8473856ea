"""User processes as the campaign holds them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Answer = dict[str, Any]


class User:
    """One user process; see :mod:`tests.cluster.campaign.user` for what it can be told.

    Args:
        address: of the pool.
        name: the user's id.
        seed: decides what it does.
        directory: for its local files and its log.
        deadline_s: of each call.
        may_be_refused: UNAVAILABLE is no error.
        module: what it runs.
    """

    def __init__(
        self,
        address: str,
        name: str,
        seed: int,
        directory: Path,
        *,
        deadline_s: float = 60.0,
        may_be_refused: bool = False,
        module: str = "tests.cluster.campaign.user",
    ) -> None:
        scratch = directory / f"{name}-files"
        scratch.mkdir(parents=True)
        arguments = [address, name, str(seed), str(scratch), str(deadline_s)]
        arguments.append("allowed" if may_be_refused else "errors")
        self._log = directory / f"{name}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def begin(self, command: str, **arguments: object) -> Callable[[], Answer]:
        """Tell it what to do; what comes back waits for its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([command, arguments]) + "\n")
        self._process.stdin.flush()
        return self._answer

    def do(self, command: str, **arguments: object) -> Answer:
        """Tell it what to do, and wait for its answer."""
        return self.begin(command, **arguments)()

    def _answer(self) -> Answer:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise AssertionError(f"a user ended with {self._process.wait()}: {self._log.read_text()[-2000:]}")
        answer: Answer = json.loads(line)
        return answer

    def end(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


@dataclass(slots=True)
class Account:
    """What all users did, and what they were told."""

    operations: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    errors: list[str] = field(default_factory=list)
    longest_s: float = 0.0
    bytes_verified: int = 0

    def add(self, answer: Answer) -> None:
        """Take in what one user told."""
        self.operations.update(answer["operations"])
        self.refused += answer["refused"]
        self.errors += answer["errors"]
        self.longest_s = max(self.longest_s, answer["longest_s"])
        self.bytes_verified += answer.get("bytes", 0)

    def __str__(self) -> str:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(self.operations.items()))
        return f"{sum(self.operations.values()):,} operations ({kinds})"


class Users:
    """Several users at work at once; a context manager that ends them.

    Attributes:
        account: what they did until they were last paused or had their files verified.
    """

    def __init__(self, address: str, count: int, seed: int, directory: Path, *, may_be_refused: bool = False) -> None:
        self._users = [
            User(address, f"user-{number}", 1000 * seed + number, directory, may_be_refused=may_be_refused)
            for number in range(count)
        ]
        self._working = False
        self.account = Account()

    def resume(self) -> None:
        """Have them work, if they do not."""
        if not self._working:
            self._all("resume")
            self._working = True

    def pause(self) -> None:
        """Have them finish what they are at, and stop."""
        if self._working:
            self._working = False
            for answer in self._all("pause"):
                self.account.add(answer)

    def verify(self) -> None:
        """Have them read all their files."""
        assert not self._working
        for answer in self._all("verify"):
            self.account.add(answer)

    def _all(self, command: str) -> list[Answer]:
        return [answer() for answer in [user.begin(command) for user in self._users]]

    def __enter__(self) -> Users:
        return self

    def __exit__(self, *_: object) -> None:
        for user in self._users:
            user.end()
