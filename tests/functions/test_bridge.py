"""What a function asks of its worker: over a real store, with the very facade that functions use."""

from __future__ import annotations

import contextlib
import io
import json
import random
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import FileStorage
from taskworker.calls.call import ARGUMENTS_MAX, Call, RunningCall
from taskworker.calls.capabilities import NoCapabilities
from taskworker.errors import FunctionFailed
from taskworker.functions.hosting.bridge import PUSHES_MAX, READ_BYTES_MAX, Bridge
from taskworker.functions.hosting.user_files import EmbeddedFiles
from taskworker.sandbox import Asked
from taskworker.sandbox.inside.facade import FunctionWorker, WorkerError

ANN = Call("f", user_id="ann", call_id="c1", chain=("outer",))


class Direct:
    """The channel's part in one process."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge

    def ask(self, payload: bytes) -> bytes:
        return self._bridge(payload, Asked())

    async def aask(self, payload: bytes) -> bytes:
        return self.ask(payload)


class Counting(Direct):
    """Knows how often files were read, and how much of them."""

    def __init__(self, bridge: Bridge) -> None:
        super().__init__(bridge)
        self.reads = 0
        self.bytes_read = 0

    def ask(self, payload: bytes) -> bytes:
        answer = super().ask(payload)
        if b'"op": "read"' in payload:
            self.reads += 1
            self.bytes_read += len(answer)
        return answer


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FileStorage]:
    store = FileStorage.open(tmp_path / "store")
    yield store
    store.close()


def bridge_of(store: FileStorage, called: list[Call] | None = None) -> Bridge:
    def call_function(call: Call, running: RunningCall) -> str:
        if called is not None:
            called.append(call)
        if call.function == "broken":
            raise FunctionFailed("ValueError: inner")
        return json.dumps([call.args, dict(call.kwargs)])

    files = EmbeddedFiles(store, "ann")
    return Bridge(ANN, files, call_function, NoCapabilities(), disk_bytes=3 << 20, asking=RunningCall())


def worker_of(bridge: Bridge) -> FunctionWorker:
    worker = FunctionWorker()
    worker._connection.asker = Direct(bridge)
    return worker


def test_files_are_pushed_found_and_read(store: FileStorage) -> None:
    worker = worker_of(bridge_of(store))
    data = bytes(range(256)) * 8192
    pushed = worker.storage.push(data, "报告 1")
    assert pushed.size == len(data)
    assert worker.storage.get(pushed.file_id) == worker.storage.get("报告 1") == data
    assert worker.storage.push(io.BytesIO(b"second"), "报告 1").file_id == pushed.file_id
    assert worker.storage.get("报告 1") == b"second"
    assert worker.storage.get("报告 1", version_id=pushed.version_id) == data
    assert store.get(pushed.file_id, user_id="ann") == b"second"


def test_only_what_is_read_is_fetched(store: FileStorage) -> None:
    data = bytes(range(256)) * 16384
    store.push(data, filename="big", user_id="ann")
    asked: list[int] = []
    bridge = bridge_of(store)

    class Counting(Direct):
        def ask(self, payload: bytes) -> bytes:
            answer = super().ask(payload)
            asked.append(len(answer))
            return answer

    worker = FunctionWorker()
    worker._connection.asker = Counting(bridge)
    with worker.storage.open("big") as file:
        file.seek(-10, 2)
        assert file.read() == data[-10:]
        file.seek(1_000_000)
        assert file.read(20) == data[1_000_000:1_000_020]
    assert sum(asked) < READ_BYTES_MAX + 4_000


@pytest.mark.parametrize("way", ["whole", "forwards", "backwards", "both ends in turn"])
def test_however_a_file_is_read_little_more_than_its_bytes_is_fetched(store: FileStorage, way: str) -> None:
    data = random.Random(7).randbytes((3 << 20) - 12345)
    store.push(data, filename="big", user_id="ann")
    worker = worker_of(bridge := bridge_of(store))
    worker._connection.asker = counting = Counting(bridge)
    steps = range(0, len(data), 5000)
    read: dict[int, bytes] = {}
    with worker.storage.open("big") as file:
        if way == "whole":
            read[0] = file.read()
        elif way == "forwards":
            read = dict(enumerate(iter(lambda: file.read(5000), b"")))
        else:  # as libraries look for the end of a PDF, or read an archive whose directory is at its end
            backwards = list(reversed(steps))
            turns = [at for pair in zip(steps, backwards, strict=True) for at in pair]
            for at in backwards if way == "backwards" else turns:
                file.seek(at)
                read[at] = file.read(5000)
    assert b"".join(read[at] for at in sorted(read)) == data
    most = 2 if way == "both ends in turn" else 1  # there, every byte is read twice
    assert counting.bytes_read < most * len(data) * 1.1
    assert counting.reads < most * 16


def test_listing_goes_on_past_a_page(store: FileStorage) -> None:
    for number in range(450):
        store.push(b"", filename=f"n{number:03}", user_id="ann")
    store.push(b"", filename="other", user_id="ann")
    names = [file.filename for file in worker_of(bridge_of(store)).storage.list("n")]
    assert names == [f"n{number:03}" for number in range(450)]


def test_another_user_s_files_are_out_of_reach(store: FileStorage) -> None:
    theirs = store.push(b"secret", filename="theirs", user_id="bob")
    worker = worker_of(bridge_of(store))
    for name in ("theirs", theirs.file_id):
        with pytest.raises(WorkerError) as refused:
            worker.storage.get(name)
        assert refused.value.kind in ("FileNotFound", "PermissionDenied")
    assert not list(worker.storage.list())


def test_refusals_have_a_kind_and_a_text(store: FileStorage) -> None:
    with contextlib.closing(bridge_of(store)) as bridge:
        worker = worker_of(bridge)
        with pytest.raises(WorkerError, match="absent") as refused:
            worker.storage.get("absent")
        assert refused.value.kind == "FileNotFound"
        with pytest.raises(WorkerError, match="limit disk"):
            worker.storage.push(bytes(4 << 20), "too large")
    assert store.find("too large", user_id="ann") is None


@pytest.mark.parametrize("what", ["a text", Path("a path"), None, 7, io.StringIO("a text")])
def test_what_cannot_be_stored_is_told(store: FileStorage, what: Any) -> None:
    worker = worker_of(bridge_of(store))
    with pytest.raises(TypeError, match=rf"not {type(what).__name__}: encode a text.*worker\.result_file"):
        worker.storage.push(what, "f")
    with pytest.raises(WorkerError, match=r"the worker cannot read the question: .*name"):
        worker.storage.get(what if isinstance(what, int) else [])  # type: ignore[arg-type]


def test_a_range_of_a_file_is_written(store: FileStorage) -> None:
    worker = worker_of(bridge_of(store))
    content = bytearray(range(256)) * 10_000
    first = worker.storage.push(bytes(content), "ledger")
    rng = random.Random(5)
    for _ in range(12):
        offset = rng.choice([0, len(content), rng.randrange(len(content))])
        data = rng.randbytes(rng.choice([0, 1, 4096, 300_000]))
        content[offset : offset + len(data)] = data
        written = worker.storage.write(rng.choice(["ledger", first.file_id]), data, offset)
        assert written.file_id == first.file_id
        assert written.size == len(content)
        assert worker.storage.get("ledger") == content
    assert worker.storage.get("ledger", first.version_id) == bytes(range(256)) * 10_000
    with pytest.raises(WorkerError, match="a write begins at most at the file's end") as refused:
        worker.storage.write("ledger", b"x", len(content) + 1)
    assert refused.value.kind == "InvalidArgument"


def test_writes_at_the_same_time_all_stay(store: FileStorage) -> None:
    worker = worker_of(bridge_of(store))
    worker.storage.push(bytes(8 * 1000), "shared")
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda n: worker.storage.write("shared", bytes([n + 1]) * 1000, n * 1000), range(8)))
    assert worker.storage.get("shared") == b"".join(bytes([n + 1]) * 1000 for n in range(8))


def test_versions_are_listed_and_files_deleted(store: FileStorage) -> None:
    worker = worker_of(bridge_of(store))
    pushed = [worker.storage.push(b"%d" % number, "many") for number in range(450)]
    assert list(worker.storage.history("many")) == pushed[::-1]
    worker.storage.delete("many")
    for gone in (worker.storage.delete, worker.storage.stat, lambda name: next(worker.storage.history(name))):
        with pytest.raises(WorkerError) as refused:
            gone("many")
        assert refused.value.kind == "FileNotFound"


def test_pushes_at_the_same_time_are_told_apart_and_bounded_together(store: FileStorage) -> None:
    bridge = bridge_of(store)
    worker = worker_of(bridge)
    with ThreadPoolExecutor(4) as threads:
        files = list(threads.map(lambda n: worker.storage.push(bytes([n]) * 700_000, f"{n}"), range(4)))
    assert [worker.storage.get(file.file_id) for file in files] == [bytes([n]) * 700_000 for n in range(4)]
    ask = worker._connection.ask
    numbers = [ask("push-begin", filename=f"open {n}")[0]["push"] for n in range(PUSHES_MAX)]
    with pytest.raises(WorkerError, match="at most 16 pushes at once"):
        ask("push-begin", filename="one more")
    for _ in range(6):
        ask("push-part", bytes(512 << 10), push=numbers[0])
    with pytest.raises(WorkerError, match="limit disk"):
        ask("push-part", bytes(1), push=numbers[1])
    ask("push-end", push=numbers[0])
    ask("push-part", bytes(1), push=numbers[1])
    bridge.close()


def test_other_functions_are_called_for_the_same_user(store: FileStorage) -> None:
    called: list[Call] = []
    worker = worker_of(bridge_of(store, called))
    assert worker.call("g", 1, "x", deep={"a": b"\0"}) == [["1", '"x"'], {"deep": '{"a":"AA=="}'}]
    assert called == [Call("g", ("1", '"x"'), {"deep": '{"a":"AA=="}'}, "ann", "c1", ("outer", "f"))]
    with pytest.raises(WorkerError, match="ValueError: inner"):
        worker.call("broken")


def test_arguments_without_number_are_refused_before_they_are_looked_at(store: FileStorage) -> None:
    """A million empty ones are few bytes, and took a second of the worker."""
    called: list[Call] = []
    bridge = bridge_of(store, called)

    def asked(args: int, by_name: int) -> dict[str, str]:
        header = json.dumps({"op": "call", "name": "f", "args": args}).encode()
        names = b"".join(struct.pack("<I", 8) + f"{number:08}".encode() + bytes(4) for number in range(by_name))
        answer = bridge(struct.pack("<I", len(header)) + header + bytes(4 * args) + names, Asked())
        (length,) = struct.unpack_from("<I", answer)
        told: dict[str, str] = json.loads(answer[4 : 4 + length])
        return told

    for args, by_name in ((ARGUMENTS_MAX + 1, 0), (ARGUMENTS_MAX, 1), (1_200_000, 0), (0, 100_000)):
        assert asked(args, by_name)["error"] == "InvalidArgument"
    assert called == []
    assert asked(ARGUMENTS_MAX, 0) == asked(0, ARGUMENTS_MAX // 2) == {}
    assert [len(call.args) + len(call.kwargs) for call in called] == [ARGUMENTS_MAX, ARGUMENTS_MAX // 2]


def test_what_is_not_to_be_had_is_told() -> None:
    with pytest.raises(AttributeError, match=r"worker\.get_moon is not available inside a function"):
        FunctionWorker().get_moon  # noqa: B018
    with pytest.raises(RuntimeError, match="while a call runs"):
        FunctionWorker().storage.get("x")


OPERATIONS = [
    *("stat", "read", "list", "delete", "history", "call", "secret", "http", "x"),
    *("push-begin", "write-begin", "push-part", "push-end"),
]
questions = st.one_of(
    st.binary(max_size=200),
    st.builds(
        lambda header, data: struct.pack("<I", len(header)) + header + data,
        st.one_of(
            st.binary(max_size=50),
            st.dictionaries(
                st.sampled_from(
                    [
                        "op",
                        "name",
                        "file_id",
                        "version_id",
                        "offset",
                        "length",
                        "filename",
                        "args",
                        "user_id",
                        "push",
                        "before",
                    ]
                ),
                st.one_of(
                    st.sampled_from(OPERATIONS),
                    st.integers(-(2**70), 2**70),
                    st.text(max_size=5),
                    st.none(),
                    st.lists(st.text(max_size=3), max_size=3),
                ),
            ).map(lambda header: json.dumps(header).encode()),
        ),
        st.binary(max_size=50),
    ),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(questions, max_size=5))
def test_whatever_is_asked_is_answered(store: FileStorage, asked: list[bytes]) -> None:
    bridge = bridge_of(store)
    for question in asked:
        answer = bridge(question, Asked())
        (length,) = struct.unpack_from("<I", answer)
        told = json.loads(answer[4 : 4 + length])
        assert "error" not in told or told["error"] in (
            "InvalidArgument",
            "FileNotFound",
            "VersionNotFound",
            "PermissionDenied",
        )
    bridge.close()
