"""The conformance suite of catalogs, run with LMDB and in memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from storage.catalog import (
    Catalog,
    CatalogTransaction,
    Counters,
    MemoryCatalog,
    ProfileCount,
    StoreSettings,
    user_key,
)
from storage.catalog.memory import MemoryDatabase, MemoryTables
from storage.catalog.port import UNKNOWN_ORIGIN, Holding, StoreTime, UploadRecord
from storage.catalog.tables import TableTransaction
from storage.errors import StoreClosed
from storage.keys import StripeKey, object_id_of
from tests.storage.catalogs import CATALOGS, entry_of, id_of, key_of, stripe_of, version_of

ADA, BOB = user_key(b"ada"), user_key(b"bob")
FILE, OTHER = id_of(1, 16), id_of(2, 16)
SETTINGS = StoreSettings("00" * 16, 4, 6, 1 << 20, ["v0", "v1"])


@pytest.fixture(params=CATALOGS)
def catalog(request: pytest.FixtureRequest, scratch: Path) -> Iterator[Catalog]:
    """An empty catalog of each kind."""
    opened = CATALOGS[request.param](scratch / "catalog")
    yield opened
    opened.close()


class _GaveUpError(Exception):
    pass


def store(catalog: Catalog, file_id: bytes, sequence: int, name: str = "a", **form: int) -> None:
    """Store a new version as a file's head."""
    stored = version_of(file_id, sequence, name=name, **form)

    def work(txn: CatalogTransaction) -> None:
        txn.put_version(file_id, stored.version_id, stored.raw)
        txn.set_file(file_id, entry_of(stored), key_of(name))
        counters = txn.counters()
        txn.set_counters(msgspec.structs.replace(counters, versions=counters.versions + 1))

    catalog.transact(work)


def hold(catalog: Catalog, user: bytes, stripes: list[StripeKey], upload: int | None) -> None:
    """Give a user claims."""
    catalog.transact(lambda txn: txn.hold(user, stripes, upload))


def keep_upload(catalog: Catalog, number: int, record: UploadRecord) -> None:
    """Keep an upload."""
    catalog.transact(lambda txn: txn.keep_upload(number, record))


# -- an empty one ----------------------------------------------------------------------------------------


def test_an_empty_catalog_has_nothing(catalog: Catalog) -> None:
    assert catalog.settings() is None
    assert catalog.document("a") is None
    assert catalog.store_time() is None
    assert catalog.file(FILE) is None
    assert catalog.find(key_of("a")) is None
    assert catalog.node(id_of(1)) is None
    assert catalog.version(FILE, id_of(1)) is None
    assert catalog.counters() == Counters()
    assert catalog.profiles() == []
    assert not catalog.is_held(stripe_of(1))
    assert catalog.holds(ADA, [stripe_of(1), stripe_of(2)]) == [False, False]
    assert not [*catalog.versions(), *catalog.nodes(), *catalog.tombstones(), *catalog.holdings()]
    assert catalog.pending_tombstones() == []
    assert catalog.uploads() == {}
    assert catalog.claims() == 0
    assert catalog.names(ADA, b"", None, 9) == []
    assert catalog.trouble() == ""


# -- settings, documents, totals -------------------------------------------------------------------------


def test_settings_are_replaced(catalog: Catalog) -> None:
    catalog.save_settings(SETTINGS)
    assert catalog.settings() == SETTINGS
    other = msgspec.structs.replace(SETTINGS, incomplete=[1])
    catalog.save_settings(other)
    assert catalog.settings() == other


def test_which_volumes_wait_for_repair_is_kept_in_the_settings(catalog: Catalog) -> None:
    catalog.transact(lambda txn: txn.keep_incomplete({3}))  # there are no settings
    assert catalog.settings() is None
    catalog.save_settings(SETTINGS)
    catalog.transact(lambda txn: txn.keep_incomplete({5, 1}))
    assert catalog.settings() == msgspec.structs.replace(SETTINGS, incomplete=[1, 5])


def test_documents_are_kept_by_name(catalog: Catalog) -> None:
    catalog.save_document("a", b"1")
    catalog.save_documents({"a": b"2", "b": b""})
    assert (catalog.document("a"), catalog.document("b"), catalog.document("c")) == (b"2", b"", None)


def test_totals_and_times_are_replaced(catalog: Catalog) -> None:
    counters, time = Counters(1, 2, 3, 4, b"latest", True, 2, 9), StoreTime(1.5, 7, 1)

    def work(txn: CatalogTransaction) -> Counters:
        txn.set_counters(counters)
        txn.set_store_time(time)
        return txn.counters()

    assert catalog.transact(work) == counters == catalog.counters()
    assert catalog.store_time() == time


# -- files -----------------------------------------------------------------------------------------------


def test_a_file_its_name_and_its_versions(catalog: Catalog) -> None:
    first, second = version_of(FILE, 1), version_of(FILE, 2)
    store(catalog, FILE, 1)
    store(catalog, FILE, 2)
    assert catalog.file(FILE) == entry_of(second)
    assert catalog.find(key_of("a")) == FILE
    assert catalog.version(FILE, first.version_id) == first.raw
    assert [(one.file_id, one.entry, one.version_id, one.raw, one.problem) for one in catalog.versions()] == [
        (FILE, entry_of(second), stored.version_id, stored.raw, "")
        for stored in sorted((first, second), key=lambda stored: stored.version_id)
    ]


def test_a_transaction_reads_its_own_changes(catalog: Catalog) -> None:
    stored = version_of(FILE, 1)

    def work(txn: CatalogTransaction) -> None:
        assert txn.file(FILE) is None
        assert txn.find(key_of("a")) is None
        assert txn.version(FILE, stored.version_id) is None
        txn.put_version(FILE, stored.version_id, stored.raw)
        txn.set_file(FILE, entry_of(stored), key_of("a"))
        assert txn.file(FILE) == entry_of(stored)
        assert txn.find(key_of("a")) == FILE
        assert txn.version(FILE, stored.version_id) == stored.raw
        assert catalog.file(FILE) is None  # only within its own transaction
        txn.forget_file(FILE)
        txn.forget_name(key_of("a"), OTHER)  # the name belongs to another file
        assert txn.file(FILE) is None
        assert txn.find(key_of("a")) == FILE
        txn.forget_name(key_of("a"), FILE)
        assert txn.find(key_of("a")) is None

    catalog.transact(work)
    assert catalog.file(FILE) is None
    assert catalog.version(FILE, stored.version_id) == stored.raw


def test_a_transaction_that_fails_leaves_nothing(catalog: Catalog) -> None:
    store(catalog, FILE, 1)
    before = catalog.file(FILE), catalog.counters(), catalog.profiles()

    def work(txn: CatalogTransaction) -> None:
        txn.delete_file(FILE, key_of("a"), b"ends it")
        txn.hold(ADA, [stripe_of(1)], None)
        txn.put_nodes([(id_of(9), b"node")])
        txn.set_counters(Counters(9))
        raise _GaveUpError

    with pytest.raises(_GaveUpError):
        catalog.transact(work)
    assert (catalog.file(FILE), catalog.counters(), catalog.profiles()) == before
    assert catalog.find(key_of("a")) == FILE
    assert not catalog.is_held(stripe_of(1))
    assert catalog.node(id_of(9)) is None
    assert catalog.pending_tombstones() == []


def test_a_deleted_file_leaves_its_versions_and_a_tombstone(catalog: Catalog) -> None:
    store(catalog, FILE, 1)
    store(catalog, OTHER, 2, "b")
    catalog.transact(lambda txn: txn.delete_file(FILE, key_of("a"), b"ends it"))
    catalog.transact(lambda txn: txn.keep_tombstone(id_of(3, 16), b"of another"))
    assert catalog.file(FILE) is None
    assert catalog.find(key_of("a")) is None
    left = {one.file_id: one.entry for one in catalog.versions()}
    assert left == {FILE: None, OTHER: entry_of(version_of(OTHER, 2, name="b"))}
    assert dict(catalog.tombstones()) == {FILE: b"ends it", id_of(3, 16): b"of another"}
    assert catalog.pending_tombstones() == [(FILE, b"ends it")]
    catalog.transact(lambda txn: txn.tombstones_written([FILE, OTHER]))
    assert catalog.pending_tombstones() == []
    assert len(list(catalog.tombstones())) == 2


def test_versions_are_dropped_and_taken_off_the_totals(catalog: Catalog) -> None:
    for sequence in (1, 2, 3):
        store(catalog, FILE, sequence)
    dropped = [(FILE, version_of(FILE, sequence).version_id) for sequence in (1, 2)]
    catalog.drop_versions([*dropped, (OTHER, id_of(1))], counted=True)
    assert [one.version_id for one in catalog.versions()] == [version_of(FILE, 3).version_id]
    assert catalog.counters().versions == 1
    catalog.drop_versions([])
    catalog.drop_versions([(FILE, version_of(FILE, 3).version_id)])
    assert catalog.counters().versions == 1
    assert not list(catalog.versions())


def test_profiles_are_counted(catalog: Catalog) -> None:
    store(catalog, FILE, 1)
    store(catalog, FILE, 2)
    store(catalog, OTHER, 3, "b", k=2, n=3)
    assert catalog.profiles() == [ProfileCount(2, 3, 1, 1), ProfileCount(4, 6, 1, 2)]
    store(catalog, FILE, 4, k=2, n=3)
    assert catalog.profiles() == [ProfileCount(2, 3, 2, 2), ProfileCount(4, 6, 0, 2)]
    catalog.transact(lambda txn: txn.delete_file(OTHER, key_of("b"), b"ends it"))
    catalog.drop_versions([(OTHER, version_of(OTHER, 3, name="b", k=2, n=3).version_id)], counted=True)
    assert catalog.profiles() == [ProfileCount(2, 3, 1, 1), ProfileCount(4, 6, 0, 2)]
    catalog.recount()
    assert catalog.profiles() == [ProfileCount(2, 3, 1, 1), ProfileCount(4, 6, 0, 2)]


def test_names_come_in_order_a_page_at_a_time(catalog: Catalog) -> None:
    names = ["a", "a/1", "a/2", "a/\N{GREEK SMALL LETTER ALPHA}", "b", "\U0010ffff", "long" * 200, "long" * 200 + "er"]
    keys = {name: key_of(name) for name in names}
    for number, name in enumerate(names):
        store(catalog, id_of(number, 16), number + 1, name)

    def page(prefix: str, after: bytes | None, limit: int) -> list[bytes]:
        return [key for key, _ in catalog.names(ADA, prefix.encode(), after, limit)]

    assert page("", None, 99) == sorted(keys.values())
    assert page("a/", None, 99) == sorted(keys[name] for name in names if name.startswith("a/"))
    assert page("a/", None, 1) == [keys["a/1"]]
    assert page("a/", keys["a/1"], 1) == [keys["a/2"]]
    assert page("a/", keys["b"], 9) == []
    assert page("", None, 0) == []
    assert page("c", None, 9) == []
    assert page("long" * 200, None, 9) == sorted(keys[name] for name in names if name.startswith("long"))
    assert catalog.names(BOB, b"", None, 9) == []
    assert dict(catalog.names(ADA, b"b", None, 9)) == {keys["b"]: id_of(4, 16)}


# -- nodes, claims, uploads ------------------------------------------------------------------------------


def test_nodes_are_kept_in_the_order_of_their_ids(catalog: Catalog) -> None:
    ids = sorted(id_of(number) for number in range(300))  # of several pages
    catalog.transact(lambda txn: txn.put_nodes((node_id, node_id[:4]) for node_id in ids))
    assert list(catalog.nodes()) == ids
    assert catalog.node(ids[7]) == ids[7][:4]
    assert list(catalog.nodes(ids[10], ids[20])) == ids[10:20]
    catalog.drop_nodes([*ids[:200], id_of(-1)])
    assert list(catalog.nodes()) == ids[200:]
    catalog.drop_nodes([])


def test_claims_are_of_users(catalog: Catalog) -> None:
    hold(catalog, ADA, [stripe_of(1), stripe_of(2)], None)
    hold(catalog, BOB, [stripe_of(2), stripe_of(3)], 7)
    assert catalog.holds(ADA, [stripe_of(number) for number in (1, 2, 3, 4)]) == [True, True, False, False]
    assert [catalog.is_held(stripe_of(number)) for number in (1, 2, 3, 4)] == [True, True, True, False]
    assert catalog.claims() == 4
    expected = sorted([
        Holding(stripe_of(1), ADA, ()), Holding(stripe_of(2), ADA, ()),
        Holding(stripe_of(2), BOB, (7,)), Holding(stripe_of(3), BOB, (7,)),
    ])  # fmt: skip
    assert list(catalog.holdings()) == expected
    middle = expected[1].stripe
    assert list(catalog.holdings(middle)) == [one for one in expected if one.stripe >= middle]
    assert list(catalog.holdings(stop=middle)) == [one for one in expected if one.stripe < middle]


def test_a_claim_names_the_uploads_it_is_for(catalog: Catalog) -> None:
    def uploads() -> tuple[int, ...]:
        return next(catalog.holdings()).uploads

    for number, since_s in ((1, None), (2, 5.0), (3, 6.0), (4, None)):
        keep_upload(catalog, number, UploadRecord(since_s))
        hold(catalog, ADA, [stripe_of(1)], number)
    assert uploads() == (1, 3, 4)  # the latest number is that of an interrupted upload
    assert catalog.uploads() == {
        1: UploadRecord(), 2: UploadRecord(5.0), 3: UploadRecord(6.0), 4: UploadRecord()
    }  # fmt: skip
    catalog.transact(lambda txn: txn.end_upload(1))
    keep_upload(catalog, 5, UploadRecord())
    hold(catalog, ADA, [stripe_of(1)], 5)
    assert uploads() == (4, 3, 5)  # the first has ended
    hold(catalog, ADA, [stripe_of(1)], 5)
    hold(catalog, ADA, [stripe_of(1)], None)
    assert uploads() == (4, 3, 5)
    assert set(catalog.uploads()) == {2, 3, 4, 5}


def test_a_claim_that_was_renewed_is_not_dropped(catalog: Catalog) -> None:
    for number in (1, 2):
        hold(catalog, ADA, [stripe_of(number)], 7)
    lapsed = list(catalog.holdings())
    keep_upload(catalog, 7, UploadRecord())
    hold(catalog, ADA, [stripe_of(2)], 8)
    catalog.drop_holdings([*lapsed, Holding(stripe_of(3), ADA, ())])
    assert list(catalog.holdings()) == [Holding(stripe_of(2), ADA, (7, 8))]
    catalog.drop_holdings([])


def test_a_claim_on_what_a_client_wrote_has_hashes_until_they_were_verified(catalog: Catalog) -> None:
    one, other = stripe_of(1), stripe_of(2)
    names, hashes = {one: b"n" * 32, other: b"m" * 32}, {one: bytes(range(96)), other: bytes(32)}

    def hold_written(user: bytes, upload: int | None, **given: dict[StripeKey, bytes]) -> None:
        catalog.transact(lambda txn: txn.hold(user, [one, other], upload, **given))

    hold_written(ADA, 7, names=names, hashes=hashes)
    assert [catalog.unverified(stripe) for stripe in (one, other, stripe_of(3))] == [*hashes.values(), b""]
    hold_written(ADA, None, names=names)  # a version says nothing about shards
    hold_written(ADA, 8, names=names, hashes={one: bytes(96)})
    expected = [Holding(stripe, ADA, (8,), name=names[stripe], hashes=hashes[stripe]) for stripe in (one, other)]
    assert sorted(catalog.holdings()) == sorted(expected)
    catalog.transact(lambda txn: txn.vouch(BOB, one))
    assert catalog.unverified(one) == hashes[one]
    catalog.transact(lambda txn: txn.vouch(ADA, one))
    assert [catalog.unverified(stripe) for stripe in (one, other)] == [b"", hashes[other]]
    hold_written(ADA, 9, names=names, hashes=hashes)
    hold_written(BOB, 9)  # whoever has a claim without hashes relies on shards that were verified
    assert [catalog.unverified(stripe) for stripe in (one, other)] == [b"", b""]
    catalog.drop_holdings(list(catalog.holdings()))
    assert catalog.chunks_named(list(names.values())) == [None, None]


def test_a_claim_of_unknown_origin_may_have_no_name(catalog: Catalog) -> None:
    one, unknown = stripe_of(1), {stripe_of(1): UNKNOWN_ORIGIN}
    catalog.transact(lambda txn: txn.hold(ADA, [one], None, {}, unknown))
    assert list(catalog.holdings()) == [Holding(one, ADA, (), hashes=UNKNOWN_ORIGIN)]
    assert catalog.unverified(one) == UNKNOWN_ORIGIN
    catalog.transact(lambda txn: txn.hold(ADA, [one], None, {one: b"n" * 32}))
    assert list(catalog.holdings()) == [Holding(one, ADA, (), name=b"n" * 32, hashes=UNKNOWN_ORIGIN)]
    catalog.transact(lambda txn: txn.vouch(ADA, one))
    assert list(catalog.holdings()) == [Holding(one, ADA, (), name=b"n" * 32)]


def test_a_name_leads_to_the_chunk_that_was_first_unless_the_store_wrote_another(catalog: Catalog) -> None:
    name, hashes = b"n" * 32, bytes(96)

    def hold_named(number: int, **given: dict[StripeKey, bytes]) -> bytes | None:
        stripe = stripe_of(number)
        catalog.transact(lambda txn: txn.hold(ADA, [stripe], 7, {stripe: name}, **given))
        return catalog.chunks_named([name])[0]

    assert hold_named(1) == object_id_of(stripe_of(1))
    assert hold_named(2, hashes={stripe_of(2): hashes}) == object_id_of(stripe_of(1))
    assert hold_named(3) == object_id_of(stripe_of(3))


# -- several at once -------------------------------------------------------------------------------------


def test_of_threads_that_change_the_same_none_undoes_another(catalog: Catalog) -> None:
    def add(txn: CatalogTransaction) -> None:
        counters = txn.counters()
        txn.set_counters(msgspec.structs.replace(counters, files=counters.files + 1, versions=counters.files + 1))

    def add_many(_: int) -> None:
        for _ in range(50):
            catalog.transact(add)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add_many, range(4)))
    assert catalog.counters() == Counters(200, 200)


def test_pages_go_on_beside_writers(catalog: Catalog) -> None:
    ids = sorted(id_of(number) for number in range(400))
    catalog.transact(lambda txn: txn.put_nodes((node_id, b"") for node_id in ids))
    walk = catalog.nodes()
    seen = [next(walk) for _ in range(100)]
    catalog.drop_nodes(ids[:150])
    catalog.transact(lambda txn: txn.put_nodes([(b"\xff" * 32, b"")]))
    seen += walk
    assert seen == sorted(set(seen))
    assert set(ids[150:]) <= set(seen)
    assert seen[-1] == b"\xff" * 32


def test_a_closed_catalog_says_so(catalog: Catalog) -> None:
    catalog.close()
    with pytest.raises(StoreClosed):
        catalog.counters()
    with pytest.raises(StoreClosed):
        catalog.transact(lambda txn: None)


def test_a_function_that_is_run_again_leaves_what_it_would_leave_alone(catalog: Catalog) -> None:
    """A catalog may run a function more than once; changes of earlier runs are discarded."""
    store(catalog, FILE, 1)
    runs = 0

    def work(txn: CatalogTransaction) -> int:
        nonlocal runs
        runs += 1
        counters = txn.counters()
        txn.set_counters(msgspec.structs.replace(counters, files=counters.files + 1))
        if runs == 1:
            raise _GaveUpError
        return counters.files

    with pytest.raises(_GaveUpError):
        catalog.transact(work)
    assert catalog.transact(work) == 0
    assert catalog.counters().files == 1


# -- optimistic transactions -----------------------------------------------------------------------------


def test_a_transaction_that_was_overtaken_is_run_again() -> None:
    catalog = MemoryCatalog()
    seen: list[int] = []

    def work(txn: CatalogTransaction) -> None:
        counters = txn.counters()
        seen.append(counters.files)
        if len(seen) == 1:
            catalog.transact(lambda other: other.set_counters(Counters(5)))
        txn.set_counters(msgspec.structs.replace(counters, files=counters.files + 1))

    catalog.transact(work)
    assert seen == [0, 5]
    assert catalog.counters().files == 6


def test_changes_elsewhere_overtake_nobody() -> None:
    catalog = MemoryCatalog()
    runs = 0

    def work(txn: CatalogTransaction) -> None:
        nonlocal runs
        runs += 1
        txn.set_counters(msgspec.structs.replace(txn.counters(), files=1))
        catalog.transact(lambda other: other.put_nodes([(id_of(1), b"node")]))

    catalog.transact(work)
    assert runs == 1
    assert catalog.counters().files == 1
    assert catalog.node(id_of(1)) == b"node"


def test_what_a_transaction_reads_was_so_at_one_moment() -> None:
    tables = MemoryTables(MemoryDatabase())
    pairs: list[tuple[bytes | None, bytes | None]] = []

    def both(value: bytes) -> None:
        tables.transact(lambda txn: (txn.put("names", b"a", value), txn.put("names", b"b", value)))

    def work(txn: TableTransaction) -> None:
        first = txn.get("names", b"a")
        if not pairs and first == b"1":
            both(b"2")
        pairs.append((first, txn.get("names", b"b")))

    both(b"1")
    tables.transact(work)
    assert pairs == [(b"2", b"2")]


def test_threads_see_whole_states_only() -> None:
    tables = MemoryTables(MemoryDatabase())
    keys = [b"%d" % number for number in range(8)]
    stop = threading.Event()

    def put_each(value: bytes) -> None:
        tables.transact(lambda txn: [txn.put("names", key, value) for key in keys])

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            put_each(b"%d" % number)

    def look(_: int) -> set[int]:
        return {len(set(tables.transact(lambda txn: [txn.get("names", key) for key in keys]))) for _ in range(300)}

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with ThreadPoolExecutor(2) as pool:
            assert set().union(*pool.map(look, range(2))) == {1}
    finally:
        stop.set()
        writer.join()


def test_a_database_in_memory_outlives_its_catalog() -> None:
    database = MemoryDatabase()
    first = MemoryCatalog(database)
    first.save_document("a", b"1")
    first.close()
    assert MemoryCatalog(database).document("a") == b"1"
