"""An unreadable record is reported and set aside, and does not stop the maintenance of other files."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb
import msgspec
import pytest

from storage import FileStorage, FormatError
from storage.catalog import FileEntry, LmdbCatalog
from storage.formats.authenticity import Authority
from storage.formats.manifest import RootNode, object_id
from storage.formats.version_records import RECORD_FORMAT, SignedRecord, VersionObject, VersionRecord
from storage.formats.versions import StoredVersion, seal_signed
from tests.storage.helpers import CHUNK, USER, content, digest, lose, lose_catalog, open_store, push

BAD_DATA = content(7, CHUNK)
OTHERS = {name: content(number, number * CHUNK + 100) for number, name in enumerate(("a", "c", "d"))}
_encode = msgspec.msgpack.Encoder().encode
_FIELDS = VersionRecord.__struct_fields__[1:]


def as_float(record: VersionRecord, root: RootNode) -> tuple[Any, Any]:
    return msgspec.structs.replace(record, time_ms=record.time_ms + 0.0), root


def chunk_size_as_float(record: VersionRecord, root: RootNode) -> tuple[Any, Any]:
    root = msgspec.structs.replace(root, chunk_size=float(root.chunk_size))
    return msgspec.structs.replace(record, root_id=object_id(_encode(root))), root


def negative_size(record: VersionRecord, root: RootNode) -> tuple[Any, Any]:
    return msgspec.structs.replace(record, size=-1), root


def impossible_code(record: VersionRecord, root: RootNode) -> tuple[Any, Any]:
    root = msgspec.structs.replace(root, k=root.n + 1)
    return msgspec.structs.replace(record, root_id=object_id(_encode(root))), root


Spoil = Callable[[VersionRecord, RootNode], tuple[Any, Any]]


@contextmanager
def kept_as_they_come(monkeypatch: pytest.MonkeyPatch, spoil: Spoil) -> Iterator[None]:
    """Seal versions without checks, as older software did, and spoil those of the file "bad"."""

    def seal(record: SignedRecord, root: RootNode, root_raw: bytes, authority: Authority) -> StoredVersion:
        if record.filename != "bad":
            return seal_signed(record, root, root_raw, authority)
        unsigned = VersionRecord(RECORD_FORMAT, *(getattr(record, name) for name in _FIELDS))
        kept, spoilt = spoil(unsigned, root)
        raw = _encode(kept)
        return StoredVersion(object_id(raw), unsigned, root, _encode(VersionObject(raw, _encode(spoilt))))

    with monkeypatch.context() as patch:
        patch.setattr("storage.write.commit.seal_signed", seal)
        yield


def nothing(record: VersionRecord, root: RootNode) -> tuple[Any, Any]:
    return record, root


def garbage_version(catalog: LmdbCatalog, file_id: bytes, entry: FileEntry) -> None:
    catalog.transact(lambda txn: txn.put_version(file_id, entry.head, b"\xc1 no such thing"))


def cut_off_version(catalog: LmdbCatalog, file_id: bytes, entry: FileEntry) -> None:
    raw = catalog.version(file_id, entry.head)
    assert raw is not None
    catalog.transact(lambda txn: txn.put_version(file_id, entry.head, raw[:-7]))


Damage = Callable[[LmdbCatalog, bytes, FileEntry], None]
IN_THE_CATALOG: list[Damage] = [garbage_version, cut_off_version]
EVERYWHERE: list[Spoil] = [as_float, chunk_size_as_float, negative_size, impossible_code]


@pytest.fixture(params=[*EVERYWHERE, *IN_THE_CATALOG], ids=lambda kind: kind.__name__)
def store(request: pytest.FixtureRequest, root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileStorage]:
    """A store with good files and one whose record cannot be read, in the catalog only or also on the volumes."""
    spoil = request.param if request.param in EVERYWHERE else nothing
    with kept_as_they_come(monkeypatch, spoil), open_store(root, segment_bytes_max=CHUNK) as made:
        push(made, OTHERS["a"], "a")
        identifier = bytes.fromhex(push(made, BAD_DATA, "bad").file_id)
        for name in ("c", "d"):
            push(made, OTHERS[name], name)
    if request.param in IN_THE_CATALOG:
        catalog = LmdbCatalog(root / "catalog")
        entry = catalog.file(identifier)
        assert entry is not None
        request.param(catalog, identifier, entry)
        catalog.close()
    with open_store(root) as opened:
        yield opened


def file_ids(store: FileStorage) -> dict[str, str]:
    return {version.filename: version.file_id for version in store.list_files(user_id=USER)}


def check_others(store: FileStorage, names: tuple[str, ...] = ("a", "c", "d")) -> None:
    found = file_ids(store)
    assert tuple(found) == names
    for name in names:
        assert store.get(found[name], user_id=USER) == OTHERS[name]
        assert [version.filename for version in store.history(found[name], user_id=USER)] == [name]


def test_listing_and_scrub_tell_of_the_others(store: FileStorage) -> None:
    check_others(store)
    report = store.scrub()
    assert (report.rotten, report.missing, report.unreadable) == (0, 0, 1)
    assert not report.clean
    assert [(damage.kind, "'bad' of 'ada'" in damage.text) for damage in report.damaged] == [("unreadable", True)]
    assert [damage.kind for damage in store.stats().recent_damage] == ["unreadable"]


def test_repair_makes_the_others_whole(store: FileStorage, root: Path) -> None:
    store.close()
    lose(root, 1)
    with open_store(root) as again:
        report = again.repair()
        assert report.shards_rebuilt > 0
        assert [damage.kind for damage in report.lost] == ["unreadable"]
        assert again.scrub().missing == 0


def test_collect_frees_what_others_leave_and_keeps_what_the_bad_one_may_need(store: FileStorage) -> None:
    store.delete(file_ids(store)["d"], user_id=USER)
    assert store.collect(grace_s=0).objects_removed > 0
    check_others(store, ("a", "c"))
    assert store.missing_chunks([digest(BAD_DATA)], user_id=USER) == [False]
    assert store.scrub().missing == 0


def test_its_name_is_refused_and_others_beside_it_go_on(store: FileStorage) -> None:
    with pytest.raises(FormatError, match="delete the file"):
        push(store, b"new", "bad")
    with pytest.raises(FormatError, match="delete the file"):
        push(store, content(1, 3 * CHUNK), "bad")
    assert push(store, b"new", "e").filename == "e"


def test_it_says_what_is_wrong_and_can_be_deleted(store: FileStorage) -> None:
    found = store.scrub().damaged[0].text
    file_id = next(word.strip("()") for word in found.split() if len(word.strip("()")) == 32)
    with pytest.raises(FormatError, match="cannot be read"):
        store.get(file_id, user_id=USER)
    with pytest.raises(FormatError, match="cannot be read"):
        store.history(file_id, user_id=USER)
    store.delete(file_id, user_id=USER)
    store.collect(grace_s=0)
    assert store.scrub().clean
    assert store.missing_chunks([digest(BAD_DATA)], user_id=USER) == [True]
    check_others(store)
    assert push(store, BAD_DATA, "bad").filename == "bad"


def test_rebuild_takes_the_others(store: FileStorage, root: Path) -> None:
    store.close()
    lose_catalog(root)
    with open_store(root) as again:
        report = again.rebuild()
        found = file_ids(again)
        for name, data in OTHERS.items():
            assert again.get(found[name], user_id=USER) == data
        # A rebuild reports what is wrong on the volumes; what was wrong only in the catalog is right again.
        assert ("bad" in found) != bool(report.skipped)


def put_back(catalog: Path, root: Path) -> None:
    """Replace the catalog by an older one."""
    lose_catalog(root)
    shutil.copytree(catalog, root / "catalog")


def break_entry(catalog: LmdbCatalog, file_id: bytes) -> None:
    """Have a file's entry say no size."""
    raw = msgspec.msgpack.encode([USER, "bad", b"", "no size"])
    catalog._tables.transact(lambda txn: txn.put("files", file_id, raw))


def test_rebuild_of_a_catalog_that_is_behind_goes_past_it(store: FileStorage, root: Path, scratch: Path) -> None:
    store.close()
    shutil.copytree(root / "catalog", scratch / "older")
    with open_store(root) as later:
        push(later, BAD_DATA, "e")
    put_back(scratch / "older", root)
    with open_store(root) as again:
        assert again.behind
        report = again.rebuild()
        assert not again.stats().behind
        found = file_ids(again)
        for name, data in (*OTHERS.items(), ("e", BAD_DATA)):
            assert again.get(found[name], user_id=USER) == data
        assert ("bad" in found) != bool(report.skipped)  # a good record on the volumes replaces a bad one
        assert push(again, b"more", "f").filename == "f"


def test_rebuild_of_a_catalog_that_is_behind_goes_past_entries_and_tombstones(root: Path, scratch: Path) -> None:
    with open_store(root) as store:
        bad, gone = (bytes.fromhex(push(store, BAD_DATA, name).file_id) for name in ("bad", "gone"))
        push(store, OTHERS["a"], "a")
        store.delete(gone.hex(), user_id=USER)
    catalog = LmdbCatalog(root / "catalog")
    break_entry(catalog, bad)
    catalog.transact(lambda txn: txn.keep_tombstone(gone, b"\xc1"))
    catalog.close()
    shutil.copytree(root / "catalog", scratch / "older")
    with open_store(root) as later:
        push(later, OTHERS["c"], "c")
    put_back(scratch / "older", root)
    with open_store(root) as again:
        assert again.behind
        assert any("entry" in text for text in again.rebuild().skipped)
        assert not again.stats().behind
        found = file_ids(again)
        assert {name: again.get(found[name], user_id=USER) for name in found} == {one: OTHERS[one] for one in "ac"}
        assert push(again, b"more", "f").filename == "f"


def test_an_old_version_that_cannot_be_read_ends_the_history_and_keeps_the_file(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(root) as store:
        push(store, b"first", "bad")
    with kept_as_they_come(monkeypatch, nothing), open_store(root) as store:
        push(store, BAD_DATA, "bad")
        file_id = push(store, b"third", "bad").file_id
        middle = bytes.fromhex(store.history(file_id, user_id=USER)[1].version_id)
    catalog = LmdbCatalog(root / "catalog")
    catalog.transact(lambda txn: txn.put_version(bytes.fromhex(file_id), middle, b"\xc1"))
    catalog.close()
    with open_store(root) as store:
        assert store.get(file_id, user_id=USER) == b"third"
        assert len(store.history(file_id, user_id=USER)) == 1
        assert store.scrub().unreadable == 1
        store.collect(grace_s=0)
        assert store.missing_chunks([digest(BAD_DATA)], user_id=USER) == [False]
        push(store, b"fourth", "bad")
        assert store.get(file_id, user_id=USER) == b"fourth"


def test_an_entry_that_cannot_be_read_hides_no_other_file(root: Path) -> None:
    with open_store(root) as store:
        identifier = bytes.fromhex(push(store, BAD_DATA, "bad").file_id)
        push(store, OTHERS["a"], "a")
    catalog = LmdbCatalog(root / "catalog")
    break_entry(catalog, identifier)
    catalog.close()
    with open_store(root) as store:
        assert store.get(file_ids(store)["a"], user_id=USER) == OTHERS["a"]
        assert store.scrub().unreadable == 1
        store.collect(grace_s=0)
        assert store.missing_chunks([digest(BAD_DATA)], user_id=USER) == [False]
        with pytest.raises(FormatError):
            store.get(identifier.hex(), user_id=USER)
        assert push(store, b"x", "z").filename == "z"


def test_a_claim_that_cannot_be_read_is_kept_and_stops_no_collect(root: Path) -> None:
    with open_store(root) as store:
        doomed = push(store, BAD_DATA, "bad").file_id
        other = push(store, OTHERS["c"], "c").file_id
        push(store, OTHERS["a"], "a")
    environment = lmdb.open(str(root / "catalog"), max_dbs=20)
    holdings = environment.open_db(b"holdings", create=False)
    with environment.begin(write=True) as txn:
        key = next(key for key, _ in txn.cursor(holdings) if key.startswith(digest(BAD_DATA)))
        txn.put(key, b"\xc1 no claim", db=holdings)
    environment.close()
    with open_store(root) as store:
        store.delete(doomed, user_id=USER)
        store.delete(other, user_id=USER)
        assert store.collect(grace_s=0).objects_removed > 0
        assert "claim" in store.stats().recent_damage[-1].text
        assert store.missing_chunks([digest(BAD_DATA)], user_id=USER) == [False]
        with store.upload(filename="again", user_id=USER) as upload:
            upload.write(BAD_DATA)
            upload.write(BAD_DATA)
            file_id = upload.commit().file_id
        assert store.get(file_id, user_id=USER) == 2 * BAD_DATA
        assert store.scrub().clean


def test_a_list_of_missed_collects_that_cannot_be_read_stops_no_collect(root: Path) -> None:
    with open_store(root) as store:
        store.delete(push(store, BAD_DATA, "gone").file_id, user_id=USER)
        push(store, OTHERS["a"], "a")
    catalog = LmdbCatalog(root / "catalog")
    catalog.save_document("collect-missed", b"\xc1")
    catalog.close()
    with open_store(root) as store:
        assert store.upkeep.is_collect_owed()  # any volume may have missed a collect
        assert store.collect(grace_s=0).bytes_freed > 0
        assert not store.upkeep.is_collect_owed()
        assert store.get(file_ids(store)["a"], user_id=USER) == OTHERS["a"]


def spoil_record(root: Path, name: bytes) -> None:
    """Make a record of the catalog's root tree unreadable."""
    environment = lmdb.open(str(root / "catalog"), max_dbs=20)
    with environment.begin(write=True) as txn:
        assert txn.get(name) is not None
        txn.put(name, b"\xc1")
    environment.close()


def test_totals_that_cannot_be_read_are_counted_again(root: Path) -> None:
    with open_store(root) as store:
        for name, data in OTHERS.items():
            push(store, data, name)
        store.delete(file_ids(store)["a"], user_id=USER)
        last = push(store, b"another version", "c")
        before = store.counts()
    for record in (b"counters", b"profiles"):
        spoil_record(root, record)
    with open_store(root) as store:
        after = store.counts()
        assert (after.files, after.versions, after.logical_bytes) == (
            before.files, before.versions, before.logical_bytes,
        )  # fmt: skip
        assert (after.reached, after.latest) == (before.reached, before.latest)
        assert not store.behind
        assert push(store, b"x", "x").sequence > last.sequence
        assert store.profiles()[0][2:] == (before.files + 1, before.versions + 1)
    with open_store(root) as store:
        assert store.counts().files == before.files + 1
        assert store.collect(grace_s=0).objects_removed > 0
        assert store.scrub().clean


def test_totals_that_cannot_be_read_hide_no_older_catalog(root: Path, scratch: Path) -> None:
    with open_store(root) as store:
        push(store, OTHERS["a"], "a")
    shutil.copytree(root / "catalog", scratch / "backup")
    with open_store(root) as store:
        push(store, OTHERS["c"], "c")
        push(store, OTHERS["d"], "d")
    put_back(scratch / "backup", root)
    spoil_record(root, b"counters")
    with open_store(root) as store:
        assert store.behind


def test_a_time_that_cannot_be_read_keeps_what_uploads_have_stored(root: Path) -> None:
    """Interrupted uploads are kept as long as if they had been interrupted just now."""
    with open_store(root) as store:
        upload = store.upload(user_id=USER, filename="big")
        upload.write(content(7, 4 * CHUNK))
        upload.claim()
        upload.abort()
        push(store, OTHERS["a"], "a")
    spoil_record(root, b"time")
    with open_store(root) as store:
        number = max(store._catalog.uploads())
        assert store.collect().bytes_freed == 0
        assert store._parts.uploads.begin() > number
    with open_store(root) as store:
        assert store.get(file_ids(store)["a"], user_id=USER) == OTHERS["a"]


def test_settings_that_cannot_be_read_are_made_again(root: Path) -> None:
    """It is then unknown which volumes wait for a repair, so all do."""
    with open_store(root) as store:
        push(store, OTHERS["a"], "a")
        before = store._parts.settings
    spoil_record(root, b"settings")
    with open_store(root) as store:
        assert not store.needs_rebuild
        assert msgspec.structs.replace(store._parts.settings, incomplete=[]) == before
        assert store._parts.settings.incomplete == list(range(6))
        assert store.stats().losses_survivable == 0
        assert store.get(file_ids(store)["a"], user_id=USER) == OTHERS["a"]
        assert store.repair().complete
        assert store.stats().losses_survivable == 2
