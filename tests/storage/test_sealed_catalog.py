"""A sealed catalog: its index of names, and what can be read in its file."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import lmdb
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from storage import FileStorage
from storage.catalog import LmdbCatalog
from storage.catalog.lmdb_catalog import LmdbTables
from storage.catalog.records import SETTINGS, document_key
from storage.catalog.sealed_names import PAGE_BYTES_MAX, NamesReader, NamesWriter, PageCache
from storage.catalog.sealing_tables import SealingTables
from storage.catalog.tables import ROOT, TableTransaction
from storage.errors import FormatError, KeyRequired, SealBroken
from tests.storage.catalogs import KEY_ID, SECRET, entry_of, key_of, version_of
from tests.storage.helpers import lose_catalog

KEY = b"k" * 32
WORDS = (b"planted", "种植".encode())

# Long keys, so that a page has few of them, and short ones, some of which are prefixes of others.
_keys = st.one_of(
    st.binary(min_size=1, max_size=3),
    st.builds(lambda first, length: bytes([first]) * length, st.integers(97, 102), st.integers(1, 511)),
    st.integers(0, 400).map(lambda number: b"%06d" % number + b"n" * 300),
)


def opened(number: bytes, stored: bytes) -> bytes:
    """Open a page that was sealed by turning its bytes around."""
    return stored[::-1]


def flush(writer: NamesWriter, pages: dict[bytes, bytes]) -> None:
    """Write what has changed to ``pages``."""

    def put(number: bytes, page: bytes) -> bytes:
        pages[number] = page[::-1]
        return pages[number]

    writer.flush(put, pages.__delitem__)


class IndexMachine(RuleBasedStateMachine):
    """The index agrees with a dictionary, whatever is split and joined."""

    def __init__(self) -> None:
        super().__init__()
        self.pages: dict[bytes, bytes] = {}
        self.cache = PageCache()
        self.model: dict[bytes, bytes] = {}
        flush(NamesWriter.new(self.pages.get, opened, self.cache), self.pages)

    @rule(keys=st.lists(_keys, max_size=40), value=st.binary(min_size=16, max_size=16))
    def put(self, keys: list[bytes], value: bytes) -> None:
        writer = NamesWriter(self.pages.get, opened, self.cache)
        for key in keys:
            writer.put(key, value)
            assert writer.find(key) == value
        flush(writer, self.pages)
        self.model.update(dict.fromkeys(keys, value))

    @rule(data=st.data(), others=st.lists(_keys, max_size=5))
    def delete(self, data: st.DataObject, others: list[bytes]) -> None:
        known = sorted(self.model)
        chosen = data.draw(st.lists(st.sampled_from(known), max_size=60)) if known else []
        writer = NamesWriter(self.pages.get, opened, self.cache)
        for key in [*chosen, *others]:
            assert writer.delete(key) == (self.model.pop(key, None) is not None)
        flush(writer, self.pages)

    @rule(keys=st.lists(_keys, min_size=1, max_size=5))
    def give_up(self, keys: list[bytes]) -> None:
        """A transaction that is not committed changes nothing that later ones see."""
        writer = NamesWriter(self.pages.get, opened, self.cache)
        for key in keys:
            writer.put(key, b"never")
            writer.delete(key)

    @rule(start=_keys, stop=st.none() | _keys, limit=st.integers(1, 50))
    def read(self, start: bytes, stop: bytes | None, limit: int) -> None:
        wanted = [key for key in sorted(self.model) if key >= start and (stop is None or key < stop)]
        reader = NamesReader(self.pages.get, opened, self.cache)
        assert reader.range(start, stop, limit) == [(key, self.model[key]) for key in wanted[:limit]]
        assert reader.find(start) == self.model.get(start)

    @invariant()
    def all_is_there_and_fits(self) -> None:
        reader = NamesReader(self.pages.get, opened, PageCache())
        assert reader.range(b"", None, 10_000) == sorted(self.model.items())
        assert all(len(raw) <= PAGE_BYTES_MAX for raw in self.pages.values())
        assert len(self.pages) <= 2 + sum(map(len, self.model)) // 100 + len(self.model) // 8


TestIndex = IndexMachine.TestCase
TestIndex.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)


def test_names_in_order_fill_pages_and_all_can_be_removed() -> None:
    pages: dict[bytes, bytes] = {}
    writer = NamesWriter.new(pages.get, opened, PageCache())
    keys = [b"user" + b"%08d" % number for number in range(20_000)]
    for key in keys:
        writer.put(key, bytes(16))
    flush(writer, pages)
    assert len(pages) < len(keys) * 36 / PAGE_BYTES_MAX * 1.25
    writer = NamesWriter(pages.get, opened, PageCache())
    for key in keys:
        assert writer.delete(key)
    flush(writer, pages)
    assert len(pages) == 2
    assert NamesReader(pages.get, opened, PageCache()).range(b"", None, 10) == []


@pytest.mark.parametrize("damage", [lambda raw: raw[:-1], lambda raw: b"", lambda raw: b"\x93\xc2\x90\x90"])
def test_a_damaged_page_is_told(damage: Callable[[bytes], bytes]) -> None:
    pages: dict[bytes, bytes] = {}
    writer = NamesWriter.new(pages.get, opened, PageCache())
    for number in range(300):
        writer.put(b"%06d" % number, bytes(16))
    flush(writer, pages)
    for page in list(pages):
        damaged = {**pages, page: damage(pages[page])}
        with pytest.raises(FormatError, match="rebuild"):
            NamesReader(damaged.get, opened, PageCache()).range(b"", None, 1000)


def _bytes_of(root: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file())


def _fill(store: FileStorage, first: int = 0) -> dict[str, str]:
    names = [f"planted/种植/{number}" for number in range(first, first + 120)]
    outcomes = store.push_many([(name, b"content of %d" % at) for at, name in enumerate(names)], user_id="planted-ada")
    return {outcome.version.file_id: name for name, outcome in zip(names, outcomes, strict=True) if outcome.version}


def _require(store: FileStorage, names: dict[str, str]) -> None:
    listed = store.list_files(user_id="planted-ada", prefix="planted/种植/")
    assert [one.filename for one in listed] == sorted(names.values())
    for file_id, name in names.items():
        found = store.find(name, user_id="planted-ada")
        assert found is not None
        assert found.file_id == file_id


def test_nothing_that_users_wrote_is_in_the_catalogs_file(tmp_path: Path) -> None:
    root = tmp_path / "store"
    with FileStorage.open(root, key=KEY) as store:
        store.upkeep.documents.save_document("users", b"planted users")
        names = _fill(store)
        _require(store, names)
        store.upload(filename="planted-upload", user_id="planted-ada").write(b"planted" * 100)
    raw = _bytes_of(root)
    assert not [word for word in WORDS if word in raw]
    with pytest.raises(KeyRequired):
        FileStorage.open(root)
    with FileStorage.open(root, key=KEY) as store:
        _require(store, names)
        assert store.upkeep.documents.document("users") == b"planted users"
        for file_id in list(names)[::2]:
            store.delete(file_id, user_id="planted-ada")
            del names[file_id]
        _require(store, names)


def test_the_catalog_of_a_plain_store_is_sealed_when_it_gets_a_key(tmp_path: Path) -> None:
    root = tmp_path / "store"
    with FileStorage.open(root) as store:
        store.upkeep.documents.save_document("users", b"planted users")
        names = _fill(store)
        usage = store.upkeep.usages()
    assert WORDS[0] in _bytes_of(root / "catalog")
    for _ in range(2):
        with FileStorage.open(root, key=KEY) as store:
            _require(store, names)
            assert [one for one in store.upkeep.usages() if one.files] == usage
            assert store.stats().files == len(names)
            assert not store.behind
    raw = _bytes_of(root / "catalog")  # the second opening removed what was left of the former rows
    assert not [word for word in WORDS if word in raw]
    with FileStorage.open(root, key=KEY) as store:
        names |= _fill(store, 500)
        _require(store, names)


def test_a_rebuilt_catalog_is_sealed(tmp_path: Path) -> None:
    root = tmp_path / "store"
    with FileStorage.open(root, key=KEY) as store:
        names = _fill(store)
    lose_catalog(root)
    with FileStorage.open(root, key=KEY) as store:
        store.rebuild()
        _require(store, names)
    raw = _bytes_of(root / "catalog")
    assert not [word for word in WORDS if word in raw]


@pytest.fixture
def catalog(tmp_path: Path) -> LmdbCatalog:
    catalog = LmdbCatalog(tmp_path / "catalog")
    catalog.seal(KEY_ID, SECRET, os.urandom)
    return catalog


def _commit(catalog: LmdbCatalog, count: int = 3) -> list[bytes]:
    ids = [bytes([number]) * 16 for number in range(1, count + 1)]

    def work(txn: object) -> None:
        for number, file_id in enumerate(ids):
            stored = version_of(file_id, number + 1, name=f"planted-{number}")
            txn.put_version(file_id, stored.version_id, stored.raw)  # type: ignore[attr-defined]
            txn.set_file(file_id, entry_of(stored), key_of(stored.record.filename))  # type: ignore[attr-defined]

    catalog.transact(work)
    return ids


def test_rows_cannot_be_changed_or_put_elsewhere(catalog: LmdbCatalog, tmp_path: Path) -> None:
    ids = _commit(catalog)
    catalog.close()
    path = tmp_path / "catalog"
    with closing(lmdb.open(str(path), max_dbs=16)) as env:
        files = env.open_db(b"files")
        with env.begin(write=True, db=files) as txn:
            first, second = txn.get(ids[0]), txn.get(ids[1])
            assert first is not None
            assert second is not None
            txn.put(ids[0], second)
            txn.put(ids[1], second[:-1] + bytes([second[-1] ^ 1]))
            txn.put(ids[2], b"")
    again = LmdbCatalog(path)
    again.unlock(SECRET, os.urandom)
    for file_id in ids:
        with pytest.raises(SealBroken, match="was changed"):
            again.file(file_id)
    assert [one.problem != "" for one in again.versions()] == [True] * len(ids)
    again.close()


def test_rows_that_are_kept_opened_are_those_of_the_database(tmp_path: Path) -> None:
    """What was read or written before does not hide that a row was changed, put elsewhere, or put back."""
    below = LmdbTables(tmp_path / "catalog")
    tables = SealingTables(below)
    tables.seal(KEY_ID, SECRET, os.urandom)
    one, other = b"1" * 16, b"2" * 16

    def write(key: bytes, value: bytes) -> bytes:
        tables.transact(lambda txn: txn.put("files", key, value))
        raw = below.get("files", key)
        assert raw is not None
        return raw

    def replace(key: bytes, raw: bytes) -> None:
        below.transact(lambda txn: txn.put("files", key, raw))

    former, present = write(one, b"former"), write(one, b"present")
    foreign = write(other, b"foreign")
    assert tables.get("files", one) == b"present"
    for broken in (foreign, present[:-1] + bytes([present[-1] ^ 1]), b"", present[:20]):
        replace(one, broken)
        with pytest.raises(SealBroken):
            tables.get("files", one)
    replace(one, former)
    assert tables.get("files", one) == b"former"

    def fail(txn: TableTransaction) -> None:
        txn.put("files", one, b"never")
        raise ValueError("the work failed")

    with pytest.raises(ValueError, match="the work failed"):
        tables.transact(fail)
    assert tables.get("files", one) == b"former"
    tables.close()


def test_a_locked_catalog_gives_settings_and_totals_only(catalog: LmdbCatalog, tmp_path: Path) -> None:
    ids = _commit(catalog)
    catalog.save_document("users", b"planted")
    counters = catalog.counters()
    catalog.close()
    locked = LmdbCatalog(tmp_path / "catalog")
    assert locked.sealed_with == KEY_ID
    assert locked.counters() == counters
    reads: list[Callable[[], object]] = [
        lambda: locked.file(ids[0]),
        lambda: locked.find(key_of("planted-0")),
        lambda: locked.document("users"),
        lambda: locked.save_document("users", b""),
        lambda: list(locked.versions()),
        lambda: locked.usages(),
        lambda: locked.transact(lambda txn: txn.find(key_of("planted-0"))),
    ]
    for read in reads:
        with pytest.raises(KeyRequired):
            read()
    locked.unlock(bytes(32), os.urandom)
    with pytest.raises(SealBroken):
        locked.document("users")
    locked.close()


def test_what_others_write_while_a_catalog_is_sealed_is_sealed(tmp_path: Path) -> None:
    for attempt in range(5):
        path = tmp_path / f"catalog-{attempt}"
        catalog = LmdbCatalog(path)
        stop = threading.Event()

        def write(who: int, catalog: LmdbCatalog = catalog, stop: threading.Event = stop) -> int:
            number = 0
            while not stop.is_set():
                number += 1
                catalog.save_document(f"{who}-{number}", b"planted %d" % number)
            return number

        with ThreadPoolExecutor(2) as threads:
            writers = [threads.submit(write, who) for who in range(2)]
            time.sleep(0.02)
            catalog.seal(KEY_ID, SECRET, os.urandom)
            time.sleep(0.02)
            stop.set()
        for who, writer in enumerate(writers):
            for number in range(1, writer.result() + 1):
                assert catalog.document(f"{who}-{number}") == b"planted %d" % number
        catalog.close()
        LmdbTables(path).close()
        assert b"planted" not in (path / "data.mdb").read_bytes()


def test_several_rows_at_once_are_those_of_single_reads(tmp_path: Path) -> None:
    tables = SealingTables(LmdbTables(tmp_path / "catalog"))
    tables.seal(KEY_ID, SECRET, os.urandom)
    rows = [
        (ROOT, document_key("users")),
        (ROOT, SETTINGS),
        ("files", b"f" * 16),
        ("names", b"n"),
        ("nodes", b"d" * 32),
    ]
    tables.transact(lambda txn: [txn.put(table, key, b"of " + key) for table, key in rows])
    for table, key in rows:
        assert tables.get_each(table, [key, b"none"]) == [tables.get(table, key), None] == [b"of " + key, None]
        assert (key, b"of " + key) in [row for page in tables.pages(table) for row in page]
    tables.close()


def test_an_unfinished_copy_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "catalog"
    catalog = LmdbCatalog(path)
    _commit(catalog, 40)
    catalog.seal(KEY_ID, SECRET, os.urandom)
    catalog.close()
    (path / "compact.new").mkdir(mode=0o700)
    (path / "compact.new" / "data.mdb").write_bytes(b"cut off")
    assert b"planted" in (path / "data.mdb").read_bytes()
    tables = LmdbTables(path)
    assert not tables.doubtful
    tables.close()
    assert sorted(one.name for one in path.iterdir()) == ["data.mdb", "lock.mdb", "spare"]
    assert b"planted" not in (path / "data.mdb").read_bytes()
    with closing(LmdbCatalog(path)) as again:
        again.unlock(SECRET, os.urandom)
        assert again.counters().files == 0
        assert len(list(again.versions())) == 40
