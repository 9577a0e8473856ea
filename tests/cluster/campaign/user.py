"""A user in a process of its own.

``python -m tests.cluster.campaign.user ADDRESS NAME SEED SCRATCH DEADLINE_S allowed|errors``, the last saying
what UNAVAILABLE is.

Commands come as JSON lines ``[name, {arguments}]`` on standard input; each is answered with a line.
"""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from random import Random

from taskworker import Client
from tests.cluster.campaign import transfers
from tests.cluster.campaign.work import RandomWork, Tally

_PAUSE_S = 0.02  # between two operations: several users are to share few processors with a pool


class Commands:
    """What a user process can be told to do; each returns what is answered."""

    def __init__(self, client: Client, name: str, seed: int, scratch: Path, *, may_be_refused: bool) -> None:
        self._client = client
        self._name = name
        self._routine = RandomWork(client, name, Random(seed), scratch, may_be_refused=may_be_refused)
        self._at_work = threading.Event()
        self._thread: threading.Thread | None = None

    def resume(self) -> dict[str, object]:
        """Work from now on."""
        self._at_work.set()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()
        return {}

    def pause(self) -> dict[str, object]:
        """Finish the operation in hand and stop; what was done since the last answer of this kind."""
        self._at_work.clear()
        if self._thread is not None:
            self._thread.join()
        return self._told()

    def verify(self) -> dict[str, object]:
        """Read every file and hold it against what was acknowledged."""
        checked = self._routine.verify()
        return {**self._told(), "bytes": checked}

    def push(self, name: str, size: int, chunk_size: int | None = None) -> dict[str, object]:
        """See :func:`transfers.push`."""
        return asdict(transfers.push(self._client, self._name, name, size, chunk_size))

    def get(self, name: str) -> dict[str, object]:
        """See :func:`transfers.get`."""
        return asdict(transfers.get(self._client, self._name, name))

    def delete(self, name: str) -> dict[str, object]:
        """Delete a file."""
        head = self._client.find(name, user_id=self._name)
        assert head is not None
        self._client.delete(head.file_id, user_id=self._name)
        return {}

    def time_gets(self, names: list[str], seconds: float) -> dict[str, object]:
        """See :func:`transfers.time_gets`."""
        return {"seconds": transfers.time_gets(self._client, self._name, names, seconds)}

    def _work(self) -> None:
        while self._at_work.is_set():
            self._routine.step()
            threading.Event().wait(_PAUSE_S)

    def _told(self) -> dict[str, object]:
        tally, self._routine.tally = self._routine.tally, Tally()
        return tally.document()


def main(address: str, name: str, seed: str, scratch: str, deadline_s: str, refusals: str) -> None:
    """Obey until standard input ends."""
    with Client(address, timeout_s=float(deadline_s)) as client:
        commands = Commands(client, name, int(seed), Path(scratch), may_be_refused=refusals == "allowed")
        for line in sys.stdin:
            command, arguments = json.loads(line)
            print(json.dumps(getattr(commands, command)(**arguments)), flush=True)
        commands.pause()


if __name__ == "__main__":
    main(*sys.argv[1:])
