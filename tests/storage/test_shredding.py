"""Shredding: what was deleted cannot be read by whoever has old disks and all later keys, and nothing else is lost."""

from __future__ import annotations

import base64
import itertools
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import tracemalloc
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path

import pytest

from storage import ErasureProfile, FileStorage, FormatError, InvalidArgument
from storage.errors import CatalogBehind, KeyRequired
from storage.maintenance.living_secrets import living_secrets
from storage.sealing.master_keys import MasterKey, MasterKeys
from storage.sealing.remains import RemainsPart, decode_part, sealed_remains
from storage.sealing.secret_trees import LeafSet, SecretTree
from storage.sealing.user_keys import UserKey
from storage.shards import ShardStore
from tests.storage.helpers import CHUNK, lose_catalog

KEY, LATER = bytes(range(32)), bytes(range(1, 33))
USER = "ada"
DECODER = Path(__file__).with_name("decode_sealed_by_format.py")
OLD_STORES = Path(__file__).parent / "old_stores"
Kept = dict[str, tuple[str, bytes]]


def opened(root: Path, key: bytes | MasterKeys | None = KEY, k: int = 2, n: int = 4) -> FileStorage:
    return FileStorage.open(root, profile=ErasureProfile(k, n), chunk_size=CHUNK, key=key)


def replace_master(root: Path) -> None:
    with opened(root, MasterKeys(MasterKey(LATER), (MasterKey(KEY),))):
        pass


def push(store: FileStorage, *names: str) -> Kept:
    """Store files, small and large ones; what they have, by name."""
    kept = {name: (f"content of {name} " * 100 * (1 + at % 2 * 100)).encode() for at, name in enumerate(names)}
    return {
        name: (store.push(data, filename=name, user_id=USER, note="a note").file_id, data)
        for name, data in kept.items()
    }


def require_all(store: FileStorage, kept: Kept) -> None:
    for name, (file_id, data) in kept.items():
        assert store.get(file_id, user_id=USER) == data, name


def decoded(out: Path, key: bytes, *roots: Path) -> dict[str, bytes]:
    """What another program can read of volumes with a key, by name."""
    out.mkdir()
    (out.with_suffix(".key")).write_text(base64.b64encode(key).decode() + "\n")
    volumes = [str(path) for root in roots for path in sorted(root.glob("volumes/*"))]
    subprocess.run(
        [sys.executable, str(DECODER), str(out), str(out.with_suffix(".key")), *volumes], check=True, timeout=60
    )
    return {path.name.removeprefix(f"{USER}-"): path.read_bytes() for path in out.iterdir()}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return tmp_path / "old disks"


def test_old_disks_and_later_keys_do_not_open_what_was_deleted(root: Path, old: Path, tmp_path: Path) -> None:
    with opened(root) as store:
        kept = push(store, "a", "b", "c", "d")
        doomed = push(store, "doomed", "also doomed")
        revised = push(store, "revised")["revised"][0]
        first = store.stat(revised, user_id=USER).version_id
        kept["revised"] = revised, b"revised"
        store.push(b"revised", filename="revised", user_id=USER)
    shutil.copytree(root, old)
    with opened(root) as store:
        for file_id, _ in doomed.values():
            store.delete(file_id, user_id=USER)
        store.delete_version(revised, first, user_id=USER)
        report = store.shred()
        assert (report.versions, report.keys) == (5, 1)
        require_all(store, kept)
        kept |= push(store, "later")
    assert "doomed" in decoded(tmp_path / "before", KEY, old)
    replace_master(root)
    with opened(root, LATER) as store:
        require_all(store, kept)
    found = decoded(tmp_path / "after", LATER, old, root)
    assert found == {name: data for name, (_, data) in kept.items()}
    # The engine itself has no more than that: it finds all volumes as they were, and only the later key.
    lose_catalog(old)
    with opened(old, LATER) as store, pytest.raises(KeyRequired):
        store.rebuild()


def test_it_is_shredded_again_and_again_and_rebuilt_in_between(root: Path, tmp_path: Path) -> None:
    with opened(root) as store:
        kept = push(store, *(f"file {number}" for number in range(20)))
        for number in range(0, 20, 3):
            store.delete(kept.pop(f"file {number}")[0], user_id=USER)
        store.shred()
        former = store.upkeep.keys.keys_of("system:shredding").ids
        for number in range(1, 20, 3):
            store.delete(kept.pop(f"file {number}")[0], user_id=USER)
        report = store.shred()
        assert report.versions == len(kept)
        assert not store.upkeep.keys.keys_of("system:shredding").ids & former
        require_all(store, kept)
    lose_catalog(root)
    with opened(root) as store:
        report_of_rebuild = store.rebuild()
        assert not report_of_rebuild.undecided
        assert not report_of_rebuild.skipped
        require_all(store, kept)
        assert {version.filename for version in store.list_files(user_id=USER)} == set(kept)
        store.collect(grace_s=0)
        store.scrub()
        require_all(store, kept)
        kept |= push(store, "new", "newer")
        store.delete(kept.pop("new")[0], user_id=USER)
        store.shred()
        require_all(store, kept)
    replace_master(root)
    assert decoded(tmp_path / "out", LATER, root) == {name: data for name, (_, data) in kept.items()}


def test_secrets_are_not_given_twice(root: Path) -> None:
    """Not after a crash, nor after a rebuild: destroying one would destroy both."""
    names: list[tuple[bytes, int]] = []

    def note(store: FileStorage) -> None:
        secrets = store.upkeep.keys._secrets
        names.append(secrets.take().name)

    with opened(root) as store:
        push(store, "a")
        note(store)
    for _ in range(2):
        with opened(root) as store:
            push(store, "b")
            note(store)
    shutil.copytree(root / "catalog", root.with_name("catalog"))
    with opened(root) as store:
        push(store, "c", "d")
        note(store)
    for lost in (True, False):
        lose_catalog(root)
        if not lost:
            shutil.copytree(root.with_name("catalog"), root / "catalog")
        with opened(root) as store:
            if store.needs_rebuild or store.behind:
                store.rebuild()
            push(store, f"e{lost}")
            note(store)
    assert len(set(names)) == len(names)


_KILLED = """
import os, signal, sys
from pathlib import Path
from storage import FileStorage
from storage.sealing import remains

root, where, after = sys.argv[1], sys.argv[2], int(sys.argv[3])
remains._PART_SEEDS = 3
cls, name = {"volume": (LocalVolume, "append"), "removal": (LocalVolume, "remove"),
             "catalog": (LmdbCatalog, "save_documents")}[where]
real, calls = getattr(cls, name), 0

def counted(self, *arguments, **options):
    global calls
    calls += 1
    if calls > after:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, *arguments, **options)

with FileStorage.open(root, create=False, key=bytes(range(32))) as store:
    setattr(cls, name, counted)
    store.shred()
"""


@pytest.mark.parametrize(
    ("where", "after"),
    [
        *(("catalog", at) for at in range(4)),
        *(("volume", at) for at in range(0, 20, 2)),
        *(("removal", at) for at in range(0, 8, 2)),
    ],
)
def test_a_turn_may_be_killed_anywhere(root: Path, old: Path, tmp_path: Path, where: str, after: int) -> None:
    with opened(root) as store:
        kept = push(store, "a", "b", "c", "d", "e")
        for name in ("b", "d"):
            store.delete(kept.pop(name)[0], user_id=USER)
        store.shred()
        kept |= push(store, *(f"more {number}" for number in range(9)))
        doomed = push(store, "doomed")
        for name in ("a", "more 3", "more 5"):
            doomed[name] = kept.pop(name)
    shutil.copytree(root, old)
    with opened(root) as store:
        for file_id, _ in doomed.values():
            store.delete(file_id, user_id=USER)
    subprocess.run([sys.executable, "-c", _KILLED, str(root), where, str(after)], check=False, timeout=60)
    for step in ("opened", "killed again", "rebuilt"):
        if step == "killed again":
            subprocess.run([sys.executable, "-c", _KILLED, str(root), where, str(after)], check=False, timeout=60)
        if step == "rebuilt":
            lose_catalog(root)
        with opened(root) as store:
            if step == "rebuilt":
                report = store.rebuild()
                assert not report.undecided
                assert not report.skipped
            require_all(store, kept)
            kept |= push(store, f"later, {step}")
            if step != "opened":
                store.shred()
            require_all(store, kept)
    replace_master(root)
    assert decoded(tmp_path / "out", LATER, old, root) == {name: data for name, (_, data) in kept.items()}


def test_volumes_that_were_away_lose_what_they_have_when_they_are_back(root: Path, old: Path, tmp_path: Path) -> None:
    with opened(root) as store:
        kept = push(store, "a", "b", "doomed")
    shutil.copytree(root, old)
    shutil.move(root / "volumes" / "1", tmp_path / "away")
    with opened(root) as store:
        store.delete(kept.pop("doomed")[0], user_id=USER)
        store.shred()
        require_all(store, kept)
    shutil.rmtree(root / "volumes" / "1", ignore_errors=True)
    shutil.move(tmp_path / "away", root / "volumes" / "1")
    with opened(root) as store:
        store.repair()
        require_all(store, kept)
        keys = store.upkeep.keys
        alive = {key_id for user in (USER, "system:shredding", "system:catalog") for key_id in keys.keys_of(user).ids}
        for slot, volume in keys._volumes.online():
            for _, found in keys._on_volumes.keys_on(slot, volume):
                assert found is not None
                assert {one.key_id for one in found.keys} == alive
            assert len([*keys._on_volumes.remains_on(slot, volume)]) == 1
    # Any single volume has all that a rebuild needs besides content.
    for slot in range(4):
        copy = tmp_path / f"copy {slot}"
        shutil.copytree(root, copy)
        lose_catalog(copy)
        for lost in (slot, (slot + 1) % 4):
            shutil.rmtree(copy / "volumes" / str(lost))
        with opened(copy) as store:
            store.rebuild()
            require_all(store, kept)


def test_everything_goes_on_while_it_is_shredded(root: Path) -> None:
    with opened(root) as store:
        kept = push(store, "before")
        stop = threading.Event()
        failures: list[BaseException] = []

        def work(number: int) -> None:
            at = 0
            try:
                while not stop.is_set():
                    at += 1
                    own = push(store, f"{number}-{at}", f"{number}-{at}-large")
                    require_all(store, own)
                    if at % 2:
                        store.delete(own.pop(f"{number}-{at}")[0], user_id=USER)
                    kept.update(own)
            except BaseException as error:
                failures.append(error)

        workers = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        for worker in workers:
            worker.start()
        turns = [store.shred() for _ in range(8)]
        stop.set()
        for worker in workers:
            worker.join()
        assert not failures
        assert all(turn.keys == 1 for turn in turns)
        require_all(store, kept)
        store.shred()
    with opened(root) as store:
        require_all(store, kept)
    lose_catalog(root)
    with opened(root) as store:
        store.rebuild()
        require_all(store, kept)


def test_a_store_of_an_earlier_release_goes_on(tmp_path: Path) -> None:
    with tarfile.open(OLD_STORES / "sealed-format-3.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    root = tmp_path / "store"

    def require_old(store: FileStorage) -> None:
        two = store.find("two versions", user_id=USER)
        assert two is not None
        history = store.history(two.file_id, user_id=USER)
        contents = [store.get(two.file_id, user_id=USER, version_id=one.version_id) for one in history]
        assert contents[-2:] == [b"second", b"first"]
        assert history[-2].note == "a note"
        large, empty = store.find("large", user_id=USER), store.find("empty", user_id="eve")
        assert large is not None
        assert empty is not None
        assert store.get(large.file_id, user_id=USER) == b"many chunks" * 6400
        assert empty.attributes == {"type": b"text"}
        assert store.find("deleted", user_id="eve") is None

    with FileStorage.open(root, create=False, key=KEY) as store:
        require_old(store)
        assert store.shred().versions == 0
        require_old(store)
        store.push(b"third", filename="two versions", user_id=USER)
        kept = push(store, "new", "doomed")
        store.delete(kept.pop("doomed")[0], user_id=USER)
        store.shred()
        require_old(store)
        require_all(store, kept)
    lose_catalog(root)
    with FileStorage.open(root, create=False, key=KEY) as store:
        store.rebuild()
        require_old(store)
        require_all(store, kept)


def test_nothing_is_shredded_if_it_is_not_known_what_stays(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(root) as store:
        kept = push(store, "a", "b")
        catalog = store.upkeep.documents
        version = store.stat(kept["a"][0], user_id=USER)
        key = bytes.fromhex(version.file_id), bytes.fromhex(version.version_id)
        raw = catalog.version(*key)
        assert raw is not None
        catalog.transact(lambda txn: txn.put_version(*key, b"damaged"))
        with pytest.raises(FormatError, match="nothing was shredded"):
            store.shred()
        catalog.transact(lambda txn: txn.put_version(*key, raw))
        require_all(store, kept)
        store.shred()
        require_all(store, kept)


def test_a_plain_store_has_nothing_to_shred(root: Path) -> None:
    with opened(root, None) as store:
        store.push(b"x", filename="x", user_id=USER)
        with pytest.raises(InvalidArgument, match="does not encrypt"):
            store.shred()


def test_a_damaged_record_of_what_is_left_is_taken_from_the_volumes(root: Path) -> None:
    with opened(root) as store:
        kept = push(store, "a", "b", "c")
        store.delete(kept.pop("b")[0], user_id=USER)
        store.shred()
        store.upkeep.documents.save_document("shredding-remains-0", b"damaged")
    with opened(root) as store:
        require_all(store, kept)
        kept |= push(store, "d")
        store.shred()
        require_all(store, kept)


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have small stores need several parts, too."""
    monkeypatch.setattr("storage.sealing.remains._PART_SEEDS", 3)


def test_what_only_one_volume_knows_is_not_removed_from_it(root: Path, tmp_path: Path) -> None:
    """A rebuild did not find it, as the volume was away; once it is back, it gives it to the others."""
    with opened(root) as store:
        kept = push(store, "a", "b", "c")
        store.delete(kept.pop("b")[0], user_id=USER)
        store.shred()
        kept |= push(store, "later")
        keys = store.upkeep.keys._on_volumes
        for slot, volume in store.upkeep.keys._volumes.online():
            if slot != 1:
                volume.remove([key for key, _ in keys.remains_on(slot, volume)])
    lose_catalog(root)
    shutil.move(root / "volumes" / "1", tmp_path / "away")
    with opened(root) as store:
        store.rebuild()
        require_all(store, {"later": kept["later"]})
        assert store.find("a", user_id=USER) is None
    shutil.rmtree(root / "volumes" / "1", ignore_errors=True)
    shutil.move(tmp_path / "away", root / "volumes" / "1")
    with opened(root) as store:
        store.repair()
        store.scrub()
        store.shred()  # it does not destroy the secrets of what could not be rebuilt
    lose_catalog(root)
    shutil.rmtree(root / "volumes" / "1")
    with opened(root) as store:
        store.rebuild()
        require_all(store, kept)
        store.shred()
        require_all(store, kept)


def test_no_user_has_the_name_of_the_keys_that_are_destroyed(root: Path) -> None:
    with opened(root) as store:
        kept = push(store, "a")
        for name in ("system:shredding", "system:catalog"):
            with pytest.raises(InvalidArgument, match="no user can be named"):
                store.push(b"x", filename="x", user_id=name)
            with pytest.raises(InvalidArgument, match="no user can be named"):
                store.rotate_key(user_id=name)
        store.shred()
        require_all(store, kept)


def test_turns_that_failed_do_not_use_up_the_keys_of_a_user(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.sealing.keyring.KEYS_OF_USER_MAX", 4)
    with opened(root) as store:
        kept = push(store, "a", "doomed")
        version = store.stat(kept["doomed"][0], user_id=USER)
        key = bytes.fromhex(version.file_id), bytes.fromhex(version.version_id)
        catalog = store.upkeep.documents
        raw = catalog.version(*key)
        assert raw is not None
        catalog.transact(lambda txn: txn.put_version(*key, b"damaged"))
        for _ in range(5):
            with pytest.raises(FormatError, match="nothing was shredded"):
                store.shred()
        catalog.transact(lambda txn: txn.put_version(*key, raw))
        store.shred()
        require_all(store, kept)


def living(store: FileStorage, key_ids: Set[bytes]) -> Mapping[bytes, LeafSet]:
    return living_secrets(store.upkeep.documents, key_ids)


def test_nothing_is_lost_if_the_first_key_is_made_while_it_is_shredded(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that makes it must not have it used in the place of the turn's key, which is the one that stays."""
    with opened(root) as store:
        keys = store.upkeep.keys
        kept: Kept = {}
        is_made, is_used = threading.Event(), threading.Event()
        use = keys._secrets.use

        def push_first() -> None:
            kept.update(push(store, "first"))

        def use_late(key: UserKey) -> None:
            if threading.current_thread() is first:
                is_made.set()
                is_used.wait(0.5)
            use(key)

        @contextmanager
        def pausing() -> Iterator[None]:
            first.start()
            assert is_made.wait(30)
            with store.upkeep._commits.paused():
                yield
            is_used.set()

        def scan(key_ids: Set[bytes]) -> Mapping[bytes, LeafSet]:
            first.join()
            found = living(store, key_ids)
            kept.update(push(store, "second"))
            return found

        first = threading.Thread(target=push_first)
        monkeypatch.setattr(keys._secrets, "use", use_late)
        keys.shred(scan, pausing, lambda: None)
        require_all(store, kept)


@pytest.mark.parametrize("when", ["before the keys are known", "after the versions are known"])
def test_nothing_is_shredded_if_a_rebuild_begins_meanwhile(root: Path, when: str) -> None:
    """What it adds would be lost, and so would versions whose key it has made."""
    with opened(root) as store:
        keys = store.upkeep.keys
        kept = push(store, "a", "b")

        def begin() -> None:
            keys.recover()
            kept.update(push(store, when))

        @contextmanager
        def pausing() -> Iterator[None]:
            with store.upkeep._commits.paused():
                yield
            if when.startswith("before"):
                begin()

        def scan(key_ids: Set[bytes]) -> Mapping[bytes, LeafSet]:
            found = living(store, key_ids)
            if when.startswith("after"):
                begin()
            kept.update(push(store, "later"))
            return found

        with pytest.raises(CatalogBehind, match="nothing was shredded"):
            keys.shred(scan, pausing, lambda: None)
        require_all(store, kept)
        store.shred()
        require_all(store, kept)


def test_a_rebuild_opens_what_many_volumes_have_alike_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise, it would take as much memory for each of them."""
    with opened(root) as store:
        tree = SecretTree.whole(bytes(32)).cut_to(LeafSet(range(0, 20_000, 2)))
        monkeypatch.setattr("storage.sealing.remains._PART_SEEDS", 200_000)
        keys = store.upkeep.keys
        key = keys._make("system:shredding")
        part = decode_part(sealed_remains(key, {bytes(16): tree}, os.urandom)[0])

        def peak(copies: int) -> int:
            tracemalloc.start()
            try:
                found = keys._secrets.found(itertools.repeat(part, copies))
                assert found is not None
                assert len(found[bytes(16)]) == len(tree)
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

        assert peak(10) < 2 * peak(1)


def test_a_volume_that_is_slow_to_show_what_it_knows_delays_nobody(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(root) as store:
        kept = push(store, "a", "b", "c")
        store.delete(kept.pop("b")[0], user_id=USER)
        store.shred()
        keys = store.upkeep.keys
        keys._secrets.is_lacking = True
        is_asked, is_done = threading.Event(), threading.Event()
        read = keys._on_volumes.remains_read

        def slow(slot: int, volume: ShardStore) -> Iterator[RemainsPart]:
            is_asked.set()
            assert is_done.wait(30)
            yield from read(slot, volume)

        monkeypatch.setattr(keys._on_volumes, "remains_read", slow)
        asking = threading.Thread(target=keys.spread)
        asking.start()
        assert is_asked.wait(30)
        pushing = threading.Thread(target=store.push, args=(b"x",), kwargs={"filename": "x", "user_id": "eve"})
        pushing.start()
        pushing.join(10)
        is_late = pushing.is_alive()
        is_done.set()
        asking.join()
        pushing.join()
        assert not is_late
        require_all(store, kept)


def test_a_version_whose_secret_volumes_may_have_is_not_called_shredded(root: Path) -> None:
    with opened(root) as store:
        kept = push(store, "a", "b")
        store.delete(kept.pop("b")[0], user_id=USER)
        store.shred()
        store.upkeep.documents.save_document("shredding-remains-0", b"damaged")
        keys = store.upkeep.keys
        for slot, volume in keys._volumes.online():
            volume.remove([key for key, _ in keys._on_volumes.remains_on(slot, volume)])
    with opened(root) as store:
        with pytest.raises(KeyRequired, match="volumes that are away may have it"):
            store.get(kept["a"][0], user_id=USER)
        with pytest.raises(FormatError, match="nothing was shredded"):
            store.shred()
