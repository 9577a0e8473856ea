"""A real process under load, killed again and again: what it said was stored is stored."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest

from storage import FileNotFound, FileStorage, Version
from tests.crash.victim import USER, digest_of, open_store

KILLS = 100
CAMPAIGN_KILLS = 5000
LOAD_S = 0.2
LATER_S = 0.02
LINES_MAX = 40  # two for every operation
CHECK_EVERY = 8  # rounds; in between one recovery follows on another
REPOSITORY = Path(__file__).parents[2]


@dataclass(slots=True)
class Told:
    """What children have said.

    Attributes:
        digests: operation → digest of the content it was to store.
        acknowledged: file id → version ids acknowledged, oldest first.
        deleting: files whose delete has begun, and that were not seen since.
        deleted: files whose delete was acknowledged.
        verified: version ids that were read back.
        operations: acknowledgements in all.
    """

    digests: dict[str, str] = field(default_factory=dict)
    acknowledged: dict[str, list[str]] = field(default_factory=dict)
    deleting: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)
    verified: set[str] = field(default_factory=set)
    operations: int = 0
    _deletes: dict[str, str] = field(default_factory=dict)

    def take(self, line: dict[str, Any]) -> None:
        """One line of a child."""
        assert "failed" not in line, line["failed"]
        if "begin" in line:
            self._begin(line)
        elif "done" in line:
            self._done(line)

    def _begin(self, line: dict[str, Any]) -> None:
        if "digest" in line:
            self.digests[line["begin"]] = line["digest"]
        else:
            self.deleting.add(line["file_id"])
            self._deletes[line["begin"]] = line["file_id"]

    def _done(self, line: dict[str, Any]) -> None:
        self.operations += 1
        op, file_id = line["done"], line["file_id"]
        if op in self._deletes:
            self.deleted.add(file_id)
        elif line["version_id"] not in self.acknowledged.setdefault(file_id, []):  # equal content makes no new one
            self.acknowledged[file_id].append(line["version_id"])


class Victim:
    """The process that forks children to be killed."""

    def __init__(self, store: Path, told: Told) -> None:
        self._told = told
        self._buffer = b""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.victim", str(store)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=REPOSITORY,
        )

    def round(self, number: int, lines: int, life_s: float) -> None:
        """Have a child work until it has said so many lines, and that much longer; kill it, and take in all it said."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{number}\n".encode())
        self._process.stdin.flush()
        pid = self._await("pid")
        while lines > 0:
            for line in self._lines(60):
                self._told.take(line)
                lines -= 1
        deadline = time.monotonic() + life_s
        while (left := deadline - time.monotonic()) > 0:
            for line in self._lines(left):
                self._told.take(line)
        os.kill(pid, signal.SIGKILL)
        self._await("ended")

    def _await(self, key: str) -> int:
        while True:
            for line in self._lines(60):
                self._told.take(line)
                if key in line:
                    return int(line[key])

    def _lines(self, timeout_s: float) -> Iterator[dict[str, Any]]:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        if not self._buffer and not select.select([descriptor], [], [], timeout_s)[0]:
            return
        if b"\n" not in self._buffer:
            received = os.read(descriptor, 1 << 16)
            assert received, "the victim's parent is gone"
            self._buffer += received
        while b"\n" in self._buffer:
            line, self._buffer = self._buffer.split(b"\n", 1)
            yield json.loads(line)

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(60)


@contextmanager
def victim(store: Path, told: Told) -> Iterator[Victim]:
    process = Victim(store, told)
    try:
        yield process
    finally:
        process.close()


def check(store: FileStorage, told: Told, *, anew: bool) -> None:
    """Hold the store against what was said. ``anew``: read what was read before, too."""
    seen: set[str] = set()
    for head in store.list_files(user_id=USER):
        seen.add(head.file_id)
        assert head.file_id not in told.deleted, f"{head.filename} was deleted"
        history = store.history(head.file_id, user_id=USER)[::-1]
        check_chain(history, told.acknowledged.get(head.file_id, []), told)
        for version in history:
            if anew or version.version_id not in told.verified:
                content = store.get(head.file_id, user_id=USER, version_id=version.version_id)
                assert digest_of(content) == told.digests[version.note]
                told.verified.add(version.version_id)
    missing = told.acknowledged.keys() - seen
    assert missing <= told.deleting, f"gone without a delete: {missing - told.deleting}"
    told.deleting -= seen
    for file_id in missing:
        with pytest.raises(FileNotFound):
            store.stat(file_id, user_id=USER)


def check_chain(history: list[Version], acknowledged: list[str], told: Told) -> None:
    """All that was acknowledged is there, in order; what else is there had at least begun."""
    assert [version.version_id for version in history if version.version_id in acknowledged] == acknowledged
    for before, version in zip([None, *history], history, strict=False):
        assert version.parent_id == (before.version_id if before else None)
        assert version.note in told.digests


def kill_again_and_again(path: Path, kills: int, seed: int) -> Told:
    told, rng = Told(), Random(seed)
    with victim(path, told) as process:
        for number in range(kills):
            # At any time, which may be while it opens the store; and at any time after it has worked for a while.
            lines, life_s = (rng.randrange(LINES_MAX), LATER_S) if number % 2 else (0, LOAD_S)
            process.round(number, lines, rng.random() * life_s)
            if number % CHECK_EVERY == CHECK_EVERY - 1:
                with open_store(path) as store:
                    check(store, told, anew=False)
    with open_store(path) as store:
        check(store, told, anew=True)
        assert store.scrub().clean
        store.collect(grace_s=0)
        check(store, told, anew=True)
        assert store.scrub().clean
    return told


def test_kills_under_load(tmp_path: Path) -> None:
    told = kill_again_and_again(tmp_path / "store", KILLS, seed=1)
    assert told.operations > KILLS, "the kills met no load"
    (tmp_path / "store" / "catalog").rename(tmp_path / "catalog before")
    with open_store(tmp_path / "store") as store:
        store.rebuild()
        check(store, told, anew=True)


@pytest.mark.campaign
@pytest.mark.timeout(7200)
def test_many_kills_under_crash_load(tmp_path: Path) -> None:
    kill_again_and_again(tmp_path / "store", CAMPAIGN_KILLS, seed=2)
