"""Large files whose chunks clients write to workers themselves: what is stored, and what forgers cannot do."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import DataLossError, ErasureProfile, InvalidArgument, QuotaExceeded, Version
from storage.catalog import CatalogTransaction, user_key
from storage.keys import Kind, ShardKey, StripeKey, object_id_of, shard_count, shard_key
from storage.sealing.objects import open_into
from storage.shards import Shard
from storage.write import unverified
from storage.write.client_chunks import ClientChunk
from taskworker import AsyncClient, Client
from taskworker.auth.rights import Scope
from taskworker.client.deadline import Deadline
from taskworker.client.direct import pace, writes
from taskworker.client.direct.fleet import TicketedFleet
from taskworker.client.direct.places import Places
from taskworker.client.direct.writes import DirectWrites, SealedChunk
from taskworker.client.pushing import _Push
from taskworker.client.sending import OutgoingMessages
from taskworker.errors import DeadlineExceeded
from taskworker.pool.direct_pushes import DirectPushes
from taskworker.pool.direct_reads import Holder
from taskworker.pool.options import PoolOptions
from taskworker.protos import store_pb2
from taskworker.transport.remote_volume import RemoteVolume
from taskworker.transport.ticketed_volume import Putting, TicketedVolume
from tests.services.test_direct_reads import MIB, Stand

CHUNK = MIB // 2
SIZE = 9 * MIB + 12_345
CHUNKS = -(-SIZE // CHUNK)
PEOPLE = ("ann", "bob", "eve")


class Pushing(Stand):
    """A 2-of-4 pool that lets clients write to its workers."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, PoolOptions(audit_bytes_per_s=0, collect_every_s=0))
        self.people: dict[str, Client] = {}
        for name in PEOPLE:
            self.server.users.add(name)
            self.people[name] = self.user(name)

    def user(self, name: str, *scopes: str) -> Client:
        """A client with a token of a user."""
        users = self.server.users
        token = users.create_token(name, scopes=map(Scope.parse, scopes)) if scopes else users.create_token(name)
        return Client(self.address, token=token.text)

    @property
    def unverified(self) -> int:
        """How many claims are on chunks that clients wrote, and that the pool has not verified."""
        return sum(bool(holding.hashes) for holding in self.server.pool.documents.holdings())

    def shards(self) -> set[bytes]:
        """The keys of all shards on all workers."""
        volumes = [worker._own.current().volume for worker in self.workers if worker._own is not None]
        return {key for volume in volumes for key in list(volume.keys())}

    def close(self) -> None:
        """End all."""
        for client in self.people.values():
            client.close()
        super().close()


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pushing]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        patch.setattr(pace, "_WORTHWHILE_BYTES_PER_S", 0)  # however busy this machine is
        stand = Pushing(tmp_path_factory.mktemp("stand"))
        yield stand
        stand.close()


@pytest.fixture
def ann(stand: Pushing) -> Iterator[Client]:
    """Who has not been told yet that workers take nothing."""
    with stand.user("ann") as client:
        yield client


def noise(seed: int, size: int = SIZE) -> bytes:
    return random.Random(seed).randbytes(size)


def content_of(client: Client, version: Version, user: str = "ann") -> bytes:
    return bytes(client.get(version.file_id, user_id=user))


def test_a_large_file_is_written_by_the_client(stand: Pushing, ann: Client) -> None:
    before, data, told = stand.unverified, noise(1), list[tuple[int, int]]()
    version = ann.push(
        data, user_id="ann", filename="large", chunk_size=CHUNK, progress=lambda *done: told.append(done)
    )
    assert stand.unverified - before == CHUNKS
    assert content_of(ann, version) == data
    with Client(stand.address, direct=False) as operator:
        assert operator.stat(version.file_id, user_id="ann").size == SIZE
        assert bytes(operator.get(version.file_id, user_id="ann")) == data
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert told[-1] == (SIZE, SIZE)


def test_what_is_written_is_verified_before_it_satisfies_another_push(stand: Pushing, ann: Client) -> None:
    before, data = stand.unverified, noise(2)
    first = ann.push(data, user_id="ann", filename="first", chunk_size=CHUNK)
    shards = stand.shards()
    second = ann.push(data, user_id="ann", filename="second", chunk_size=CHUNK)
    assert stand.unverified == before
    assert len({key[:32] for key in stand.shards() - shards}) < 5  # metadata
    for version in (first, second):
        assert content_of(ann, version) == data


@pytest.mark.parametrize("way", ["small", "hashed", "stream", "off"])
def test_other_files_go_through_the_pool(stand: Pushing, ann: Client, way: str) -> None:
    before, data = stand.unverified, noise(3)
    if way == "small":
        version = ann.push(data[: 2 * MIB], user_id="ann", filename=way, chunk_size=CHUNK)
    elif way == "hashed":
        version = ann.push(data, user_id="ann", filename=way, chunk_size=CHUNK, sha256=hashlib.sha256(data).hexdigest())
    elif way == "stream":
        version = ann.push(iter([data]), user_id="ann", filename=way, chunk_size=CHUNK)
    else:
        token = stand.server.users.create_token("ann").text
        with Client(stand.address, token=token, direct=False) as other:
            version = other.push(data, user_id="ann", filename=way, chunk_size=CHUNK)
    assert stand.unverified == before
    assert content_of(ann, version) == data[: version.size]


def test_equal_chunks_are_stored_however_many_there_are(stand: Pushing, ann: Client) -> None:
    before, same = stand.unverified, noise(12, CHUNK)
    data = same * 3 + noise(13) + bytes(20 * MIB)[: -(SIZE % CHUNK)]
    version = ann.push(data, user_id="ann", filename="equal", chunk_size=CHUNK)
    assert content_of(ann, version) == data
    between = stand.unverified
    assert between > before
    version = ann.push(noise(14), user_id="ann", filename="other", chunk_size=CHUNK)
    assert stand.unverified - between == CHUNKS  # pages of which the pool wants no chunk are no reason to stop


# -- forgers ---------------------------------------------------------------------------------------------

Seal = Callable[..., list[SealedChunk]]


def forging(monkeypatch: pytest.MonkeyPatch, forge: Callable[[Seal, Sequence[Any]], list[SealedChunk]]) -> None:
    """Have clients seal chunks in another way."""
    sealed = DirectWrites.sealed

    def forged(self: DirectWrites, *arguments: Any) -> list[SealedChunk]:
        return forge(lambda *given: sealed(self, *given), arguments)

    monkeypatch.setattr(DirectWrites, "sealed", forged)


def other_content(seal: Seal, arguments: Sequence[Any]) -> list[SealedChunk]:
    """Seal zeros with the keys of the right contents."""
    contents, *rest = arguments
    return seal([bytes(len(content)) for content in contents], *rest)


def wrong_parity(seal: Seal, arguments: Sequence[Any]) -> list[SealedChunk]:
    """The last shard of each chunk is garbage, with a hash that matches it."""
    return [chunk._replace(shards=[*chunk.shards[:-1], garbage(chunk.shards[-1])]) for chunk in seal(*arguments)]


@pytest.mark.parametrize("forge", [other_content, wrong_parity])
@pytest.mark.parametrize("directly", [True, False])
def test_a_token_for_some_names_cannot_spoil_what_is_pushed_to_others(
    stand: Pushing,
    ann: Client,
    monkeypatch: pytest.MonkeyPatch,
    forge: Callable[[Seal, Sequence[Any]], list[SealedChunk]],
    *,
    directly: bool,
) -> None:
    before, data = stand.unverified, noise(100 + 2 * (forge is wrong_parity) + directly)
    with monkeypatch.context() as patch, stand.user("ann", "files:write:tmp/") as thief:
        forging(patch, forge)
        thief.push(data, user_id="ann", filename="tmp/forged", chunk_size=CHUNK)
    assert stand.unverified - before == CHUNKS
    token = stand.server.users.create_token("ann").text
    with Client(stand.address, token=token, direct=directly) as client:
        version = client.push(data, user_id="ann", filename="good", chunk_size=CHUNK)
        assert content_of(client, version) == data
    assert content_of(ann, version) == data
    for index in range(0, CHUNKS, 5):  # all shards are what they should be
        (place,) = places_of(stand, version, index)
        audited = stand.server.pool.store.upkeep.read_back().audit(place)
        assert (audited.shards, audited.wrong) == (shard_count(place), 0)


@pytest.mark.parametrize("forge", [other_content, wrong_parity])
def test_what_is_found_wrong_is_not_read_for_each_question(
    stand: Pushing,
    ann: Client,
    monkeypatch: pytest.MonkeyPatch,
    forge: Callable[[Seal, Sequence[Any]], list[SealedChunk]],
) -> None:
    data, opened = noise(200 + (forge is wrong_parity)), list[bytes]()
    with monkeypatch.context() as patch:
        forging(patch, forge)
        ann.push(data, user_id="ann", filename="asked", chunk_size=CHUNK)

    def noted(keys: Any, kind: Kind, plain_id: bytes, *rest: Any) -> None:
        opened.append(plain_id)
        open_into(keys, kind, plain_id, *rest)

    monkeypatch.setattr(unverified, "open_into", noted)
    ids = [blake3(data[at : at + CHUNK]).digest() for at in range(0, 8 * CHUNK, CHUNK)]
    for _ in range(3):
        request = store_pb2.MissingChunksRequest(user_id="ann", chunk_ids=ids)
        assert all(ann._channel.unary(ann._channel.store.MissingChunks, request, Deadline(60.0)).missing)
    assert sorted(opened) == sorted(ids)


def places_of(stand: Pushing, version: Version, index: int) -> list[Any]:
    with stand.server.pool.store.open_file(version.file_id, user_id="ann") as reader:
        return [place.stripe for place in reader.places(index, 1)]


def hollow(seal: Seal, arguments: Sequence[Any]) -> list[SealedChunk]:
    """All shards are garbage, with hashes that match it."""
    return [chunk._replace(shards=[garbage(shard) for shard in chunk.shards]) for chunk in seal(*arguments)]


def garbage(shard: Shard) -> Shard:
    payload = bytes(len(shard.payload))
    return shard._replace(digest=blake3(payload).digest(), payload=payload)


def test_what_a_client_wrote_is_written_anew_also_if_the_pool_wrote_the_same_before(
    stand: Pushing, ann: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, token = noise(15), stand.server.users.create_token("ann").text
    with Client(stand.address, token=token, direct=False) as client:
        former = client.push(data, user_id="ann", filename="former", chunk_size=CHUNK)
        assert content_of(client, former) == data
        client.delete(former.file_id, user_id="ann")
        stand.server.pool.store.collect(grace_s=0.0)
        with monkeypatch.context() as patch:
            forging(patch, hollow)
            ann.push(data, user_id="ann", filename="tmp/hollow", chunk_size=CHUNK)
        version = client.push(data, user_id="ann", filename="good", chunk_size=CHUNK)
        assert content_of(client, version) == data


def test_contents_are_compared_also_when_it_is_forgotten_who_wrote_them(
    stand: Pushing, ann: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a rebuild of the catalog."""
    data, documents = noise(4), stand.server.pool.documents
    with monkeypatch.context() as patch:
        forging(patch, other_content)
        forged = ann.push(data, user_id="ann", filename="forged", chunk_size=CHUNK)
    forgotten = [holding for holding in documents.holdings() if holding.hashes]

    def forget(txn: CatalogTransaction) -> None:
        for holding in forgotten:
            txn.vouch(holding.user, holding.stripe)

    documents.transact(forget)
    version = ann.push(data, user_id="ann", filename="good", chunk_size=CHUNK)
    assert content_of(ann, version) == data
    assert content_of(ann, forged) == bytes(SIZE)  # which is what was pushed, whatever it was called


def test_no_worker_is_blamed_for_what_a_client_wrote(
    stand: Pushing, ann: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, pool = noise(5), stand.server.pool
    with monkeypatch.context() as patch:
        forging(patch, wrong_parity)
        version = ann.push(data, user_id="ann", filename="spoiled", chunk_size=CHUNK)
    (stripe,) = places_of(stand, version, 0)
    volume = pool.fleet.volume(pool.fleet.targets(stripe)[3])
    assert volume is not None
    forged = volume.read(shard_key(stripe, 3))
    assert forged is not None
    origins = pool.store.upkeep._parts.stripes.origins
    assert origins.is_of_client(forged)
    assert not origins.is_of_client(forged._replace(digest=bytes(32)))
    readback = pool.store.upkeep.read_back()
    for index in range(0, CHUNKS, 3):
        readback.audit(*places_of(stand, version, index))
    assert not any(pool.fleet.times_lied(slot) for slot in pool.fleet.slots)
    assert content_of(ann, version) == data


def test_what_a_client_wrote_wrong_is_rebuilt_and_counts_for_no_worker(
    stand: Pushing, ann: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet, store, data = stand.server.pool.fleet, stand.server.pool.store, noise(20)
    with monkeypatch.context() as patch:
        forging(patch, wrong_parity)
        version = ann.push(data, user_id="ann", filename="rebuilt", chunk_size=CHUNK)
    (stripe,) = places_of(stand, version, 0)
    liar = fleet.targets(stripe)[1]
    volume, before = fleet.volume(liar), fleet.lies()
    assert volume is not None
    shard = volume.read(shard_key(stripe, 1))
    assert shard is not None
    volume.append([garbage(shard)])
    store.upkeep._parts.stripes._recovery.recover(stripe, None)  # as a read does that gets the wrong shard
    with Client(stand.address, direct=False) as operator:
        assert bytes(operator.get(version.file_id, user_id="ann")) == data
    assert {slot for slot, wrong in fleet.lies().items() if wrong > before.get(slot, 0)} == {liar}
    store.repair()
    audited = store.upkeep.read_back().audit(stripe)
    assert (audited.shards, audited.wrong) == (shard_count(stripe), 0)


def test_what_a_client_wrote_wrong_is_no_loss_of_the_pool(
    stand: Pushing, ann: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = stand.server.pool
    with monkeypatch.context() as patch:
        forging(patch, hollow)
        version = ann.push(noise(17), user_id="ann", filename="hollow", chunk_size=CHUNK)
    with pytest.raises(DataLossError):
        content_of(ann, version)
    (stripe,) = places_of(stand, version, 0)
    holder = pool.fleet.volume(pool.fleet.targets(stripe)[0])
    assert holder is not None
    holder.remove([shard_key(stripe, 0)])
    assert pool.store.repair().lost_count == 0
    assert not any(pool.fleet.times_lied(slot) for slot in pool.fleet.slots)
    ann.delete(version.file_id, user_id="ann")


class Raw:
    """A push that is under way, and calls about it, made by hand."""

    def __init__(self, stand: Pushing, user: str, push_id: bytes = b"p" * 16) -> None:
        self.user, self.push_id = user, push_id
        self.channel = stand.people[user]._channel
        self.store = self.channel.store
        self.steps: list[store_pb2.PushPart] = []

    def run(self, act: Callable[[Raw], list[store_pb2.PushPart]], sha256: str = "") -> store_pb2.PushStreamResponse:
        """Begin the push, act, and send what ``act`` returns."""

        def messages() -> Iterator[bytes]:
            header = store_pb2.PushHeader(
                filename="raw", user_id=self.user, push_id=self.push_id, chunk_size=CHUNK, sha256=sha256
            )
            yield store_pb2.PushPart(header=header).SerializeToString()
            yield b""
            yield from [part.SerializeToString() for part in act(self)]

        return self.channel.push(OutgoingMessages(messages()), Deadline(60.0))

    def call(self, method: Any, request: Any) -> Any:
        request.user_id, request.push_id = self.user, self.push_id
        return self.channel.unary(method, request, Deadline(60.0))

    def prepare(self, *plain_ids: bytes) -> store_pb2.PrepareChunksResponse:
        return self.call(self.store.PrepareChunks, store_pb2.PrepareChunksRequest(plain_ids=b"".join(plain_ids)))  # type: ignore[no-any-return]

    def place(
        self, *stored_ids: bytes, length: int = CHUNK, hashes: bytes = bytes(64)
    ) -> store_pb2.PlaceChunksResponse:
        chunks = [
            store_pb2.ClientChunk(plain_id=bytes(32), stored_id=one, length=length, hashes=hashes) for one in stored_ids
        ]
        return self.call(self.store.PlaceChunks, store_pb2.PlaceChunksRequest(chunks=chunks))  # type: ignore[no-any-return]

    def settle(self, *stored_ids: bytes) -> list[bool]:
        request = store_pb2.SettleChunksRequest(stored_ids=b"".join(stored_ids))
        return list(self.call(self.store.SettleChunks, request).written)


def written(*stored_ids: bytes) -> store_pb2.PushPart:
    return store_pb2.PushPart(written=store_pb2.ChunkList(chunk_ids=stored_ids))


def commit(size: int) -> store_pb2.PushPart:
    return store_pb2.PushPart(commit=store_pb2.PushCommit(size=size))


def test_what_workers_do_not_have_is_not_stored(stand: Pushing) -> None:
    def act(raw: Raw) -> list[store_pb2.PushPart]:
        stored_id = blake3(b"never written").digest()
        assert raw.place(stored_id).ticket
        assert raw.settle(stored_id, bytes(32)) == [False, False]
        return [written(stored_id), commit(CHUNK)]

    before = stand.unverified
    with pytest.raises(InvalidArgument, match="was not written; send its bytes"):
        Raw(stand, "ann").run(act)
    assert stand.people["ann"].find("raw", user_id="ann") is None
    assert stand.unverified == before


def test_who_pushes_what_the_pool_hashes_is_told_at_once(stand: Pushing) -> None:
    def act(raw: Raw) -> list[store_pb2.PushPart]:
        with pytest.raises(InvalidArgument, match="are not written to workers"):
            raw.prepare(bytes(32))
        return [store_pb2.PushPart(data=b"x"), commit(1)]

    assert Raw(stand, "ann").run(act, hashlib.sha256(b"x").hexdigest()).version.size == 1


def test_all_workers_are_asked_before_one_has_answered(stand: Pushing, monkeypatch: pytest.MonkeyPatch) -> None:
    begin, events = RemoteVolume.begin_written, list[str]()

    def noted(self: RemoteVolume, keys: Sequence[ShardKey]) -> Callable[[], list[bytes | None]]:
        answer = begin(self, keys)
        events.extend(["asked"] if keys else [])

        def ended() -> list[bytes | None]:
            events.extend(["answered"] if keys else [])
            return answer()

        return ended

    def act(raw: Raw) -> list[store_pb2.PushPart]:
        stored_id = blake3(b"asked").digest()
        raw.place(stored_id)
        assert raw.settle(stored_id) == [False]
        return [store_pb2.PushPart(data=b"x"), commit(1)]

    monkeypatch.setattr(RemoteVolume, "begin_written", noted)
    Raw(stand, "eve").run(act)
    assert events == ["asked"] * 4 + ["answered"] * 4


def test_nobody_writes_to_a_chunk_that_exists(stand: Pushing, ann: Client) -> None:
    version = ann.push(noise(7), user_id="ann", filename="mine", chunk_size=CHUNK)
    (stripe,) = places_of(stand, version, 0)

    def act(raw: Raw) -> list[store_pb2.PushPart]:
        placed = raw.place(object_id_of(stripe))
        assert (placed.placed, placed.ticket) == (b"\xff" * 4, b"")
        assert raw.settle(object_id_of(stripe)) == [False]
        return [written(object_id_of(stripe)), commit(CHUNK)]

    for user in ("ann", "eve"):
        with pytest.raises(InvalidArgument, match="was not written"):
            Raw(stand, user).run(act)


def test_a_push_is_known_to_its_user_only(stand: Pushing) -> None:
    def act(raw: Raw) -> list[store_pb2.PushPart]:
        keys = raw.prepare(bytes(32)).keys
        assert len(keys) == 32
        eve = Raw(stand, "eve", raw.push_id)
        with pytest.raises(InvalidArgument, match="no push with this id"):
            eve.prepare(bytes(32))
        with pytest.raises(InvalidArgument, match="another push has this id"):
            Raw(stand, "ann", raw.push_id).run(lambda _: [commit(0)])
        return [store_pb2.PushPart(data=b"x"), commit(1)]

    assert Raw(stand, "ann").run(act).version.size == 1


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"length": 0}, "1 to"),
        ({"length": CHUNK + 1}, "1 to"),
        ({"hashes": bytes(65)}, "4 hashes"),
        ({"stored_id": b"short"}, "32 bytes each"),
    ],
)
def test_malformed_chunks_are_refused(stand: Pushing, given: dict[str, Any], why: str) -> None:
    def act(raw: Raw) -> list[store_pb2.PushPart]:
        stored_id = given.pop("stored_id", bytes(32))
        with pytest.raises(InvalidArgument, match=why):
            raw.place(stored_id, **given)
        return [store_pb2.PushPart(data=b"x"), commit(1)]

    Raw(stand, "bob").run(act)


def test_any_chunks_are_answered_or_refused(stand: Pushing) -> None:
    ids = st.one_of(st.sampled_from([bytes(32), blake3(b"other").digest()]), st.binary(max_size=70))
    chunks = st.builds(
        store_pb2.ClientChunk,
        plain_id=ids,
        stored_id=ids,
        length=st.one_of(st.integers(0, 2 * CHUNK), st.integers(0, (1 << 64) - 1)),
        hashes=st.one_of(st.just(bytes(64)), st.binary(max_size=100)),
    )

    def act(raw: Raw) -> list[store_pb2.PushPart]:
        @settings(max_examples=60, deadline=None, database=None)
        @given(st.lists(chunks, max_size=3), st.binary(max_size=200))
        def answered_or_refused(some: list[store_pb2.ClientChunk], joined: bytes) -> None:
            for method, request in (
                (raw.store.PrepareChunks, store_pb2.PrepareChunksRequest(plain_ids=joined)),
                (raw.store.PlaceChunks, store_pb2.PlaceChunksRequest(chunks=some)),
                (raw.store.SettleChunks, store_pb2.SettleChunksRequest(stored_ids=joined)),
            ):
                with contextlib.suppress(InvalidArgument, QuotaExceeded):
                    raw.call(method, request)

        answered_or_refused()
        return [store_pb2.PushPart(data=b"x"), commit(1)]

    assert Raw(stand, "bob").run(act).version.size == 1


def test_too_many_chunks_are_refused(stand: Pushing) -> None:
    many = [blake3(bytes([at])).digest() for at in range(65)]

    def act(raw: Raw) -> list[store_pb2.PushPart]:
        for call in (raw.prepare, raw.place, raw.settle):
            with pytest.raises(InvalidArgument, match="at most 64"):
                call(*many)
        return [store_pb2.PushPart(data=b"x"), commit(1)]

    Raw(stand, "bob").run(act)


def test_a_quota_holds(stand: Pushing) -> None:
    stand.server.users.add("small")
    stand.server.users.set_quota("small", files_max=None, bytes_max=SIZE)
    with stand.user("small") as client, pytest.raises(QuotaExceeded):
        client.push(noise(8), user_id="small", filename="large", chunk_size=CHUNK)
    assert not [
        one for one in stand.server.pool.documents.holdings() if one.hashes and not one.uploads and not one.name
    ]


def test_a_quota_counts_once_what_workers_did_not_take(stand: Pushing, monkeypatch: pytest.MonkeyPatch) -> None:
    stand.server.users.add("exact")
    stand.server.users.set_quota("exact", files_max=None, bytes_max=SIZE * 5 // 2)  # two shards of four hold the data
    data, before = noise(16), stand.unverified
    with stand.user("exact") as client:
        refusing_every_third(monkeypatch)
        version = client.push(data, user_id="exact", filename="partly", chunk_size=CHUNK)
        assert content_of(client, version, "exact") == data
    assert before < stand.unverified


def broken_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a client break off when it has written all chunks, before the pool is told of the last ones."""

    def last(*_: object, **__: object) -> bytes:
        raise OSError("the client was killed")

    monkeypatch.setattr(_Push, "_last", last)


def test_a_push_that_broke_off_takes_no_more_of_a_quota_when_it_is_repeated(
    stand: Pushing, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand.server.users.add("again")
    stand.server.users.set_quota("again", files_max=None, bytes_max=SIZE * 2 + MIB)
    data = noise(17)
    with stand.user("again") as client:
        with monkeypatch.context() as patch:
            broken_at_its_end(patch)
            with pytest.raises(OSError, match="was killed"):
                client.push(data, user_id="again", filename="large", chunk_size=CHUNK)
        version = client.push(data, user_id="again", filename="large", chunk_size=CHUNK)
        assert content_of(client, version, "again") == data


@pytest.mark.parametrize("commits", [False, True])
def test_what_a_push_has_not_named_counts_as_left_over(stand: Pushing, commits: bool) -> None:
    """Chunks that were placed, and one that no worker took, which was to be sent to the pool."""
    upload = stand.server.pool.store.upload(filename=f"broken {commits}", user_id="eve", chunk_size=CHUNK)
    chunks, user = upload.client_chunks, user_key(b"eve")
    assert chunks is not None
    quotas = chunks._context.quotas
    before, left = quotas.uncommitted(user), quotas._left_by(user)
    upload.write(noise(18, CHUNK))
    ids = [blake3(bytes([number])).digest() for number in range(3)]
    placed = chunks.place([ClientChunk(bytes(32), one, CHUNK, bytes(64)) for one in ids], lambda _: True)
    assert None not in placed
    assert chunks.settle(ids[:1], lambda _store, keys: lambda: [None] * len(keys)) == [False]
    if commits:
        upload.commit()
    else:
        upload.abort(keep_chunks=True)
    assert quotas.uncommitted(user) - before == (0 if commits else 4 * chunks.profile.shard_length(CHUNK))
    assert quotas._left_by(user) - left == 3 * 4 * chunks.profile.shard_length(CHUNK)


def test_a_push_that_ends_while_places_are_given_takes_nothing(stand: Pushing, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = stand.server.pool.store.upload(filename="ended", user_id="bob", chunk_size=CHUNK)
    chunks = upload.client_chunks
    assert chunks is not None
    context = chunks._context

    def is_held(_stripe: StripeKey) -> bool:
        upload.abort(keep_chunks=False)
        return False

    monkeypatch.setattr(context.catalog, "is_held", is_held)
    with pytest.raises(InvalidArgument, match="has ended"):
        chunks.place([ClientChunk(bytes(32), blake3(b"ended").digest(), CHUNK, bytes(64))], lambda _: True)
    assert context.quotas.uncommitted(user_key(b"bob")) == 0


# -- what goes wrong -------------------------------------------------------------------------------------


class Breaking(io.BytesIO):
    """A file that cannot be read to its end, once some of it was written."""

    def __init__(self, data: bytes, is_written: threading.Event) -> None:
        super().__init__(data)
        self._is_written = is_written

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() > SIZE * 2 // 3:
            assert self._is_written.wait(60.0)
            raise OSError("the disk failed")
        return super().read(size)


def test_what_a_push_wrote_that_was_given_up_is_collected(
    stand: Pushing, ann: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect, write, is_written = stand.server.pool.store.collect, DirectWrites.write, threading.Event()

    def noted(self: DirectWrites, *arguments: Any) -> list[bool]:
        taken = write(self, *arguments)
        is_written.set()
        return taken

    monkeypatch.setattr(DirectWrites, "write", noted)
    collect(grace_s=0.0)
    before = stand.shards()
    with pytest.raises(OSError, match="the disk failed"):
        ann.push(Breaking(noise(9), is_written), user_id="ann", filename="broken")
    assert stand.shards() > before
    collect(grace_s=0.0)
    assert stand.shards() == before


def refusing_every_third(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have workers not take every third chunk."""
    write = DirectWrites.write

    def partly(
        self: DirectWrites, places: Places, chunks: Sequence[SealedChunk], is_given_up: Callable[[], bool]
    ) -> list[bool]:
        placed = [None if at % 3 == 1 else row for at, row in enumerate(places.placed)]
        return write(self, places._replace(placed=placed), chunks, is_given_up)

    monkeypatch.setattr(DirectWrites, "write", partly)


def test_chunks_that_a_worker_does_not_take_go_through_the_pool(
    stand: Pushing, ann: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, data = stand.unverified, noise(10)
    refusing_every_third(monkeypatch)
    version = ann.push(data, user_id="ann", filename="partly", chunk_size=CHUNK)
    assert content_of(ann, version) == data
    assert CHUNKS / 2 < stand.unverified - before < CHUNKS * 3 / 4


def test_nothing_is_written_any_more_once_the_time_of_a_push_is_over(
    stand: Pushing, ann: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_ended = threading.Event()

    def stuck(
        self: DirectWrites, _places: Places, chunks: Sequence[SealedChunk], is_given_up: Callable[[], bool]
    ) -> list[bool]:
        for _ in range(600):
            if is_given_up():
                has_ended.set()
                break
            time.sleep(0.05)
        return [False] * len(chunks)

    monkeypatch.setattr(DirectWrites, "write", stuck)
    with pytest.raises(DeadlineExceeded):
        ann.push(noise(18), user_id="ann", filename="late", chunk_size=CHUNK, timeout_s=2.0)
    assert has_ended.wait(10.0)


def test_a_worker_that_takes_nothing_in_time_is_left_alone_for_a_while(
    stand: Pushing, ann: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_put, slow, tickets, before = TicketedVolume.begin_put, list[TicketedVolume](), set[bytes](), stand.unverified

    def begun(self: TicketedVolume, ticket: bytes, shards: Sequence[Shard], *rest: Any) -> Putting:
        putting = begin_put(self, ticket, shards, *rest)
        if shards and self in (slow or [self]):
            slow[:] = [self]
            tickets.add(ticket)
            monkeypatch.setattr(putting, "wait", lambda within_s: threading.Event().wait(within_s))
        return putting

    monkeypatch.setattr(TicketedVolume, "begin_put", begun)
    data = noise(19, 40 * MIB)
    version = ann.push(data, user_id="ann", filename="slow", chunk_size=CHUNK, profile=ErasureProfile(1, 2))
    assert content_of(ann, version) == data
    assert stand.unverified > before
    assert 1 <= len(tickets) <= 3  # the pages that were under way at once, of five


@pytest.mark.parametrize("is_known_fast", [False, True])
def test_over_fast_links_with_long_round_trips_all_chunks_are_sent_at_once(
    stand: Pushing, ann: Client, monkeypatch: pytest.MonkeyPatch, *, is_known_fast: bool
) -> None:
    monkeypatch.setattr(writes, "_FAR_S", 0.0)
    monkeypatch.setattr(pace.Pace, "is_known_fast", property(lambda _: is_known_fast, lambda *_: None), raising=False)
    begin_put, wait, before = TicketedVolume.begin_put, Putting.wait, stand.unverified
    done: list[str] = []

    def begun(self: TicketedVolume, ticket: bytes, shards: Sequence[Shard], *rest: Any) -> Putting:
        done.append("shards" if shards else "ticket")
        return begin_put(self, ticket, shards, *rest)

    def waited(self: Putting, within_s: float = -1) -> bool:
        done.append("wait")
        return wait(self, within_s)

    monkeypatch.setattr(TicketedVolume, "begin_put", begun)
    monkeypatch.setattr(Putting, "wait", waited)
    for number in (40, 41, 42):
        done.clear()
        data = noise(number + 3 * is_known_fast, 8 * MIB)
        assert content_of(ann, ann.push(data, user_id="ann", filename="distant", chunk_size=CHUNK)) == data
    assert stand.unverified - before == 3 * len(data) // CHUNK
    assert "ticket" not in done
    shards, begun_first = done.count("shards"), done.index("wait")
    assert begun_first == (shards if is_known_fast else 3 * shards // (len(data) // CHUNK)) > 0


def test_over_a_slow_link_files_are_pushed_through_the_pool_soon(
    stand: Pushing, ann: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, data, profile = stand.unverified, noise(26, 60 * MIB), ErasureProfile(1, 2)
    monkeypatch.setattr(pace, "_WORTHWHILE_BYTES_PER_S", 1 << 40)
    version = ann.push(data, user_id="ann", filename="far", chunk_size=CHUNK, profile=profile)
    assert content_of(ann, version) == data
    written = stand.unverified - before
    assert 0 < written < len(data) // CHUNK
    ann.push(noise(27), user_id="ann", filename="far", chunk_size=CHUNK)
    assert stand.unverified <= before + written


def test_one_slow_push_is_enough_to_push_through_the_pool(
    stand: Pushing, ann: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "_WORTHWHILE_BYTES_PER_S", 1 << 40)
    before = stand.unverified
    ann.push(noise(28), user_id="ann", filename="first", chunk_size=CHUNK, profile=ErasureProfile(1, 2))
    after = stand.unverified
    assert after > before
    ann.push(noise(29), user_id="ann", filename="second", chunk_size=CHUNK, profile=ErasureProfile(1, 2))
    assert stand.unverified == after


def test_what_a_push_that_is_too_slow_has_not_written_goes_through_the_pool(
    stand: Pushing, ann: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    def is_hopeless(_: pace.Pace) -> bool:
        nonlocal asked
        asked += 1
        return asked > 3

    monkeypatch.setattr(pace.Pace, "is_hopeless", property(is_hopeless))
    before, data = stand.unverified, noise(31, 8 * MIB)  # what is written together
    version = ann.push(data, user_id="ann", filename="partly", chunk_size=CHUNK)
    assert content_of(ann, version) == data
    assert stand.unverified - before == 3


@pytest.mark.parametrize(("took_s", "is_slow"), [(1.0, False), (4.0, True)])
def test_only_the_time_in_which_something_is_written_counts(
    monkeypatch: pytest.MonkeyPatch, took_s: float, *, is_slow: bool
) -> None:
    monkeypatch.setattr(pace, "_WORTHWHILE_BYTES_PER_S", 8 * MIB)
    now_s = [0.0]
    judged = pace.Pace(lambda: now_s[0])
    for _ in range(2):
        judged.begin(7 * MIB)
        judged.begin(7 * MIB)
        now_s[0] += took_s
        assert judged.is_hopeless is is_slow
        assert judged.end(7 * MIB) is (False if is_slow else None)
        assert not judged.is_known_fast
        now_s[0] += took_s / 2
        found = judged.end(7 * MIB)
        now_s[0] += 1000.0
    assert found is (None if is_slow else True)
    assert judged.is_known_fast is not is_slow


def test_over_a_slow_link_a_client_writes_to_workers_less_often_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [0.0]
    monkeypatch.setattr(pace, "_WORTHWHILE_BYTES_PER_S", 8 * MIB)

    def write(*_: object) -> list[bool]:
        now_s[0] += 2.0
        return [True]

    monkeypatch.setattr(DirectWrites, "_write", write)
    chunk = SealedChunk(b"", [Shard(ShardKey(b""), 0, b"", bytes(12 * MIB))])
    paused_s = []
    with ThreadPoolExecutor(1) as threads:
        writes = DirectWrites(TicketedFleet(never_connected, threads), lambda: now_s[0])
        for _ in range(4):
            while writes.may_write():
                assert writes.write(Places([], [], b"", b""), [chunk], lambda: False) == [True]
            paused_s.append(pause_of(writes, now_s))
        writes.close()
    assert paused_s == [60, 120, 240, 480]


def never_connected(*_: object) -> TicketedVolume:
    raise AssertionError


def pause_of(writes: DirectWrites, now_s: list[float]) -> float:
    began_s = now_s[0]
    while not writes.may_write():
        now_s[0] += 1.0
    return now_s[0] - began_s


def test_workers_that_a_client_cannot_reach_fail_no_push(
    stand: Pushing, ann: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder, data, before = DirectPushes._holder, noise(22), stand.unverified

    def out_of_reach(self: DirectPushes, slot: int) -> Holder | None:
        found = holder(self, slot)
        return found if found is None or slot % 2 else found._replace(address="127.0.0.1:9")

    monkeypatch.setattr(DirectPushes, "_holder", out_of_reach)
    version = ann.push(data, user_id="ann", filename="reached", chunk_size=CHUNK)
    assert content_of(ann, version) == data
    assert stand.unverified == before


def test_an_async_client_writes_to_workers(stand: Pushing) -> None:
    before, data = stand.unverified, noise(23)

    async def pushed() -> None:
        async with AsyncClient(stand.address, token=stand.server.users.create_token("ann").text) as client:
            version = await client.push(data, user_id="ann", filename="async", chunk_size=CHUNK)
            assert await client.get(version.file_id, user_id="ann") == data

    asyncio.run(pushed())
    assert stand.unverified - before == CHUNKS


def test_large_files_among_many_and_revisions_are_stored(stand: Pushing, ann: Client) -> None:
    data, other = noise(24), noise(25)
    outcomes = list(ann.push_many([("many/1", data), ("many/2", b"small"), ("many/3", other)], user_id="ann"))
    assert [outcome.error for outcome in outcomes] == [None] * 3
    changed = data[:MIB] + b"changed" + data[MIB + 7 :]
    for content in (other, data):  # what a client wrote itself is revised, too
        version = ann.push(content, user_id="ann", filename="revised", chunk_size=CHUNK)
    version = ann.revise(version.file_id, changed, user_id="ann")
    assert content_of(ann, version) == changed


def test_a_worker_that_stops_in_the_middle_fails_no_push(
    stand: Pushing, ann: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last test, as the worker does not come back."""
    data, write, pages, spoiled = noise(11), DirectWrites.write, list[int](), noise(21)
    with monkeypatch.context() as patch:
        forging(patch, wrong_parity)
        ann.push(spoiled, user_id="ann", filename="spoiled", chunk_size=CHUNK)
    before = stand.unverified

    def interrupted(self: DirectWrites, *arguments: Any) -> list[bool]:
        pages.append(len(pages))
        if len(pages) == 2:
            stand.workers.pop().stop(0.0)
        return write(self, *arguments)

    monkeypatch.setattr(DirectWrites, "write", interrupted)
    version = ann.push(data, user_id="ann", filename="interrupted", chunk_size=CHUNK)
    assert content_of(ann, version) == data
    with Client(stand.address, direct=False) as operator:
        assert bytes(operator.get(version.file_id, user_id="ann")) == data
    # The worker that is away has what the client wrote, and is not to blame for it if it comes back.
    token = stand.server.users.create_token("ann").text
    with Client(stand.address, token=token, direct=False) as client:
        again = client.push(spoiled, user_id="ann", filename="again", chunk_size=CHUNK)
        assert content_of(client, again) == spoiled
    assert stand.unverified >= before
