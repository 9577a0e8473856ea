"""Files can be read like any seekable stream, in every way, and with shards missing."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import FileReader, FileStorage, StoreClosed, Version
from tests.storage.helpers import CHUNK, USER, content, file_shards, lose, open_store, push

SIZE = 5 * CHUNK + 777
DATA = content(1, SIZE)
places = st.integers(0, SIZE + 10)
lengths = st.one_of(st.integers(0, SIZE + 10), st.sampled_from([1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK]))


@pytest.fixture(scope="module", params=["healthy", "two volumes gone"])
def file(request: pytest.FixtureRequest, module_scratch: Path) -> Iterator[tuple[FileStorage, Version]]:
    """A file of several chunks."""
    root = module_scratch / request.param.replace(" ", "-")
    with open_store(root) as store:
        version = push(store, DATA)
    if request.param != "healthy":
        lose(root, 1, 4)
    with open_store(root) as store:
        yield store, version


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("seek"), places, st.just(0)),
        st.tuples(st.just("skip"), st.integers(-1000, CHUNK), st.just(0)),
        st.tuples(st.just("end"), st.integers(-SIZE, 5), st.just(0)),
        st.tuples(st.just("read"), lengths, st.just(0)),
        st.tuples(st.just("readinto"), lengths, st.just(0)),
    ),
    max_size=12,
)


def _step(stream: FileReader | io.BytesIO, kind: str, value: int) -> object:
    if kind == "seek":
        return stream.seek(value)
    if kind == "skip":
        return stream.seek(max(0, stream.tell() + value))
    if kind == "end":
        return stream.seek(value, io.SEEK_END)
    if kind == "read":
        return stream.read(value)
    buffer = bytearray(value)
    count = stream.readinto(buffer)
    return count, bytes(buffer)


@given(steps=_STEPS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_reader_does_what_bytesio_does(file: tuple[FileStorage, Version], steps: list[tuple[str, int, int]]) -> None:
    store, version = file
    model = io.BytesIO(DATA)
    with store.open_file(version.file_id, user_id=USER) as reader:
        for kind, value, _ in steps:
            assert _step(reader, kind, value) == _step(model, kind, value)
            assert reader.tell() == model.tell()


@given(start=places, stop=st.one_of(st.none(), places))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_chunk_by_chunk(file: tuple[FileStorage, Version], start: int, stop: int | None) -> None:
    store, version = file
    with store.open_file(version.file_id, user_id=USER) as reader:
        pieces = [bytes(piece) for piece in reader.iter_chunks(start, stop)]
    assert b"".join(pieces) == DATA[start:stop]
    assert all(0 < len(piece) <= CHUNK for piece in pieces)


def test_buffered(file: tuple[FileStorage, Version]) -> None:
    store, version = file
    with io.BufferedReader(store.open_file(version.file_id, user_id=USER), 10_000) as stream:
        assert stream.read(3) == DATA[:3]
        stream.seek(-5, io.SEEK_END)
        assert stream.read() == DATA[-5:]


def test_what_a_reader_tells_of_itself(file: tuple[FileStorage, Version]) -> None:
    store, version = file
    reader = store.open_file(version.file_id, user_id=USER)
    assert (reader.version, reader.size, reader.readable(), reader.seekable(), reader.writable()) == (
        version, SIZE, True, True, False
    )  # fmt: skip
    with pytest.raises(ValueError, match="negative"):
        reader.seek(-1)
    with pytest.raises(ValueError, match="whence"):
        reader.raw.seek(0, 9)  # a buffered reader checks this argument itself
    reader.close()
    reader.close()
    for use in (lambda: reader.read(1), lambda: reader.seek(0), reader.tell):
        with pytest.raises(ValueError, match="closed"):
            use()


def test_readers_see_their_version_whatever_happens_to_the_file(store: FileStorage) -> None:
    first = push(store, DATA)
    reader = store.open_file(first.file_id, user_id=USER)
    assert reader.read(10) == DATA[:10]
    push(store, b"second")
    assert reader.read(CHUNK) == DATA[10 : 10 + CHUNK]
    store.delete(first.file_id, user_id=USER)
    store.collect(grace_s=0)
    assert reader.readall() == DATA[10 + CHUNK :]
    assert store.collect(grace_s=0).objects_removed == 0
    reader.close()
    assert store.collect(grace_s=0).objects_removed > 0


def test_a_reader_that_is_forgotten_is_closed(store: FileStorage) -> None:
    version = push(store, DATA)
    reader: FileReader | None = store.open_file(version.file_id, user_id=USER)
    assert reader is not None
    del reader
    store.delete(version.file_id, user_id=USER)
    store.collect(grace_s=0)
    assert file_shards(store) == 6  # the tombstone


def test_reading_after_the_store_was_closed(root: Path) -> None:
    with open_store(root) as store:
        version = push(store, DATA)
        readers = [store.open_file(version.file_id, user_id=USER) for _ in range(3)]
    for read in (readers[0].readall, lambda: readers[1].read(1), lambda: list(readers[2].iter_chunks())):
        with pytest.raises(StoreClosed):
            read()


def test_everything_refuses_after_close(root: Path) -> None:
    store = open_store(root)
    version = push(store, DATA)
    upload = store.upload(filename="u", user_id=USER)
    store.close()
    store.close()
    for use in (
        lambda: push(store, b"x"),
        lambda: store.get(version.file_id, user_id=USER),
        lambda: store.list_files(user_id=USER),
        store.scrub,
        store.collect,
        store.stats,
        store.rebuild,
        lambda: upload.write(DATA),
    ):
        with pytest.raises(StoreClosed):
            use()


@pytest.mark.parametrize("size", [0, 1, CHUNK, CHUNK + 1])
def test_small_files(store: FileStorage, size: int) -> None:
    data = DATA[:size]
    version = push(store, data)
    with store.open_file(version.file_id, user_id=USER) as reader:
        assert reader.read() == data
        assert reader.read(1) == b""
        assert reader.readall() == b""
        assert list(reader.iter_chunks()) == [data[i : i + CHUNK] for i in range(0, size, CHUNK)]
