"""Other tools that store a file, measured in the same rounds, each as durably as it can.

Only installed tools take part. They do not all do the same work; ``note`` says what each one does.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benchmarks.measure import seconds_of

PASSWORD = "benchmark"  # restic requires one


class Peer(Protocol):
    """A tool that can store a file and read it back. ``home`` is an empty directory for it."""

    @property
    def name(self) -> str:
        """Name of the tool in reports."""

    @property
    def note(self) -> str:
        """What the tool does and does not do."""

    def prepare(self, home: Path) -> None:
        """Make an empty store. Not timed."""

    def push(self, source: Path, home: Path) -> None:
        """Store the file durably."""

    def get(self, source: Path, home: Path) -> None:
        """Read the stored file back to its end."""


@dataclass(frozen=True, slots=True)
class PlainCopy:
    """``dd conv=fsync``: one plain copy, no redundancy, no checks."""

    name: str = "plain copy + fsync (dd)"
    note: str = "one copy, nothing checked"

    def prepare(self, home: Path) -> None:
        """Nothing to make."""

    def push(self, source: Path, home: Path) -> None:
        """Copy and fsync."""
        _run(["dd", f"if={source}", f"of={home / 'copy'}", "bs=1M", "conv=fsync", "status=none"])

    def get(self, source: Path, home: Path) -> None:
        """Read the copy."""
        _run(["dd", f"if={home / 'copy'}", "of=/dev/null", "bs=1M", "status=none"])


@dataclass(frozen=True, slots=True)
class ZfecTool:
    """zfec's file tool with the same 4-of-6 code. It does not sync, so ``sync FILE...`` is run after it."""

    encoder: str
    decoder: str
    name: str = "zfec file tool + sync"
    note: str = "six share files, no digests; the get writes its output without sync"

    def prepare(self, home: Path) -> None:
        """Nothing to make."""

    def push(self, source: Path, home: Path) -> None:
        """Make six shares and sync them."""
        _run([self.encoder, "-q", "-k", "4", "-m", "6", "-d", str(home), "-p", "share", str(source)])
        _run(["sync", *map(str, sorted(home.glob("share*.fec"))), str(home)])

    def get(self, source: Path, home: Path) -> None:
        """Restore the file from its first four shares."""
        shares = sorted(home.glob("share*.fec"))[:4]
        _run([self.decoder, "-f", "-o", str(home / "restored"), *map(str, shares)])


@dataclass(frozen=True, slots=True)
class Borg:
    """borg without encryption and compression, its fastest configuration. It fsyncs its segments."""

    name: str = "borg"
    note: str = "one copy, deduplicated, unencrypted, uncompressed"

    def prepare(self, home: Path) -> None:
        """Make a repository."""
        _run(["borg", "init", "--encryption", "none", str(home / "repo")], self._environment(home))

    def push(self, source: Path, home: Path) -> None:
        """Make an archive of the file."""
        command = ["borg", "create", "--compression", "none", f"{home / 'repo'}::file", source.name]
        _run(command, self._environment(home), source.parent)

    def get(self, source: Path, home: Path) -> None:
        """Extract the file and discard it."""
        _run(["borg", "extract", "--stdout", f"{home / 'repo'}::file", source.name], self._environment(home))

    def _environment(self, home: Path) -> dict[str, str]:
        return {"BORG_BASE_DIR": str(home), "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"}


@dataclass(frozen=True, slots=True)
class Restic:
    """restic without compression. It always encrypts, and fsyncs its packs."""

    name: str = "restic"
    note: str = "one copy, deduplicated, encrypted, uncompressed"

    def prepare(self, home: Path) -> None:
        """Make a repository."""
        _run(["restic", "init", "--repository-version", "2"], self._environment(home))

    def push(self, source: Path, home: Path) -> None:
        """Make a snapshot of the file."""
        _run(["restic", "backup", "--compression", "off", str(source)], self._environment(home))

    def get(self, source: Path, home: Path) -> None:
        """Dump the file and discard it."""
        _run(["restic", "dump", "latest", str(source)], self._environment(home))

    def _environment(self, home: Path) -> dict[str, str]:
        return {
            "RESTIC_REPOSITORY": str(home / "repo"),
            "RESTIC_PASSWORD": PASSWORD,
            "RESTIC_CACHE_DIR": str(home / "cache"),
        }


@dataclass(frozen=True, slots=True)
class PeerTimes:
    """Seconds that one peer took in one round."""

    push: float
    get: float


def installed() -> list[Peer]:
    """Return the peers that are installed."""
    peers: list[Peer] = [PlainCopy()]
    encoder, decoder = _script("zfec"), _script("zunfec")
    if encoder and decoder:
        peers.append(ZfecTool(encoder, decoder))
    if shutil.which("borg"):
        peers.append(Borg())
    if shutil.which("restic"):
        peers.append(Restic())
    return peers


def measure(peer: Peer, source: Path, home: Path) -> PeerTimes:
    """Time one push and one get of ``source`` with ``peer``, in the empty directory ``home``."""
    peer.prepare(home)
    os.sync()
    push = seconds_of(lambda: peer.push(source, home))
    os.sync()
    return PeerTimes(push, seconds_of(lambda: peer.get(source, home)))


def _script(name: str) -> str | None:
    """Find a console script in this Python environment or on the PATH."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name)


def _run(command: Sequence[str], environment: Mapping[str, str] | None = None, directory: Path | None = None) -> None:
    subprocess.run(
        command,
        check=True,
        cwd=directory,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
