"""Encryption at rest: what is on disk, what opens it, and what remains if a key is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import ErasureProfile, FileStorage, FormatError, InvalidArgument
from storage.errors import KeyRequired, SealBroken
from storage.formats.authenticity import Authority, new_secret
from storage.formats.manifest import (
    TRANSFORM_SEALED,
    Manifest,
    ManifestBuilder,
    RootNode,
    edited,
    encode_root,
    object_id,
    plain_id,
)
from storage.formats.sealed_nodes import manifest_over, node_namer
from storage.formats.sealed_versions import SecretName, VersionSecret
from storage.formats.version_records import NO_MAC, SIGNED_FORMAT, SignedRecord
from storage.formats.versions import (
    StoredVersion,
    checked_outline,
    decode_version,
    is_signed,
    outline,
    read_version,
    seal_encrypted,
)
from storage.keys import Kind
from storage.sealing.keyring import Keyring, decode_sealed_keys
from storage.sealing.master_keys import MasterKey, MasterKeys, new_key_file, read_key_file
from storage.sealing.objects import OVERHEAD_BYTES, opened, sealed
from storage.sealing.user_keys import UserKey, UserKeys
from storage.system.private_paths import NotPrivate
from tests.storage.helpers import CHUNK, lose_catalog, open_store

KEY = bytes(range(32))
SECRET = VersionSecret(SecretName(b"s" * 16, 7), bytes(32))
OTHER_KEY = bytes(reversed(range(32)))
ADA, EVE = "planted-user-ada", "planted-user-eve"
PLANTED = b"PlantedPlaintext"
OLD_STORES = Path(__file__).parent / "old_stores"
DECODER = Path(__file__).with_name("decode_sealed_by_format.py")
DECODER_LINES_MAX = 110


def open_sealed(root: Path, key: bytes | Path | None = KEY) -> FileStorage:
    return FileStorage.open(root, profile=ErasureProfile(4, 6), chunk_size=CHUNK, key=key)


def random_bytes(size: int, seed: int) -> bytes:
    return Random(seed).randbytes(size)


def user_key(user: str = ADA, epoch: int = 1, seed: int = 0) -> UserKey:
    rng = Random(f"{user} {epoch} {seed}")
    return UserKey(user, epoch, rng.randbytes(16), rng.randbytes(32))


def keys(*several: UserKey) -> UserKeys:
    return UserKeys(several[0].user_id, *several)


@pytest.fixture
def secret_store(root: Path) -> Iterator[FileStorage]:
    with open_sealed(root) as store:
        yield store


# -- objects ------------------------------------------------------------------------------------------------


@given(data=st.binary(min_size=1, max_size=300), kind=st.sampled_from([Kind.CHUNK, Kind.NODE]), flipped=st.integers(0))
@settings(max_examples=60, deadline=None)
def test_a_sealed_object_opens_to_its_content_only(data: bytes, kind: Kind, flipped: int) -> None:
    key, identifier = user_key(epoch=3), object_id(data)
    raw = sealed(key, kind, identifier, data)
    assert len(raw) == len(data) + OVERHEAD_BYTES
    assert raw == sealed(key, kind, identifier, data)
    assert opened(keys(key), kind, identifier, raw) == data
    changed = bytearray(raw)
    changed[flipped % len(raw)] ^= 1 + flipped % 255
    with pytest.raises((SealBroken, KeyRequired)):
        opened(keys(key), kind, identifier, changed)


def test_every_user_epoch_kind_and_content_has_a_key_of_its_own() -> None:
    ours, data = user_key(), bytes(1000)
    variants = [
        sealed(ours, Kind.CHUNK, object_id(data), data),
        sealed(ours, Kind.NODE, object_id(data), data),
        sealed(user_key(epoch=2), Kind.CHUNK, object_id(data), data),
        sealed(user_key(EVE), Kind.CHUNK, object_id(data), data),
        sealed(ours, Kind.CHUNK, object_id(b"other"), data),
    ]
    # With the same key and nonce, equal plaintext would have equal ciphertext.
    assert len({raw[:32] for raw in variants}) == len(variants)
    for other in variants[1:]:
        with pytest.raises((SealBroken, KeyRequired)):
            opened(keys(ours), Kind.CHUNK, object_id(data), other)


def test_an_epoch_may_have_two_keys() -> None:
    data, identifier = b"content", object_id(b"content")
    one, other = user_key(seed=1), user_key(seed=2)
    for order in ((one, other), (other, one)):
        assert keys(*order).current in order
        for key in order:
            assert opened(keys(*order), Kind.CHUNK, identifier, sealed(key, Kind.CHUNK, identifier, data)) == data


def test_a_key_shows_nothing_secret() -> None:
    key, store_key = user_key(), MasterKey(KEY)
    for shown in (repr(key), repr(store_key), repr(MasterKeys(store_key))):
        assert key.secret.hex() not in shown
        assert KEY.hex() not in shown
        assert repr(KEY) not in shown


# -- manifests ----------------------------------------------------------------------------------------------

SIZE = 65536


def _references(contents: Sequence[int], key: UserKey) -> list[bytes]:
    found = []
    for one in contents:
        identifier = object_id(one.to_bytes(8, "big"))
        found.append(identifier + object_id(key.objects + identifier))
    return found


def _built(references: Sequence[bytes], key: UserKey, nodes: dict[bytes, bytes]) -> Manifest:
    builder = ManifestBuilder(lambda reference, raw: nodes.update({reference[32:]: raw}), node_namer(key), 1)
    for reference in references:
        builder.add(reference)
    root = builder.root(len(references) * SIZE, SIZE, ErasureProfile(4, 6))
    return manifest_over(root, keys(key), nodes.__getitem__)


@given(count=st.integers(0, 2200), new_count=st.integers(0, 2200), changed=st.sets(st.integers(0, 2199), max_size=4))
@settings(max_examples=25, deadline=None)
def test_a_sealed_tree_edited_is_the_tree_built_anew(count: int, new_count: int, changed: set[int]) -> None:
    key, nodes = user_key(), dict[bytes, bytes]()
    before = _references(range(count), key)
    after = _references([one + 10_000 if one in changed else one for one in range(new_count)], key)
    manifest = _built(before, key, nodes)
    assert list(manifest.references()) == before
    changes = [(at, one) for at, one in enumerate(after) if at >= count or before[at] != one]
    root = edited(
        manifest, new_count * SIZE, changes, lambda reference, raw: nodes.update({reference[32:]: raw}), node_namer(key)
    )
    assert root == _built(after, key, {}).root
    assert root.transform == TRANSFORM_SEALED
    again = manifest_over(root, keys(key), nodes.__getitem__)
    assert list(again.references()) == after
    assert list(again.chunk_ids()) == [plain_id(one) for one in after]
    assert all(object_id(nodes[node]) == node for node in again.node_ids())


# -- versions -----------------------------------------------------------------------------------------------


def _authority(seed: int = 1) -> Authority:
    authority = Authority()
    authority.use(new_secret(1, Random(seed).randbytes))
    return authority


class _Ring:
    """Finds one key."""

    def __init__(self, key: UserKey) -> None:
        self.key = key

    def find(self, key_id: bytes) -> UserKey:
        if key_id != self.key.key_id:
            raise KeyRequired("another key")
        return self.key

    def keys_of(self, user_id: str) -> UserKeys:
        return keys(self.key)

    def secret_of(self, key_id: bytes, leaf: int) -> bytes:
        if (key_id, leaf) != SECRET.name:
            raise KeyRequired("another secret")
        return SECRET.raw


def _version(name: str = "planted-name", note: str = "planted-note", sequence: int = 7) -> StoredVersion:
    root = RootNode(1, 10, SIZE, 1, 3, TRANSFORM_SEALED, 0, bytes(64))
    raw_root = encode_root(root)
    record = SignedRecord(
        SIGNED_FORMAT, bytes(16), None, object_id(raw_root), 10, ADA, name, 5, sequence, None, note, 3, NO_MAC
    )
    return seal_encrypted(record, root, raw_root, _authority(), user_key(), SECRET, Random(2).randbytes)


@given(flipped=st.integers(0, 100_000), bit=st.integers(0, 7), sequence=st.integers(1, (1 << 63) - 1))
@settings(max_examples=150, deadline=None)
def test_a_sealed_version_comes_back_and_bears_no_change(flipped: int, bit: int, sequence: int) -> None:
    stored, ring = _version(sequence=sequence), _Ring(user_key())
    for found in (read_version(stored.raw, stored.version_id, ring), decode_version(stored.raw, None, ring)):
        assert (found.record, found.root, found.version_id) == (stored.record, stored.root, stored.version_id)
    seen = checked_outline(stored.raw, stored.version_id)
    assert (seen.sequence, seen.committed, seen.k, seen.n) == (sequence, 3, 1, 3)
    assert is_signed(seen, _authority())
    assert not is_signed(seen, _authority(2))
    raw = bytearray(stored.raw)
    raw[flipped % len(raw)] ^= 1 << bit
    try:
        changed = checked_outline(bytes(raw))
    except FormatError:
        return
    assert not is_signed(changed, _authority())


def test_a_sealed_version_shows_no_name_owner_or_note() -> None:
    stored = _version()
    for planted in (b"planted", ADA.encode(), object_id(encode_root(stored.root))):
        assert planted not in stored.raw
    assert outline(stored.raw, stored.version_id).record is None
    for ring in (None, _Ring(user_key(EVE))):
        with pytest.raises(KeyRequired):
            read_version(stored.raw, stored.version_id, ring)


# -- keys ---------------------------------------------------------------------------------------------------


def _ring(key: bytes | None, *former: bytes) -> Keyring:
    masters = None if key is None else MasterKeys(MasterKey(key), tuple(map(MasterKey, former)))
    return Keyring(masters, os.urandom)


def test_users_keys_open_with_their_master_key_only() -> None:
    ours = _ring(KEY)
    key, raw = ours.made(ADA)
    ours.take(decode_sealed_keys(raw))
    assert key.secret not in raw
    assert ADA.encode() not in raw
    again = _ring(KEY)
    again.take(decode_sealed_keys(raw))
    assert again.find(key.key_id).secret == key.secret
    for stranger in (_ring(None), _ring(OTHER_KEY)):
        stranger.take(decode_sealed_keys(raw))
        with pytest.raises(KeyRequired, match=MasterKey(KEY).id.hex()):
            stranger.find(key.key_id)


@given(flipped=st.integers(0, 10_000), bit=st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_a_changed_key_is_left_out(flipped: int, bit: int) -> None:
    ours = _ring(KEY)
    key, whole = ours.made(ADA)
    raw = bytearray(whole)
    raw[flipped % len(raw)] ^= 1 << bit
    again = _ring(KEY)
    try:
        again.take(decode_sealed_keys(bytes(raw)))
    except FormatError:
        return
    with pytest.raises(KeyRequired):
        again.find(key.key_id)


def test_keys_sealed_anew_need_the_new_master_key() -> None:
    ours = _ring(KEY)
    key, raw = ours.made(ADA)
    ours.take(decode_sealed_keys(raw))
    changed = ours.rewrapped(MasterKeys(MasterKey(OTHER_KEY)))
    for master, is_right in ((KEY, False), (OTHER_KEY, True)):
        again = _ring(master)
        again.take(decode_sealed_keys(changed))
        assert again.has_opened() is is_right
    assert ours.find(key.key_id).secret == key.secret


def test_a_key_file_is_private(tmp_path: Path) -> None:
    path = tmp_path / "key"
    made = new_key_file(path)
    assert read_key_file(path).current.raw == made.current.raw
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(InvalidArgument, match="must not be replaced"):
        new_key_file(path)
    path.chmod(0o640)
    with pytest.raises(NotPrivate, match="chmod 600"):
        read_key_file(path)
    path.write_text("no key")
    path.chmod(0o600)
    with pytest.raises(KeyRequired, match="is no key"):
        read_key_file(path)
    with pytest.raises(KeyRequired, match="there is no key file"):
        read_key_file(tmp_path / "none")


# -- stores -------------------------------------------------------------------------------------------------


def planted(size: int, seed: int) -> bytes:
    return (PLANTED + random_bytes(size, seed))[:size]


def on_disk(root: Path) -> Iterator[bytes]:
    for path in sorted(root.glob("volumes/*/*.seg")):
        yield path.read_bytes()


def fill(store: FileStorage) -> dict[str, tuple[str, bytes]]:
    """Store files of all kinds; return their contents, by file id."""
    kept: dict[str, tuple[str, bytes]] = {}
    for number, size in enumerate((0, 1, 17, 4096, CHUNK, CHUNK + 1, 5 * CHUNK + 17)):
        data = planted(size, number)
        version = store.push(data, filename=f"planted-name-{number}", user_id=ADA, note="planted-note")
        kept[version.file_id] = ADA, data
    many = [(f"planted-name-many-{at}", planted(3000, 50 + at)) for at in range(5)]
    for outcome in store.push_many(many, user_id=EVE):
        assert outcome.version is not None
        kept[outcome.version.file_id] = EVE, planted(3000, 50 + outcome.position)
    changed = planted(6 * CHUNK, 99)
    large = list(kept)[6]
    store.revise(large, store.diff(large, changed, user_id=ADA), user_id=ADA)
    kept[large] = ADA, changed
    return kept


def require_all(store: FileStorage, kept: dict[str, tuple[str, bytes]]) -> None:
    for file_id, (user, data) in kept.items():
        assert store.get(file_id, user_id=user) == data
    for user in (ADA, EVE):
        ids = [file_id for file_id, (owner, _) in kept.items() if owner == user]
        assert [one.data for one in store.get_many(ids, user_id=user)] == [kept[file_id][1] for file_id in ids]


def test_no_plaintext_is_on_the_volumes(root: Path) -> None:
    with open_sealed(root) as store:
        kept = fill(store)
        require_all(store, kept)
        report = store.scrub()
        assert not report.rotten
        assert not store.repair().lost
        store.collect(grace_s=0)
        require_all(store, kept)
    for raw in on_disk(root):
        for plaintext in (PLANTED, b"planted", ADA.encode(), EVE.encode()):
            assert plaintext not in raw
    with open_sealed(root) as store:
        require_all(store, kept)


def test_another_program_reads_an_encrypted_store(root: Path, tmp_path: Path) -> None:
    assert len(DECODER.read_text().splitlines()) <= DECODER_LINES_MAX
    new_key_file(tmp_path / "key")
    with open_sealed(root, tmp_path / "key") as store:
        kept = fill(store)
        expected = {f"{user}-{store.stat(one, user_id=user).filename}": data for one, (user, data) in kept.items()}
        store.push(b"seen", filename="attributed", user_id=EVE, attributes={"etag": b"1", "type": b"text"})
        expected |= {f"{EVE}-attributed": b"seen", f"{EVE}-attributed@etag": b"1", f"{EVE}-attributed@type": b"text"}
    out = tmp_path / "out"
    out.mkdir()
    volumes = [str(root / "volumes" / str(slot)) for slot in range(2, 6)]
    subprocess.run([sys.executable, str(DECODER), str(out), str(tmp_path / "key"), *volumes], check=True, timeout=60)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == expected


def test_a_store_asks_for_its_key(root: Path) -> None:
    with open_sealed(root) as store:
        fill(store)
    with pytest.raises(KeyRequired, match=rf"{MasterKey(KEY).id.hex()}.*no key was given"):
        open_sealed(root, None)
    with pytest.raises(KeyRequired, match=rf"{MasterKey(KEY).id.hex()}.*{MasterKey(OTHER_KEY).id.hex()}"):
        open_sealed(root, OTHER_KEY)
    with open_sealed(root) as store:
        assert len(store.list_files(user_id=ADA)) == 7


def test_a_plain_store_goes_on_encrypted(root: Path) -> None:
    before = random_bytes(3 * CHUNK + 5, 1)
    with open_store(root) as store:
        left = store.push(before, filename="left", user_id=ADA)
        revised = store.push(before, filename="revised", user_id=ADA)
    with open_sealed(root) as store:
        kept = fill(store)
        assert store.get(left.file_id, user_id=ADA) == before
        after = before[: 2 * CHUNK] + planted(CHUNK, 7)
        diff = store.diff(revised.file_id, after, user_id=ADA)
        assert len(diff.patches) == 1
        store.revise(revised.file_id, diff, user_id=ADA)
        assert store.get(revised.file_id, user_id=ADA) == after
        assert store.get(revised.file_id, user_id=ADA, version_id=revised.version_id) == before
        synced = store.synchronize(revised.file_id, have_version_id=revised.version_id, user_id=ADA)
        assert [patch.index for patch in synced.patches] == [2, 3][: len(synced.patches)]
        again = store.push(before, filename="left", user_id=ADA)
        assert not again.unchanged
        assert store.push(before, filename="left", user_id=ADA).unchanged
        store.collect(grace_s=0)
        require_all(store, kept)
    lose_catalog(root)
    with open_sealed(root) as store:
        store.rebuild()
        require_all(store, kept)
        assert store.get(left.file_id, user_id=ADA, version_id=left.version_id) == before
        assert store.get(revised.file_id, user_id=ADA) == after


def test_a_store_made_before_goes_on_encrypted(tmp_path: Path) -> None:
    with tarfile.open(OLD_STORES / "format-1.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    root = next(path for path in tmp_path.rglob("STORE")).parent
    with FileStorage.open(root, create=False) as store:
        users = {entry.entry.user_id for entry in store.upkeep.documents.versions() if entry.entry is not None}
        old = [(version, user) for user in users for version in store.list_files(user_id=user)]
        contents = [store.get(version.file_id, user_id=user) for version, user in old]
    assert old
    with FileStorage.open(root, create=False, key=KEY) as store:
        kept = fill(store)
        for (version, user), data in zip(old, contents, strict=True):
            assert store.get(version.file_id, user_id=user) == data
        store.scrub()
        store.repair()
        store.collect(grace_s=0)
        require_all(store, kept)


def test_rebuild_gives_everything_back_with_the_key_and_says_what_is_there_without(root: Path) -> None:
    with open_sealed(root) as store:
        kept = fill(store)
        store.delete(next(iter(kept)), user_id=ADA)
        del kept[next(iter(kept))]
    lose_catalog(root)
    shutil.rmtree(root / "volumes" / "0")
    shutil.rmtree(root / "volumes" / "3")
    for wrong in (None, OTHER_KEY):
        with open_sealed(root, wrong) as store:
            with pytest.raises(KeyRequired, match=rf"12 files with 13 versions.*{MasterKey(KEY).id.hex()}"):
                store.rebuild()
            assert store.needs_rebuild
    with open_sealed(root) as store:
        assert not store.rebuild().undecided
        require_all(store, kept)
        store.repair()
        chunk_ids = store.chunk_ids(list(kept)[5], user_id=ADA)
        assert store.missing_chunks(chunk_ids, user_id=ADA) == [False] * len(chunk_ids)
        store.collect(grace_s=0)
        require_all(store, kept)


def test_equal_content_is_shared_within_a_user_only(secret_store: FileStorage) -> None:
    data = random_bytes(4 * CHUNK, 1)
    first = secret_store.push(data, filename="first", user_id=ADA)
    chunk_ids = secret_store.chunk_ids(first.file_id, user_id=ADA)
    assert secret_store.missing_chunks(chunk_ids, user_id=ADA) == [False] * 4
    assert secret_store.missing_chunks(chunk_ids, user_id=EVE) == [True] * 4

    def grown_by(user: str, pushed: bytes, name: str) -> int:
        before = secret_store.stats().stored_bytes
        secret_store.push(pushed, filename=name, user_id=user)
        return secret_store.stats().stored_bytes - before

    assert grown_by(ADA, data, "second") < CHUNK
    secret_store.push(b"x", filename="makes the key", user_id=EVE)
    # What another user has costs exactly what nobody has.
    assert grown_by(EVE, data, "same0") == grown_by(EVE, random_bytes(4 * CHUNK, 2), "other")


def test_a_push_is_resumed_with_chunks_named_by_their_content(secret_store: FileStorage) -> None:
    data = random_bytes(5 * CHUNK, 1)
    upload = secret_store.upload(filename="cut off", user_id=ADA)
    upload.write(data[: 3 * CHUNK])
    upload.abort()
    ids = [object_id(data[at : at + CHUNK]) for at in range(0, len(data), CHUNK)]
    assert secret_store.missing_chunks(ids, user_id=ADA) == [False, False, False, True, True]
    with secret_store.upload(filename="resumed", user_id=ADA) as again:
        again.reuse(ids[:3])
        again.write(data[3 * CHUNK :])
        version = again.commit()
    assert secret_store.get(version.file_id, user_id=ADA) == data
    with secret_store.upload(filename="stolen", user_id=EVE) as other, pytest.raises(InvalidArgument):
        other.reuse(ids[:1])
    secret_store.delete(version.file_id, user_id=ADA)
    secret_store.collect(grace_s=0)
    assert secret_store.missing_chunks(ids, user_id=ADA) == [True] * 5


@pytest.mark.parametrize("lost", [(0,), (0, 1), (2, 5)])
def test_changed_shards_of_sealed_chunks_are_healed(root: Path, lost: tuple[int, ...]) -> None:
    with open_sealed(root) as store:
        kept = fill(store)
    for slot in lost:
        for path in (root / "volumes" / str(slot)).glob("*.seg"):
            raw = bytearray(path.read_bytes())
            for at in range(400, len(raw), 3001):
                raw[at] ^= 0x55
            path.write_bytes(raw)
    with open_sealed(root) as store:
        require_all(store, kept)
        store.scrub()
        store.repair()
        require_all(store, kept)


# -- rotation -----------------------------------------------------------------------------------------------


def test_a_new_key_of_a_user_seals_what_is_new(root: Path) -> None:
    data = random_bytes(3 * CHUNK, 1)
    with open_sealed(root) as store:
        first = store.push(data, filename="before", user_id=ADA)
        chunk_ids = store.chunk_ids(first.file_id, user_id=ADA)
        assert store.upkeep.keys.rotate(ADA).epoch == 2
        assert store.missing_chunks(chunk_ids, user_id=ADA) == [True] * 3
        second = store.push(data, filename="after", user_id=ADA)
        changed = data[:CHUNK] + random_bytes(2 * CHUNK, 2)
        store.revise(first.file_id, store.diff(first.file_id, changed, user_id=ADA), user_id=ADA)
    lose_catalog(root)
    with open_sealed(root) as store:
        store.rebuild()
        assert store.get(first.file_id, user_id=ADA) == changed
        assert store.get(first.file_id, user_id=ADA, version_id=first.version_id) == data
        assert store.get(second.file_id, user_id=ADA) == data
        store.collect(grace_s=0)
        assert store.get(first.file_id, user_id=ADA) == changed


def test_the_master_key_is_changed_without_sealing_data_again(root: Path) -> None:
    both = MasterKeys(MasterKey(OTHER_KEY), (MasterKey(KEY),))
    with open_sealed(root) as store:
        kept = fill(store)
        stored = store.stats().stored_bytes
    with FileStorage.open(root, key=both) as store:
        require_all(store, kept)
        assert abs(store.stats().stored_bytes - stored) < CHUNK
    with pytest.raises(KeyRequired):
        open_sealed(root, KEY)
    lose_catalog(root)
    with open_sealed(root, KEY) as store, pytest.raises(KeyRequired):
        store.rebuild()
    with open_sealed(root, OTHER_KEY) as store:
        store.rebuild()
        require_all(store, kept)


@pytest.mark.parametrize("after", range(8))
def test_a_change_of_the_master_key_may_be_cut_off(root: Path, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The change is cut off after so many writes to a volume, as if by a crash."""
    from storage.shards.volume import LocalVolume

    with open_sealed(root) as store:
        kept = fill(store)
    both = MasterKeys(MasterKey(OTHER_KEY), (MasterKey(KEY),))
    left, calls = root.with_name("left"), {"append": 0}
    append = LocalVolume.append

    class CrashError(Exception):
        pass

    def cut_off(self: LocalVolume, *arguments: object, **options: object) -> object:
        calls["append"] += 1
        if calls["append"] > after:
            raise CrashError
        return append(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(LocalVolume, "append", cut_off)
    try:
        with FileStorage.open(root, key=both):
            pass
    except CrashError:
        shutil.copytree(root, left)
    else:
        shutil.copytree(root, left)
    monkeypatch.undo()
    (left / "LOCK").unlink(missing_ok=True)
    with FileStorage.open(left, key=both) as store:
        require_all(store, kept)
    lose_catalog(left)
    with open_sealed(left, OTHER_KEY) as store:
        store.rebuild()
        require_all(store, kept)


def test_an_old_catalog_does_not_remove_newer_keys(root: Path, tmp_path: Path) -> None:
    with open_sealed(root) as store:
        kept = {store.push(b"old", filename="old", user_id=ADA).file_id: (ADA, b"old")}
    shutil.copytree(root / "catalog", tmp_path / "catalog")
    with open_sealed(root) as store:
        kept[store.push(b"new", filename="new", user_id=EVE).file_id] = EVE, b"new"
    lose_catalog(root)
    shutil.copytree(tmp_path / "catalog", root / "catalog")
    with open_sealed(root) as store:
        assert store.behind
        store.rebuild()
        require_all(store, kept)
    lose_catalog(root)
    with open_sealed(root) as store:
        store.rebuild()
        require_all(store, kept)


def test_the_keys_go_to_volumes_that_come_back(root: Path) -> None:
    with open_sealed(root) as store:
        kept = fill(store)
    for slot in range(6):
        away = [root / "volumes" / str(one) for one in range(6) if one != slot]
        if slot < 2:
            shutil.rmtree(root / "volumes" / str(slot))
            with open_sealed(root) as store:
                store.repair()
        copy = root.with_name(f"copy{slot}")
        shutil.copytree(root, copy)
        lose_catalog(copy)
        for path in away[:2]:
            shutil.rmtree(copy / "volumes" / path.name)
        with open_sealed(copy) as store:
            store.rebuild()
            require_all(store, kept)


def test_destroyed_keys_open_nothing_wherever_copies_of_volumes_are(root: Path, tmp_path: Path) -> None:
    lost = tmp_path / "lost"
    with open_sealed(root) as store:
        mine = store.push(PLANTED, filename="mine", user_id=ADA)
        hers = store.push(b"hers", filename="hers", user_id=EVE)
        with pytest.raises(InvalidArgument, match="1 files"):
            store.upkeep.destroy_keys(ADA)
        store.delete(mine.file_id, user_id=ADA)
    shutil.copytree(root, lost)
    with open_sealed(root) as store:
        former = store.upkeep.keys.keys_of(ADA).ids
        assert store.upkeep.destroy_keys(ADA) == len(former) == 1
        assert store.upkeep.destroy_keys(ADA) == 0
        assert not ids_on_volumes(store) & former
    with FileStorage.open(root, key=MasterKeys(MasterKey(OTHER_KEY), (MasterKey(KEY),))):
        pass
    lose_catalog(lost)
    with open_sealed(lost, OTHER_KEY) as store, pytest.raises(KeyRequired):
        store.rebuild()
    # A volume comes back as it was before.
    shutil.rmtree(root / "volumes" / "0")
    shutil.copytree(lost / "volumes" / "0", root / "volumes" / "0")
    with open_sealed(root, OTHER_KEY) as store:
        store.repair()
        store.scrub()
        assert not ids_on_volumes(store) & former
        again = store.push(PLANTED, filename="mine", user_id=ADA)
        assert store.get(again.file_id, user_id=ADA) == PLANTED
        assert store.get(hers.file_id, user_id=EVE) == b"hers"
        store.collect(grace_s=0)
        assert store.upkeep.destroy_keys("nobody") == 0
        for user, file_id in ((ADA, again.file_id), (EVE, hers.file_id)):
            store.delete(file_id, user_id=user)
            assert store.upkeep.destroy_keys(user) == 1
        with pytest.raises(InvalidArgument, match="catalog"):
            store.upkeep.destroy_keys("system:catalog")
        users = "system:catalog", "system:shredding"
        assert ids_on_volumes(store) == {key_id for user in users for key_id in store.upkeep.keys.keys_of(user).ids}
    with open_sealed(root, OTHER_KEY) as store:
        assert not store.list_files(user_id=EVE)
        store.push(b"anew", filename="hers", user_id=EVE)


def ids_on_volumes(store: FileStorage) -> set[bytes]:
    """The ids of all keys of users in the copies that the volumes have."""
    kept = store.upkeep.keys
    return {
        sealed_key.key_id
        for slot, volume in kept._volumes.online()
        for _, found in kept._on_volumes.keys_on(slot, volume)
        if found is not None
        for sealed_key in found.keys
    }


def test_a_document_of_keys_has_one_form() -> None:
    with pytest.raises(FormatError):
        decode_sealed_keys(msgspec.msgpack.encode([2, []]))
    with pytest.raises(FormatError):
        decode_sealed_keys(msgspec.msgpack.encode([1, [[b"short", b"", b"", b""]]]))
