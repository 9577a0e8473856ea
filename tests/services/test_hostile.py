"""Input meant to break things: the right code, a text that says what to do, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import grpc
import pytest
from blake3 import blake3

from storage import FileStorage, Version
from taskworker.protos import store_pb2, taskworker_pb2
from tests.services.conftest import CHUNK, Raw, text_of

CODE = grpc.StatusCode
USER = "u1"


def chunk_of(seed: int) -> bytes:
    return bytes([seed]) * CHUNK


def name_of(data: bytes) -> bytes:
    return blake3(data).digest()


@pytest.fixture
def base(store: FileStorage) -> Version:
    return store.push(chunk_of(1) + chunk_of(2) + b"end", filename="a", user_id=USER)


def patch(index: int, data: bytes | None, chunk_id: bytes | None = None) -> store_pb2.Patch:
    if chunk_id is None:
        chunk_id = name_of(data or b"")
    return store_pb2.Patch(index=index, chunk_id=chunk_id, data=data)


def diff_of(
    base: Version, *patches: store_pb2.Patch, size: int | None = None, chunk_size: int = CHUNK
) -> store_pb2.ManifestDiff:
    return store_pb2.ManifestDiff(
        base_version=base.version_id,
        new_size=base.size if size is None else size,
        chunk_size=chunk_size,
        patches=patches,
    )


def by_revise(raw: Raw, base: Version, difference: bytes) -> object:
    return raw.files.Revise(taskworker_pb2.ReviseRequest(file_id=base.file_id, user_id=USER, difference=difference))


def by_stream(raw: Raw, base: Version, difference: bytes) -> object:
    diff = store_pb2.ManifestDiff.FromString(difference)
    header = store_pb2.ReviseHeader(
        file_id=base.file_id,
        user_id=USER,
        base_version=diff.base_version,
        new_size=diff.new_size,
        chunk_size=diff.chunk_size,
    )
    commit = store_pb2.ReviseCommit(patch_count=len(diff.patches))
    return raw.store.ReviseStream(iter([store_pb2.RevisePart(header=header, patches=diff.patches, commit=commit)]))


def by_synchronous(raw: Raw, base: Version, difference: bytes) -> object:
    state = store_pb2.SyncState(version_id=base.version_id, user_id=USER)
    state.diff.ParseFromString(difference)
    return raw.files.Synchronous(
        taskworker_pb2.SynchronousRequest(file_id=base.file_id, difference=state.SerializeToString())
    )


WAYS = {"Revise": by_revise, "ReviseStream": by_stream, "Synchronous": by_synchronous}
BIG = (1 << 64) - 1


def hostile(base: Version) -> dict[str, store_pb2.ManifestDiff]:
    return {
        "wrong hash": diff_of(base, patch(0, chunk_of(9), name_of(b"other"))),
        "short id": diff_of(base, patch(0, chunk_of(9), b"short")),
        "no id": diff_of(base, store_pb2.Patch(index=0, data=chunk_of(9))),
        "index past the end": diff_of(base, patch(3, chunk_of(9))),
        "index past everything": diff_of(base, patch(BIG, chunk_of(9))),
        "index twice": diff_of(base, patch(0, chunk_of(9)), patch(0, chunk_of(8))),
        "falling indices": diff_of(base, patch(1, chunk_of(9)), patch(0, chunk_of(8))),
        "data too short": diff_of(base, patch(0, b"short")),
        "data too long": diff_of(base, patch(0, chunk_of(9) + b"x")),
        "size that overflows": diff_of(base, size=BIG),
        "size too large": diff_of(base, size=1 << 62),
        "growth without chunks": diff_of(base, size=base.size + 10 * CHUNK),
        "cut without its last chunk": diff_of(base, size=CHUNK + 5),
        "other chunk size": diff_of(base, chunk_size=2 * CHUNK),
        "no chunk size": diff_of(base, chunk_size=0),
        "absurd chunk size": diff_of(base, chunk_size=BIG),
        "unknown chunk": diff_of(base, patch(0, None, name_of(b"nobody has this"))),
        "own chunk of another length": diff_of(base, patch(0, None, name_of(b"end"))),
        "one id for a whole and a short chunk": diff_of(
            base, patch(0, chunk_of(9)), patch(2, None, name_of(chunk_of(9)))
        ),
    }


HOSTILE = tuple(hostile(Version("", "", None, "", "", 0, CHUNK, None, 0, 0, None, "")))  # type: ignore[arg-type]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_differences_change_nothing(kind: str, way: str, raw: Raw, store: FileStorage, base: Version) -> None:
    before, content = store.stats(), store.get(base.file_id, user_id=USER)
    with pytest.raises(grpc.RpcError) as refused:
        WAYS[way](raw, base, hostile(base)[kind].SerializeToString())
    assert refused.value.code() is CODE.INVALID_ARGUMENT, text_of(refused.value)
    assert text_of(refused.value)
    after = store.stats()
    assert (after.versions, after.stored_bytes) == (before.versions, before.stored_bytes)
    assert store.get(base.file_id, user_id=USER) == content
    assert len(store.history(base.file_id, user_id=USER)) == 1


@pytest.mark.parametrize("way", WAYS)
def test_anothers_chunk_looks_like_none(way: str, raw: Raw, store: FileStorage, base: Version) -> None:
    secret = chunk_of(77)
    store.push(secret, filename="secret", user_id="u2")

    def refusal(data: bytes) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.RpcError) as refused:
            WAYS[way](raw, base, diff_of(base, patch(0, None, name_of(data))).SerializeToString())
        return refused.value.code(), text_of(refused.value).replace(name_of(data).hex(), "ID")

    assert refusal(secret) == refusal(chunk_of(78))


def test_anothers_chunk_is_missing_and_cannot_be_reused(raw: Raw, store: FileStorage) -> None:
    secret = name_of(chunk_of(77))
    store.push(chunk_of(77), filename="secret", user_id="u2")
    nobody = name_of(chunk_of(78))
    answer = raw.store.MissingChunks(store_pb2.MissingChunksRequest(user_id=USER, chunk_ids=[secret, nobody]))
    assert list(answer.missing) == [True, True]

    def refusal(chunk_id: bytes) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.RpcError) as refused:
            raw.store.PushStream(
                iter(
                    [
                        store_pb2.PushPart(
                            header=store_pb2.PushHeader(filename="b", user_id=USER),
                            reuse=store_pb2.ChunkList(chunk_ids=[chunk_id]),
                            commit=store_pb2.PushCommit(size=CHUNK),
                        )
                    ]
                )
            )
        return refused.value.code(), text_of(refused.value).replace(chunk_id.hex(), "ID")

    assert refusal(secret) == refusal(nobody)
    assert refusal(secret)[0] is CODE.INVALID_ARGUMENT
    assert store.find("b", user_id=USER) is None


RAW_DIFFERENCE: dict[str, Callable[[Raw, Version, bytes], object]] = {
    "Revise": by_revise,
    "Synchronous": lambda raw, base, difference: raw.files.Synchronous(
        taskworker_pb2.SynchronousRequest(file_id=base.file_id, difference=difference)
    ),
}


@pytest.mark.parametrize("garbage", [b"\xff" * 20, b"\x0a\xff\xff\xff\xff\x0f", b"\x22\x05ab", b"\x0a\x02\xc3\x28"])
@pytest.mark.parametrize("call", RAW_DIFFERENCE)
def test_malformed_difference(call: str, garbage: bytes, raw: Raw, base: Version) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        RAW_DIFFERENCE[call](raw, base, garbage)
    assert refused.value.code() is CODE.INVALID_ARGUMENT
    assert "difference is malformed" in text_of(refused.value)


@pytest.mark.parametrize("call", RAW_DIFFERENCE)
def test_empty_difference(call: str, raw: Raw, base: Version) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        RAW_DIFFERENCE[call](raw, base, b"")
    assert refused.value.code() is CODE.INVALID_ARGUMENT
    assert "difference is empty" in text_of(refused.value)


def test_sync_state_must_agree_with_its_diff(raw: Raw, base: Version) -> None:
    state = store_pb2.SyncState(version_id="0" * 64, user_id=USER, diff=diff_of(base))
    with pytest.raises(grpc.RpcError) as refused:
        raw.files.Synchronous(
            taskworker_pb2.SynchronousRequest(file_id=base.file_id, difference=state.SerializeToString())
        )
    assert refused.value.code() is CODE.INVALID_ARGUMENT


def test_both_moved_is_aborted_with_both_ids_and_nothing_lost(raw: Raw, store: FileStorage, base: Version) -> None:
    head = store.push(b"theirs", filename="a", user_id=USER)
    diff = diff_of(base, patch(0, chunk_of(9)))
    for way in WAYS.values():
        with pytest.raises(grpc.RpcError) as refused:
            way(raw, base, diff.SerializeToString())
        assert refused.value.code() is CODE.ABORTED
        assert head.version_id in text_of(refused.value)
        assert base.version_id in text_of(refused.value)
        metadata: dict[str, object] = {entry.key: entry.value for entry in refused.value.trailing_metadata()}
        assert (metadata["head-version"], metadata["base-version"]) == (head.version_id, base.version_id)
    assert store.get(base.file_id, user_id=USER) == b"theirs"
    assert len(store.history(base.file_id, user_id=USER)) == 2


@pytest.mark.parametrize("sha256", ["0" * 64, "xyz", "0" * 63, "é" * 32])
def test_wrong_sha256_changes_nothing(sha256: str, raw: Raw, store: FileStorage, base: Version) -> None:
    difference = diff_of(base, patch(0, chunk_of(9))).SerializeToString()
    with pytest.raises(grpc.RpcError) as refused:
        raw.files.Revise(
            taskworker_pb2.ReviseRequest(file_id=base.file_id, user_id=USER, sha256=sha256, difference=difference)
        )
    assert refused.value.code() is CODE.INVALID_ARGUMENT
    assert store.stat(base.file_id, user_id=USER) == base


BAD_NAMES = ["", "a\0b", "..", "../a", "a/../b", "./a", "x" * 65536, "文" * 400]
GOOD_NAMES = ["文件.txt", "😀", "a b\n\t%", "e\u0301", "..a", "a..", "x" * 1024, "\u202etxt.exe"]


def push_unary(raw: Raw, name: str, user: str = USER) -> str:
    return raw.files.Push(taskworker_pb2.PushRequest(file_data=b"x", filename=name, user_id=user)).file_id


def push_stream(raw: Raw, name: str, user: str = USER) -> str:
    header = store_pb2.PushHeader(filename=name, user_id=user)
    part = store_pb2.PushPart(header=header, data=b"x", commit=store_pb2.PushCommit(size=1))
    return raw.store.PushStream(iter([part])).version.file_id


@pytest.mark.parametrize("push", [push_unary, push_stream])
@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: repr(name[:10]))
def test_names_no_file_may_have(push: object, name: str, raw: Raw, store: FileStorage) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        push(raw, name)  # type: ignore[operator]
    assert refused.value.code() is CODE.INVALID_ARGUMENT
    assert "filename" in text_of(refused.value)
    assert store.list_files(user_id=USER) == []


@pytest.mark.parametrize("push", [push_unary, push_stream])
@pytest.mark.parametrize("name", GOOD_NAMES, ids=lambda name: repr(name[:10]))
def test_names_of_any_script(push: object, name: str, raw: Raw, store: FileStorage) -> None:
    file_id = push(raw, name)  # type: ignore[operator]
    found = raw.store.Stat(store_pb2.StatRequest(filename=name, user_id=USER))
    assert (found.file_id, found.filename) == (file_id, name)
    assert [version.filename for version in store.list_files(user_id=USER)] == [name]


@pytest.mark.parametrize("user", ["", "u\0", "u" * 257])
def test_users_nobody_can_be(user: str, raw: Raw) -> None:
    for push in (push_unary, push_stream):
        with pytest.raises(grpc.RpcError) as refused:
            push(raw, "a", user)
        assert refused.value.code() is CODE.INVALID_ARGUMENT
        assert "user_id" in text_of(refused.value)


def test_text_that_is_not_utf_8(raw: Raw) -> None:
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = raw.channel.unary_unary("/taskworker.FileService/Push")
    with pytest.raises(grpc.RpcError) as refused:
        call(b"\x0a\x01x\x12\x02\xc3\x28\x1a\x02u1")
    assert refused.value.code() is CODE.INVALID_ARGUMENT
    assert "malformed" in text_of(refused.value)


def header(**more: object) -> store_pb2.PushHeader:
    return store_pb2.PushHeader(filename="a", user_id=USER, **more)  # type: ignore[arg-type]


Part = store_pb2.PushPart
COMMIT = store_pb2.PushCommit

STREAMS: dict[str, tuple[list[store_pb2.PushPart], str]] = {
    "nothing": ([], "no message"),
    "no header": ([Part(data=b"x")], "header"),
    "commit first": ([Part(commit=COMMIT(size=0))], "header"),
    "two headers": ([Part(header=header()), Part(header=header())], "second header"),
    "no commit": ([Part(header=header()), Part(data=b"x")], "commit"),
    "wrong size": ([Part(header=header()), Part(data=b"x"), Part(commit=COMMIT(size=2))], "announced"),
    "reuse off a boundary": (
        [Part(header=header()), Part(data=b"x"), Part(reuse=store_pb2.ChunkList(chunk_ids=[bytes(32)]))],
        "multiples",
    ),
    "reuse of a short id": ([Part(header=header(), reuse=store_pb2.ChunkList(chunk_ids=[b"x"]))], "32 bytes"),
    "too many ids": (
        [Part(header=header(), reuse=store_pb2.ChunkList(chunk_ids=[bytes(32)] * 16385))],
        "at most",
    ),
    "tiny chunks": ([Part(header=header(chunk_size=1))], "chunk size"),
    "huge chunks": ([Part(header=header(chunk_size=1 << 63))], "chunk size"),
    "impossible profile": ([Part(header=header(profile=store_pb2.ErasureProfile(k=3, n=2)))], "k"),
    "zero profile": ([Part(header=header(profile=store_pb2.ErasureProfile()))], "k"),
    "long note": ([Part(header=header(note="x" * 5000))], "note"),
    "bad sha256": ([Part(header=header(sha256="x"))], "sha256"),
    "wrong sha256": (
        [Part(header=header(sha256="0" * 64)), Part(data=b"x"), Part(commit=COMMIT(size=1))],
        "SHA-256",
    ),
}


@pytest.mark.parametrize("kind", STREAMS)
def test_streams_that_are_no_push(kind: str, raw: Raw, store: FileStorage) -> None:
    parts, said = STREAMS[kind]
    with pytest.raises(grpc.RpcError) as refused:
        raw.store.PushStream(iter(parts))
    assert refused.value.code() is CODE.INVALID_ARGUMENT, text_of(refused.value)
    assert said in text_of(refused.value)
    assert store.list_files(user_id=USER) == []


def test_streams_that_are_no_revision(raw: Raw, base: Version, store: FileStorage) -> None:
    head = store_pb2.ReviseHeader(
        file_id=base.file_id, user_id=USER, base_version=base.version_id, new_size=base.size, chunk_size=CHUNK
    )
    part, commit = store_pb2.RevisePart, store_pb2.ReviseCommit
    one = patch(0, chunk_of(9))
    streams: list[list[store_pb2.RevisePart]] = [
        [],
        [part(patches=[one])],
        [part(header=head), part(header=head)],
        [part(header=head, patches=[one])],
        [part(header=head, patches=[one], commit=commit(patch_count=2))],
        [part(header=head, patches=[one]), part(commit=commit())],
    ]
    for parts in streams:
        with pytest.raises(grpc.RpcError) as refused:
            raw.store.ReviseStream(iter(parts))
        assert refused.value.code() is CODE.INVALID_ARGUMENT
        assert text_of(refused.value)
    assert store.stat(base.file_id, user_id=USER) == base


def test_a_large_revision_with_a_wrong_hash_is_refused_whole(raw: Raw, store: FileStorage) -> None:
    count = 300
    base = store.push(bytes(count * CHUNK), filename="large", user_id=USER)

    def parts() -> Iterator[store_pb2.RevisePart]:
        head = store_pb2.ReviseHeader(
            file_id=base.file_id, user_id=USER, base_version=base.version_id, new_size=base.size, chunk_size=CHUNK
        )
        yield store_pb2.RevisePart(header=head)
        for index in range(count):
            data = index.to_bytes(4) * (CHUNK // 4)
            chunk_id = name_of(data) if index != 200 else name_of(b"other")
            yield store_pb2.RevisePart(patches=[patch(index, data, chunk_id)])
        yield store_pb2.RevisePart(commit=store_pb2.ReviseCommit(patch_count=count))

    with pytest.raises(grpc.RpcError) as refused:
        raw.store.ReviseStream(parts())
    assert refused.value.code() is CODE.INVALID_ARGUMENT
    assert "patch 200" in text_of(refused.value)
    assert store.stat(base.file_id, user_id=USER) == base


def test_a_revision_of_many_short_patches_is_not_held(raw: Raw, store: FileStorage, base: Version) -> None:
    size = 1000 * CHUNK

    def parts() -> Iterator[store_pb2.RevisePart]:
        head = store_pb2.ReviseHeader(
            file_id=base.file_id, user_id=USER, base_version=base.version_id, new_size=size, chunk_size=CHUNK
        )
        yield store_pb2.RevisePart(header=head)
        for index in range(1000):
            yield store_pb2.RevisePart(patches=[patch(index, bytes(CHUNK - 1))])
        yield store_pb2.RevisePart(commit=store_pb2.ReviseCommit(patch_count=1000))

    with pytest.raises(grpc.RpcError) as refused:
        raw.store.ReviseStream(parts())
    assert refused.value.code() is CODE.INVALID_ARGUMENT
    assert "not a whole chunk" in text_of(refused.value)


MIB = 1024 * 1024


def test_a_unary_push_above_the_limit_names_the_stream(raw: Raw, store: FileStorage) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        raw.files.Push(taskworker_pb2.PushRequest(file_data=bytes(5 * MIB), filename="a", user_id=USER))
    assert refused.value.code() is CODE.RESOURCE_EXHAUSTED
    assert "PushStream" in text_of(refused.value)
    assert store.list_files(user_id=USER) == []


def test_a_unary_get_above_the_limit_names_the_stream(raw: Raw, store: FileStorage) -> None:
    version = store.push((bytes([i]) * MIB for i in range(5)), filename="a", user_id=USER, chunk_size=MIB)
    with pytest.raises(grpc.RpcError) as refused:
        raw.files.Get(taskworker_pb2.GetRequest(file_id=version.file_id, user_id=USER))
    assert refused.value.code() is CODE.RESOURCE_EXHAUSTED
    assert "GetStream" in text_of(refused.value)


def test_a_message_of_a_stream_above_the_limit(raw: Raw, store: FileStorage) -> None:
    parts = [Part(header=header()), Part(data=bytes(20 * MIB)), Part(commit=COMMIT(size=20 * MIB))]
    with pytest.raises(grpc.RpcError) as refused:
        raw.store.PushStream(iter(parts))
    assert refused.value.code() is CODE.RESOURCE_EXHAUSTED
    assert "send less in each" in text_of(refused.value)
    assert store.list_files(user_id=USER) == []


def test_a_range_past_the_end(raw: Raw, base: Version) -> None:
    request = store_pb2.GetStreamRequest(file_id=base.file_id, user_id=USER, offset=base.size + 1)
    with pytest.raises(grpc.RpcError) as refused:
        list(raw.store.GetStream(request))
    assert refused.value.code() is CODE.INVALID_ARGUMENT
    huge = store_pb2.GetStreamRequest(file_id=base.file_id, user_id=USER, offset=base.size - 3, length=BIG)
    assert b"".join(part.data for part in raw.store.GetStream(huge)) == b"end"


def test_version_with_a_filename_is_refused(raw: Raw) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        raw.store.Stat(store_pb2.StatRequest(user_id=USER, filename="a", version_id="0" * 64))
    assert refused.value.code() is CODE.INVALID_ARGUMENT
    assert "file_id" in text_of(refused.value)
