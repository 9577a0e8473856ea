"""Random calls of one user: all that make, change, read and delete files, each answer held against the model."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from storage import ErasureProfile
from storage.errors import ConflictError, FileNotFound, InsufficientWorkers, StorageError, VersionNotFound
from storage.limits import KIB, MIB
from taskworker import Client
from taskworker.errors import DeadlineExceeded, StorageUnavailable
from tests.cluster.campaign.histories import Doubt, Files, History, Kept, Shown
from tests.cluster.campaign.ledger import Wrong, told

# Plain ones, ones that are both a file and a folder, ones that listings and records may stumble over.
NAMES = (
    "a", "b", "dir/x", "dir/y", "dir/x/y", "dir//double", "dir2/" + "é" * 150, "中文/文件名", "new\nline", "sp ace ",
    "x" * 500,
)  # fmt: skip
_CHUNKS = (64 * KIB, 256 * KIB, MIB)
# Both sides of what rides along with a commit (64 KiB) and of the sizes of chunks.
_SIZES = (
    *(size + more for size in (64 * KIB, MIB, 2 * MIB) for more in (-1, 0, 1)),
    0, 1, 100, 5_000, 3 * MIB - 1,
)  # fmt: skip
_SMALL_SIZES = (0, 10, 5_000, 70_000)
_CONCATENATED_BYTES_MAX = 12 * MIB
_GONE_LOOKED_AT = 20
_DOUBTS_MAX = len(NAMES) // 2
_REFUSALS = (StorageUnavailable, DeadlineExceeded, InsufficientWorkers)


@dataclass(slots=True)
class Account:
    """What all did together, and what came of it. Thread-safe."""

    calls: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    bytes_verified: int = 0
    longest: tuple[float, str] = (0.0, "none")
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def done(self, kind: str) -> None:
        """A call did what it should."""
        with self._lock:
            self.calls[kind] += 1

    def refuse(self, kind: str, error: Exception) -> None:
        """A call was refused, and may be."""
        with self._lock:
            self.refused[f"{kind}: {type(error).__name__}"] += 1

    def error(self, who: str, what: str, error: Exception | str) -> None:
        """Something must not happen."""
        with self._lock:
            kind = "" if isinstance(error, str) else f"{type(error).__name__}: "
            self.errors.append(f"{who}: {what}: {kind}{error}")

    def took(self, kind: str, seconds: float) -> None:
        """How long a call took."""
        with self._lock:
            self.longest = max(self.longest, (seconds, kind))

    def verified(self, count: int) -> None:
        """So many bytes were read and compared."""
        with self._lock:
            self.bytes_verified += count

    def __str__(self) -> str:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(self.calls.items()))
        return f"{self.calls.total():,} calls ({kinds})"


class RandomCalls:
    """Does one random call after another for one user. Not thread-safe.

    Args:
        client: connected to the pool, with the user's token.
        user_id: whose files they are.
        rng: decides everything.
        scratch: a directory for local copies.
        account: where errors go.
        has_own_key: whether the client encrypts with a key of the user's own, which some calls do not work with.

    Attributes:
        client: may be replaced by one that is connected anew.
        files: what the pool acknowledged.
    """

    def __init__(
        self, client: Client, user_id: str, rng: Random, scratch: Path, account: Account, *, has_own_key: bool
    ) -> None:
        self.client = client
        self.user_id = user_id
        self.files = Files()
        self._rng = rng
        self._local = scratch / f"{user_id}-local"
        self._account = account
        self._has_own_key = has_own_key
        self._common = [Random(seed).randbytes(3 * MIB) for seed in range(2)]  # those of other users too

    def step(self) -> None:
        """One call. A name that is in doubt is looked at first."""
        for name in sorted(self.files.doubts):
            self._settle(name)
        if len(self.files.doubts) > _DOUBTS_MAX:
            return
        kinds: dict[Callable[[], None], float] = {
            self._push: 10, self._push_on_condition: 3, self._get: 8, self._revise: 6, self._sync: 5, self._delete: 4,
            self._delete_version: 5, self._copy: 2.5 if self._has_own_key else 5, self._push_many: 4, self._get_many: 2,
        }  # fmt: skip
        if not self._has_own_key:
            kinds[self._concatenate] = 4
        kind = self._rng.choices(list(kinds), weights=list(kinds.values()))[0]
        if kind in (self._push, self._push_on_condition, self._push_many) or self.files.certain():
            kind()

    def content(self) -> bytes:
        """A random content; some are zeros, and some have chunks that others have too."""
        size, chance = self._rng.choice(_SIZES), self._rng.random()
        if chance < 0.3:
            return self._rng.choice(self._common)[:size]
        return bytes(size) if chance < 0.4 else self._rng.randbytes(size)

    # -- answers and doubts ----------------------------------------------------------------------

    @contextmanager
    def calling(self, kind: str, doubts: dict[str, Doubt] | None = None) -> Iterator[None]:
        """Count a call; what it may do to files stays in doubt if it ends without an answer."""
        self.files.doubts.update(doubts or {})
        began_s = time.monotonic()
        try:
            yield
        except _REFUSALS as error:
            self._account.refuse(kind, error)
        except (StorageError, Wrong, OSError) as error:
            self._account.error(self.user_id, f"{kind} {[name[:30] for name in doubts or ()]}", error)
        else:
            for name in doubts or ():
                self.files.doubts.pop(name, None)
            self._account.done(kind)
        finally:
            self._account.took(kind, time.monotonic() - began_s)

    def stored(self, name: str, version: Any, content: bytes) -> None:
        """A version was acknowledged."""
        if version.size != len(content):
            raise Wrong(f"a version of {version.size} bytes, where {told(content)} were stored")
        self.files.append(name, version.file_id, version.version_id, content)

    def _settle(self, name: str) -> None:
        try:
            head = self.client.find(name, user_id=self.user_id)
            shown = None
            if head is not None:
                history = self.client.history(head.file_id, user_id=self.user_id)
                ids = [version.version_id for version in reversed(history)]
                found = self.client.get(head.file_id, user_id=self.user_id, version_id=head.version_id)
                shown = Shown(head.file_id, ids, found)
        except _REFUSALS as error:
            self._account.refuse("settle", error)
            return
        try:
            self.files.settle(name, shown)
        except Wrong as error:
            self._account.error(self.user_id, f"after a call without an answer, {name[:30]!r}", error)
            self.files.adopt(name, self.read_history(name))

    def read_history(self, name: str) -> History | None:
        """All versions of a file with their contents, as the pool has them now."""
        head = self.client.find(name, user_id=self.user_id)
        if head is None:
            return None
        versions = [
            Kept(
                version.version_id,
                self.client.get(head.file_id, user_id=self.user_id, version_id=version.version_id),
            )
            for version in reversed(self.client.history(head.file_id, user_id=self.user_id))
        ]
        return History(head.file_id, versions)

    # -- calls -----------------------------------------------------------------------------------

    def _any(self) -> tuple[str, History]:
        name = self._rng.choice(self.files.certain())
        return name, self.files.histories[name]

    def _name(self) -> str:
        return self._rng.choice([name for name in NAMES if name not in self.files.doubts])

    def _changed(self, content: bytes) -> bytes:
        """The content with something overwritten, cut off or added."""
        at = self._rng.randrange(len(content) + 1)
        piece = self._rng.randbytes(self._rng.choice((1, 1_000, 70_000)))
        if self._rng.random() < 0.2:
            return content[:at]
        return content[:at] + piece + content[at + len(piece) :]

    def _push(self) -> None:
        name, content = self._name(), self.content()
        more: dict[str, Any] = {}
        if self._rng.random() < 0.3:
            more["chunk_size"] = self._rng.choice(_CHUNKS)
        if not self._has_own_key and self._rng.random() < 0.2:
            more["profile"] = self._rng.choice((ErasureProfile(1, 2), ErasureProfile(1, 3)))
        if not self._has_own_key and self._rng.random() < 0.2:
            more["attributes"] = {"key": self._rng.randbytes(5)}
        note = self._rng.choice(("", "note", "注"))
        with self.calling("push", {name: Doubt(appended=content)}):
            version = self.client.push(content, filename=name, user_id=self.user_id, note=note, **more)
            self.stored(name, version, content)

    def _push_on_condition(self) -> None:
        name, content = self._name(), self.content()
        history = self.files.histories.get(name)
        with self.calling("push on a condition", {name: Doubt(appended=content)}):
            condition: dict[str, Any] = {"if_absent": True}
            holds = history is None
            if self._rng.random() < 0.5:
                wanted = self._rng.choice(history.ids) if history else "0" * 64
                condition, holds = {"if_head": wanted}, history is not None and wanted == history.head.version_id
            try:
                version = self.client.push(content, filename=name, user_id=self.user_id, **condition)
            except (ConflictError, FileNotFound, VersionNotFound):
                if holds:
                    raise
                return
            if not holds:
                raise Wrong(f"it was stored, though {condition} does not hold")
            self.stored(name, version, content)

    def _get(self) -> None:
        _, history = self._any()
        version = self._rng.choice(history.versions)
        offset = self._rng.randrange(len(version.content) + 1)
        length = self._rng.choice((None, 1, 100, 70_000))
        with self.calling("get"):
            found = self.client.get(
                history.file_id, user_id=self.user_id, version_id=version.version_id, offset=offset, length=length
            )
            right = version.content[offset:][:length]
            if found != right:
                raise Wrong(f"{told(found)} from {offset}, where {told(right)} is right")

    def _get_many(self) -> None:
        wanted = [self._any()[1] for _ in range(5)]
        with self.calling("get many"):
            outcomes = self.client.get_many([history.file_id for history in wanted], user_id=self.user_id)
            for outcome, history in zip(outcomes, wanted, strict=True):
                if outcome.error:
                    raise outcome.error
                if outcome.data != history.head.content:
                    raise Wrong(f"{told(outcome.data)}, where {told(history.head.content)} is right")

    def _push_many(self) -> None:
        names = self._rng.sample([name for name in NAMES if name not in self.files.doubts], self._rng.randrange(1, 6))
        small = [self._rng.randbytes(self._rng.choice(_SMALL_SIZES)) for _ in names]
        batch = [
            (name, content if self._rng.random() < 0.8 else self.content())
            for name, content in zip(names, small, strict=True)
        ]
        doubts = {name: Doubt(appended=content) for name, content in batch}
        with self.calling("push many", doubts):
            failed: dict[str, Exception] = {}
            for outcome in self.client.push_many(batch, user_id=self.user_id):
                name, content = batch[outcome.position]
                if outcome.version is None:
                    assert outcome.error is not None
                    failed[name] = outcome.error
                    continue
                self.stored(name, outcome.version, content)
                del self.files.doubts[name]
            for error in failed.values():
                raise error

    def _revise(self) -> None:
        name, history = self._any()
        content = self._changed(history.head.content)
        with self.calling("revise", {name: Doubt(appended=content)}):
            version = self.client.revise(history.file_id, content, user_id=self.user_id, note="revised")
            self.stored(name, version, content)

    def _sync(self) -> None:
        """Carry a change to the pool, or a newer version to the local copy of an older one."""
        name, history = self._any()
        base = history.head
        content = self._changed(base.content) if self._rng.random() < 0.6 else base.content
        if content == base.content:
            base = self._rng.choice(history.versions)
            content, local = history.head.content, base.content
        else:
            local = content
        self._local.write_bytes(local)
        with self.calling("sync", {name: Doubt(appended=content)}):
            result = self.client.sync(
                history.file_id, self._local, user_id=self.user_id, base_version_id=base.version_id
            )
            if self._local.read_bytes() != content:
                raise Wrong("the local copy is not the newest version")
            self.stored(name, result.version, content)

    def _delete(self) -> None:
        name, history = self._any()
        with self.calling("delete", {name: Doubt(deleted=True)}):
            if self._rng.random() < 0.3:
                for outcome in self.client.delete_many([history.file_id], user_id=self.user_id):
                    outcome.result()
            else:
                self.client.delete(history.file_id, user_id=self.user_id)
            self.files.delete(name)

    def _delete_version(self) -> None:
        name, history = self._any()
        version_id = self._rng.choice(history.ids)
        with self.calling("delete a version", {name: Doubt(removed=version_id)}):
            self.client.delete_version(history.file_id, version_id, user_id=self.user_id)
            self.files.remove(name, version_id)

    def _copy(self) -> None:
        _, history = self._any()
        version, to = self._rng.choice(history.versions), self._name()
        with self.calling("copy", {to: Doubt(appended=version.content)}):
            copied = self.client.copy(history.file_id, to, user_id=self.user_id, version_id=version.version_id)
            self.stored(to, copied, version.content)

    def _concatenate(self) -> None:
        parts = [self._any()[1] for _ in range(self._rng.randrange(1, 5))]
        chosen = [(part.file_id, self._rng.choice(part.versions)) for part in parts]
        content = b"".join(version.content for _, version in chosen)
        if len(content) > _CONCATENATED_BYTES_MAX:
            return
        to = self._name()
        with self.calling("concatenate", {to: Doubt(appended=content)}):
            sources = [(file_id, version.version_id) for file_id, version in chosen]
            self.stored(to, self.client.concatenate(sources, to, user_id=self.user_id), content)

    # -- looks at everything ---------------------------------------------------------------------

    def verify(self) -> None:
        """List all files and read every version; nothing may be refused."""
        for name in sorted(self.files.doubts):
            self._settle(name)
        try:
            self._verify_listing()
            for name, history in sorted(self.files.histories.items()):
                found = self.read_history(name)
                if found != history:
                    shown = f"versions {found.ids} of {found.file_id}" if found else "no file"
                    wrong = f"{shown}, where versions {history.ids} of {history.file_id} are right, or other bytes"
                    self._account.error(self.user_id, f"look at {name[:30]!r}", wrong)
                    self.files.adopt(name, found)
                self._account.verified(sum(len(version.content) for version in history.versions))
            self._verify_gone()
        except StorageError as error:
            self._account.error(self.user_id, "look at everything", error)

    def _verify_listing(self) -> None:
        found = {version.filename: version.version_id for version in self.client.iter_files(user_id=self.user_id)}
        right = {name: history.head.version_id for name, history in self.files.histories.items()}
        if found != right:
            differing = sorted(name[:30] for name, _ in found.items() ^ right.items())
            self._account.error(self.user_id, "list", f"other names or versions than acknowledged: {differing}")
        if not self._has_own_key:
            folders = self.client.list_page(user_id=self.user_id, delimiter="/").prefixes
            if set(folders) != {name.partition("/")[0] + "/" for name in right if "/" in name}:
                self._account.error(self.user_id, "list folders", str(folders))

    def _verify_gone(self) -> None:
        """What was deleted last must not be read any more."""
        gone: list[tuple[str, str | None]] = [(file_id, None) for file_id in self.files.deleted[-_GONE_LOOKED_AT:]]
        gone += self.files.removed[-_GONE_LOOKED_AT:]
        for file_id, version_id in gone:
            try:
                self.client.get(file_id, user_id=self.user_id, version_id=version_id)
            except (FileNotFound, VersionNotFound):
                continue
            self._account.error(self.user_id, "get what was deleted", f"{file_id} {version_id or ''} is read")

    def find_again(self) -> None:
        """Learn the ids of files and versions after the user's own key was replaced; contents must not change."""
        for name, history in sorted(self.files.histories.items()):
            found = self.read_history(name)
            contents = [version.content for version in history.versions]
            if found is None or [version.content for version in found.versions] != contents:
                self._account.error(self.user_id, f"after a rotation of the own key, {name[:30]!r}", "other versions")
            if found is None or found.file_id != history.file_id:
                self.files.deleted.append(history.file_id)
            self.files.adopt(name, found)

    def take_encrypted(self) -> None:
        """Learn which files the pool has encrypted: these have another version at the end, with the same content."""
        for name, history in sorted(self.files.histories.items()):
            found = self.read_history(name)
            if found is not None and found.versions[:-1] == history.versions:
                right = found.head.content == history.head.content
            else:
                right = found == history
            if not right:
                self._account.error(self.user_id, f"after encrypting, {name[:30]!r}", "other versions or bytes")
            self.files.adopt(name, found)

    def delete_all(self) -> None:
        """Delete all files."""
        with self.calling("delete all"):
            ids = [history.file_id for history in self.files.histories.values()]
            for outcome in self.client.delete_many(ids, user_id=self.user_id):
                outcome.result()
            for name in sorted(self.files.histories):
                self.files.delete(name)
