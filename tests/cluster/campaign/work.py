"""A user at work: pushes, gets, revisions, syncs and deletes at random, each answer held against the ledger."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from storage.errors import StorageError
from taskworker import Client
from taskworker.errors import StorageUnavailable
from tests.cluster.campaign.ledger import Entry, Wrong

KIB = 1024
MIB = 1024 * KIB
NAMES = tuple(f"file-{number}" for number in range(6))
# Both sides of what rides along with a commit (64 KiB), of a chunk (1 MiB) and of a message.
SIZES = (0, 1, 100, 5_000, 64 * KIB, 64 * KIB + 1, 300_000, MIB, MIB + 1, 3 * MIB + 7)
_COMMON_SEEDS = 8  # contents that all users push: chunks that are there already
_ERRORS_KEPT = 20


@dataclass(slots=True)
class Tally:
    """What was done since the last look, and what came of it."""

    operations: Counter[str] = field(default_factory=Counter)
    refused: int = 0  # UNAVAILABLE, where that is allowed
    errors: list[str] = field(default_factory=list)
    longest_s: float = 0.0

    def document(self) -> dict[str, object]:
        """As JSON has it."""
        return {
            "operations": dict(self.operations),
            "refused": self.refused,
            "errors": self.errors,
            "longest_s": self.longest_s,
        }


class RandomWork:
    """Does one random operation after another. Not thread-safe.

    Args:
        client: connected to the pool.
        user_id: whose files they are; nobody else touches them.
        rng: decides everything.
        scratch: a directory for local copies.
        may_be_refused: UNAVAILABLE is no error, as while the pool itself is away.
    """

    def __init__(self, client: Client, user_id: str, rng: Random, scratch: Path, *, may_be_refused: bool) -> None:
        self._client = client
        self._user_id = user_id
        self._rng = rng
        self._scratch = scratch
        self._may_be_refused = may_be_refused
        self._entries = {name: Entry() for name in NAMES}
        self.tally = Tally()

    def step(self) -> None:
        """One operation."""
        name = self._rng.choice(NAMES)
        entry = self._entries[name]
        if entry.in_doubt:
            self._do("look", self._look, name, entry)
        elif entry.content is None:
            self._do("push", self._push, name, entry)
        else:
            kinds = (self._push, self._get, self._revise, self._sync_up, self._sync_down, self._delete)
            kind = self._rng.choices(kinds, weights=(4, 4, 3, 2, 2, 1))[0]
            self._do(kind.__name__.strip("_"), kind, name, entry)

    def verify(self) -> int:
        """Read every file; the bytes that were held against the ledger."""
        done = 0
        for name, entry in self._entries.items():
            self._do("verify", self._look, name, entry)
            done += len(entry.content or b"")
        return done

    def _do(self, kind: str, operation: Callable[[str, Entry], None], name: str, entry: Entry) -> None:
        tally = self.tally
        began_s = time.monotonic()
        try:
            operation(name, entry)
            tally.operations[kind] += 1
        except StorageUnavailable as error:
            tally.refused += 1
            if not self._may_be_refused:
                self._note(kind, name, error)
        except (StorageError, Wrong, OSError) as error:
            self._note(kind, name, error)
        tally.longest_s = max(tally.longest_s, time.monotonic() - began_s)

    def _note(self, kind: str, name: str, error: Exception) -> None:
        if len(self.tally.errors) < _ERRORS_KEPT:
            self.tally.errors.append(f"{self._user_id}: {kind} {name}: {type(error).__name__}: {error}")

    # -- operations ------------------------------------------------------------------------------

    def _content(self) -> bytes:
        size = self._rng.choice(SIZES)
        if self._rng.random() < 0.2:
            return Random(self._rng.randrange(_COMMON_SEEDS)).randbytes(size)
        return self._rng.randbytes(size)

    def _changed(self, content: bytes) -> bytes:
        """The content with something overwritten, cut off or added."""
        at = self._rng.randrange(len(content) + 1)
        piece = self._rng.randbytes(self._rng.choice((1, 1000, 200_000)))
        if self._rng.random() < 0.2:
            return content[:at]
        return content[:at] + piece + content[at + len(piece) :]

    def _push(self, name: str, entry: Entry) -> None:
        content = self._content()
        entry.doubt(content)
        version = self._client.push(content, filename=name, user_id=self._user_id)
        entry.acknowledge(version.file_id, version.version_id, content)

    def _get(self, name: str, entry: Entry) -> None:
        del name
        found = self._client.get(entry.file_id, user_id=self._user_id)
        if found != entry.content:
            entry.settle(entry.file_id, entry.version_id, found)

    def _look(self, name: str, entry: Entry) -> None:
        """What the pool shows under a name, known or in doubt."""
        head = self._client.find(name, user_id=self._user_id)
        if head is None:
            entry.settle("", "", None)
            return
        found = self._client.get(head.file_id, user_id=self._user_id, version_id=head.version_id)
        entry.settle(head.file_id, head.version_id, found)

    def _revise(self, name: str, entry: Entry) -> None:
        del name
        assert entry.content is not None
        content = self._changed(entry.content)
        entry.doubt(content)
        version = self._client.revise(entry.file_id, content, user_id=self._user_id)
        entry.acknowledge(version.file_id, version.version_id, content)

    def _sync_up(self, name: str, entry: Entry) -> None:
        """A local change is carried to the pool."""
        assert entry.content is not None
        content = self._changed(entry.content)
        local = self._local(name, content)
        base = entry.version_id
        entry.doubt(content)
        result = self._client.sync(entry.file_id, local, user_id=self._user_id, base_version_id=base)
        entry.acknowledge(entry.file_id, result.version.version_id, content)

    def _sync_down(self, name: str, entry: Entry) -> None:
        """A change in the pool is carried to an older local copy."""
        assert entry.content is not None
        base, local = entry.version_id, self._local(name, entry.content)
        self._revise(name, entry)
        self._client.sync(entry.file_id, local, user_id=self._user_id, base_version_id=base)
        if local.read_bytes() != entry.content:
            raise Wrong("a synced copy is not the head")

    def _delete(self, name: str, entry: Entry) -> None:
        del name
        entry.doubt(None)
        self._client.delete(entry.file_id, user_id=self._user_id)
        entry.acknowledge("", "", None)

    def _local(self, name: str, content: bytes) -> Path:
        path = self._scratch / name
        path.write_bytes(content)
        return path
