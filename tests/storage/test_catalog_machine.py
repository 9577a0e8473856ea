"""After any sequence of transactions, each catalog agrees with a simple model of the port."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from storage.catalog import Catalog, CatalogTransaction, Counters, FileEntry, user_key
from storage.catalog.port import Holding, StoreTime, UploadRecord
from storage.keys import StripeKey
from tests.storage.catalogs import CATALOGS, entry_of, id_of, key_of, stripe_of, version_of

USERS = [user_key(user) for user in (b"ada", b"bob")]
NAMES = ["a", "a/b", "b"]

_files = st.integers(0, 4)
_numbers = st.integers(0, 5)
_sequences = st.integers(1, 8)


class _AbandonedError(Exception):
    pass


@dataclass
class _Model:
    """A catalog's content, in plain dictionaries."""

    entries: dict[bytes, FileEntry] = field(default_factory=dict)
    names: dict[bytes, bytes] = field(default_factory=dict)
    versions: dict[tuple[bytes, bytes], bytes] = field(default_factory=dict)
    profiles: dict[tuple[bytes, bytes], tuple[int, int]] = field(default_factory=dict)
    tombstones: dict[bytes, bytes] = field(default_factory=dict)
    pending: dict[bytes, bytes] = field(default_factory=dict)
    nodes: dict[bytes, bytes] = field(default_factory=dict)
    claims: dict[tuple[StripeKey, bytes], tuple[int, ...]] = field(default_factory=dict)
    uploads: dict[int, UploadRecord] = field(default_factory=dict)
    counters: Counters = field(default_factory=Counters)
    time: StoreTime | None = None

    def hold(self, user: bytes, stripe: StripeKey, upload: int | None) -> None:
        present = self.claims.get((stripe, user))
        if present is None:
            self.claims[stripe, user] = () if upload is None else (upload,)
        elif upload is not None and upload not in present:
            kept = [number for number in present if number in self.uploads]
            going_on = [number for number in kept if self.uploads[number].interrupted_s is None]
            waiting = [number for number in kept if number not in going_on]
            latest = max(waiting, key=lambda number: self.uploads[number].interrupted_s or 0.0, default=None)
            self.claims[stripe, user] = (*going_on, *([] if latest is None else [latest]), upload)

    def counted(self) -> list[tuple[int, int, int, int]]:
        """Return the profiles in use: k, n, files, versions."""
        heads = [self.profiles.get((file_id, entry.head)) for file_id, entry in self.entries.items()]
        kept = list(self.profiles.values())
        return [(*profile, heads.count(profile), kept.count(profile)) for profile in sorted(set(kept))]


Step = Callable[[CatalogTransaction, _Model], None]


def _commit(number: int, sequence: int, name: str) -> Step:
    file_id = id_of(number, 16)
    stored = version_of(file_id, sequence, k=2 + sequence % 2, size=1 + sequence, name=name)

    def step(txn: CatalogTransaction, model: _Model) -> None:
        assert txn.file(file_id) == model.entries.get(file_id)
        assert txn.find(key_of(name)) == model.names.get(key_of(name))
        known = txn.version(file_id, stored.version_id)
        assert known == model.versions.get((file_id, stored.version_id))
        before = txn.counters()
        assert before == model.counters
        txn.put_version(file_id, stored.version_id, stored.raw)
        txn.set_file(file_id, entry_of(stored), key_of(name))
        after = msgspec.structs.replace(
            before, versions=before.versions + (known is None), sequence=max(before.sequence, sequence)
        )
        txn.set_counters(after)
        model.counters = after
        model.versions[file_id, stored.version_id] = stored.raw
        model.profiles[file_id, stored.version_id] = stored.root.k, stored.root.n
        model.entries[file_id] = entry_of(stored)
        model.names[key_of(name)] = file_id

    return step


def _delete(number: int, name: str) -> Step:
    file_id = id_of(number, 16)

    def step(txn: CatalogTransaction, model: _Model) -> None:
        txn.delete_file(file_id, key_of(name), b"ends %d" % number)
        model.entries.pop(file_id, None)
        model.names.pop(key_of(name), None)
        model.tombstones[file_id] = model.pending[file_id] = b"ends %d" % number

    return step


def _delete_version(number: int, sequence: int) -> Step:
    file_id, version_id = id_of(number, 16), id_of(sequence, 32)

    def step(txn: CatalogTransaction, model: _Model) -> None:
        key, raw = file_id + version_id, b"ends %d of %d" % (sequence, number)
        txn.delete_version(file_id, version_id, raw)
        model.tombstones[key] = model.pending[key] = raw
        assert txn.tombstone(key) == raw
        assert txn.tombstone(file_id) == model.tombstones.get(file_id)

    return step


def _forget(number: int, name: str) -> Step:
    file_id = id_of(number, 16)

    def step(txn: CatalogTransaction, model: _Model) -> None:
        txn.forget_file(file_id)
        txn.forget_name(key_of(name), file_id)
        model.entries.pop(file_id, None)
        if model.names.get(key_of(name)) == file_id:
            del model.names[key_of(name)]

    return step


def _bury(number: int) -> Step:
    def step(txn: CatalogTransaction, model: _Model) -> None:
        txn.tombstones_written([id_of(number, 16)])
        model.pending.pop(id_of(number, 16), None)

    return step


def _keep_nodes(number: int) -> Step:
    def step(txn: CatalogTransaction, model: _Model) -> None:
        txn.put_nodes([(id_of(number), b"node %d" % number)])
        model.nodes[id_of(number)] = b"node %d" % number

    return step


def _hold(user: bytes, number: int, upload: int | None) -> Step:
    def step(txn: CatalogTransaction, model: _Model) -> None:
        txn.hold(user, [stripe_of(number)], upload)
        model.hold(user, stripe_of(number), upload)

    return step


def _keep_upload(number: int, since_s: float | None) -> Step:
    def step(txn: CatalogTransaction, model: _Model) -> None:
        txn.keep_upload(number, UploadRecord(since_s))
        txn.set_store_time(StoreTime(1.0, number, 1))
        model.uploads[number], model.time = UploadRecord(since_s), StoreTime(1.0, number, 1)

    return step


def _end_upload(number: int) -> Step:
    def step(txn: CatalogTransaction, model: _Model) -> None:
        txn.end_upload(number)
        model.uploads.pop(number, None)

    return step


_steps = st.one_of(
    st.builds(_commit, _files, _sequences, st.sampled_from(NAMES)),
    st.builds(_delete, _files, st.sampled_from(NAMES)),
    st.builds(_delete_version, _files, _sequences),
    st.builds(_forget, _files, st.sampled_from(NAMES)),
    st.builds(_bury, _files),
    st.builds(_keep_nodes, _numbers),
    st.builds(_hold, st.sampled_from(USERS), _numbers, st.none() | _numbers),
    st.builds(_keep_upload, _numbers, st.sampled_from([None, 1.0, 2.0, 3.0])),
    st.builds(_end_upload, _numbers),
)


class CatalogMachine(RuleBasedStateMachine):
    """Runs transactions of several steps each, some of which are abandoned."""

    kind: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self._directory = Path(tempfile.mkdtemp(prefix="taskworker-catalog-"))
        self._catalog: Catalog = CATALOGS[self.kind](self._directory)
        self._model = _Model()

    @rule(steps=st.lists(_steps, min_size=1, max_size=4), abandoned=st.booleans())
    def transact(self, steps: list[Step], abandoned: bool) -> None:
        """Run a transaction, which may be abandoned at its end."""

        def work(txn: CatalogTransaction) -> _Model:
            model = deepcopy(self._model)
            for step in steps:
                step(txn, model)
            if abandoned:
                raise _AbandonedError
            return model

        try:
            self._model = self._catalog.transact(work)
        except _AbandonedError:
            assert abandoned

    @rule(number=_files, sequence=_sequences, name=st.sampled_from(NAMES), counted=st.booleans())
    def drop_version(self, number: int, sequence: int, name: str, counted: bool) -> None:
        """Drop a version of a deleted file, as a collect does."""
        file_id = id_of(number, 16)
        stored = version_of(file_id, sequence, k=2 + sequence % 2, size=1 + sequence, name=name)
        if file_id in self._model.entries:
            return
        self._catalog.drop_versions([(file_id, stored.version_id)], counted=counted)
        was_there = self._model.versions.pop((file_id, stored.version_id), None) is not None
        self._model.profiles.pop((file_id, stored.version_id), None)
        if counted and was_there:
            counters = self._model.counters
            self._model.counters = msgspec.structs.replace(counters, versions=counters.versions - 1)

    @rule(number=_numbers)
    def drop_node(self, number: int) -> None:
        """Drop a node, as a collect does."""
        self._catalog.drop_nodes([id_of(number)])
        self._model.nodes.pop(id_of(number), None)

    @rule(user=st.sampled_from(USERS), number=_numbers, uploads=st.none() | st.lists(_numbers, max_size=2))
    def drop_claim(self, user: bytes, number: int, uploads: list[int] | None) -> None:
        """Drop a claim, as a collect does: unconditionally (None) or only if it is as expected."""
        key = stripe_of(number), user
        present = self._model.claims.get(key, ())
        judged = present if uploads is None else tuple(uploads)
        self._catalog.drop_holdings([Holding(*key, judged)])
        if key in self._model.claims and judged == present:
            del self._model.claims[key]

    @invariant()
    def same(self) -> None:
        """Check that the catalog and the model agree."""
        catalog, model = self._catalog, self._model
        found = [*catalog.versions()]
        assert {(one.file_id, one.version_id): one.raw for one in found} == model.versions
        assert [(one.file_id, one.version_id) for one in found] == sorted(model.versions)
        assert {one.file_id: one.entry for one in found} == {
            file_id: model.entries.get(file_id) for file_id, _ in model.versions
        }
        assert {number: catalog.file(id_of(number, 16)) for number in range(5)} == {
            number: model.entries.get(id_of(number, 16)) for number in range(5)
        }
        assert dict(catalog.names(USERS[0], b"", None, 99)) == model.names
        prefixed = [catalog.find(key) for key, _ in catalog.names(USERS[0], b"a", None, 99)]
        assert len(prefixed) == sum(key.startswith(USERS[0] + b"a") for key in model.names)
        assert dict(catalog.tombstones()) == model.tombstones
        assert dict(catalog.pending_tombstones()) == model.pending
        assert [(node_id, catalog.node(node_id)) for node_id in catalog.nodes()] == sorted(model.nodes.items())
        claims = [Holding(stripe, user, uploads) for (stripe, user), uploads in sorted(model.claims.items())]
        assert [*catalog.holdings()] == claims
        assert catalog.claims() == len(claims)
        for number in range(6):
            assert catalog.is_held(stripe_of(number)) == any(one.stripe == stripe_of(number) for one in claims)
        assert catalog.uploads() == model.uploads
        assert catalog.store_time() == model.time
        assert catalog.counters() == model.counters
        assert [tuple(one) for one in catalog.profiles()] == model.counted()

    def teardown(self) -> None:
        self._catalog.close()
        shutil.rmtree(self._directory)


class LmdbMachine(CatalogMachine):
    kind = "lmdb"


class MemoryMachine(CatalogMachine):
    kind = "memory"


TestLmdb = LmdbMachine.TestCase
TestMemory = MemoryMachine.TestCase
TestLmdb.settings = TestMemory.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
