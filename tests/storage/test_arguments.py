"""Arguments of the wrong type or range are refused before anything is written."""

from __future__ import annotations

import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from storage import ErasureProfile, FileStorage, InvalidArgument, ManifestDiff, Patch
from storage.arguments import checked
from tests.storage.helpers import CHUNK, USER, content, get, open_store, push

NOT_TEXT = (b"text", 7, 1.5, True, Path("name"), ["a"], object())
NOT_UTF8 = ("a\udc80b",)


class Awkward:
    """An object whose methods raise, like those of an array where one number is expected."""

    def __index__(self) -> int:
        raise TypeError("only scalar arrays can be converted to a scalar index")

    def __bool__(self) -> bool:
        raise ValueError("the truth value of an array is ambiguous")

    def __str__(self) -> str:
        raise RuntimeError("no text")

    def __fspath__(self) -> str:
        return 5  # type: ignore[return-value]


HUGE = (10**400, 10**5000, -(10**5000))  # the last two have more digits than Python converts to text
NOT_WHOLE = (1.0, 1e12, math.nan, math.inf, True, False, "1", b"1", Decimal(1), [1], Awkward(), *HUGE)
NO_PATH = ("a\0b", "\ud800", Awkward())

_DIFF: Any = ManifestDiff  # called with arguments that are not valid for it
_PATCH: Any = Patch

BAD: dict[str, tuple[Any, ...]] = {
    "filename": (*NOT_TEXT, *NOT_UTF8, "", "a\0b", "..", "a/./b", "x" * 1025),
    "user_id": (*NOT_TEXT, *NOT_UTF8, "", "a\0b", "x" * 257),
    "note": (*NOT_TEXT, *NOT_UTF8, "x" * 4097),
    "time_ms": (*NOT_WHOLE, 1 << 63, -(1 << 63) - 1),
    "chunk_size": (*NOT_WHOLE, 65536.0, 0, 1, -1, CHUNK - 1, (16 << 20) + 1),
    "profile": ((4, 6), "4-of-6", 4, True),
    "source": NO_PATH,
    "sha256": (b"0" * 64, 0, b"", [], Awkward(), "0" * 63, "g" * 64, "é" * 64),
    "progress": (True, 7, "print"),
    "size_hint": (*NOT_WHOLE, -1),
    "prefix": (*NOT_TEXT, *NOT_UTF8),
    "after": (*NOT_TEXT, *NOT_UTF8, ""),
    "limit": (*NOT_WHOLE, -1),
    "start": (*NOT_WHOLE, -1),
    "stop": (*NOT_WHOLE, -1),
    "data_bytes_max": (*NOT_WHOLE, -1),
    "file_id": (*NOT_TEXT, None),
    "file_ids": ("a" * 32, b"a", [b"a"], [None], [7], 7, None),
    "version_id": NOT_TEXT,
    "base_version_id": NOT_TEXT,
    "have_version_id": (*NOT_TEXT, None),
    "before": NOT_TEXT,
    "chunk_ids": ("a" * 32, b"a" * 32, ["a" * 32], [b"a" * 31], [None], 7, None),
    "grace_s": (math.nan, math.inf, -1, -0.5, "1", True, Decimal(1), Awkward(), *HUGE),
    "within_s": (math.nan, -1, "1", True),
    "pace": ("sleep", 7),
    "watch": ("look", 7),
    "diff": (
        None, {}, b"",
        _DIFF("", 1.0, CHUNK, ()), _DIFF("", True, CHUNK, ()), _DIFF("", 1, float(CHUNK), ()),
        _DIFF(b"", 1, CHUNK, ()), _DIFF("", 1, CHUNK, None), _DIFF("", 1, CHUNK, (None,)),
        _DIFF("", 1, CHUNK, (_PATCH(0.0, bytes(32)),)), _DIFF("", 1, CHUNK, (_PATCH(True, bytes(32)),)),
        _DIFF("", 10**5000, CHUNK, ()), _DIFF("", 1, CHUNK, (_PATCH(10**5000, bytes(32)),)),
        _DIFF("", 1, CHUNK, (_PATCH(0, "a" * 32),)), _DIFF("", 1, CHUNK, (_PATCH(0, bytes(32), "a"),)),
    ),
}  # fmt: skip

METHODS: dict[str, tuple[str, ...]] = {
    "push": ("source", "filename", "user_id", "profile", "chunk_size", "time_ms", "note", "sha256", "progress"),
    "upload": ("filename", "user_id", "profile", "chunk_size", "time_ms", "note", "sha256", "size_hint", "progress"),
    "missing_chunks": ("chunk_ids", "user_id", "profile"),
    "revise": ("file_id", "diff", "user_id", "sha256", "time_ms", "note"),
    "delete": ("file_id", "user_id"),
    "delete_files": ("file_ids", "user_id"),
    "get": ("file_id", "user_id", "version_id"),
    "open_file": ("file_id", "user_id", "version_id"),
    "find": ("filename", "user_id"),
    "stat": ("file_id", "user_id", "version_id"),
    "chunk_ids": ("file_id", "user_id", "version_id", "start", "stop"),
    "diff": ("file_id", "user_id", "base_version_id"),
    "synchronize": ("file_id", "have_version_id", "user_id", "data_bytes_max"),
    "history": ("file_id", "user_id", "limit", "before"),
    "list_files": ("user_id", "prefix", "after", "limit"),
    "scrub": ("progress",),
    "repair": ("progress", "pace", "watch"),
    "collect": ("progress", "grace_s", "pace"),
    "is_busy": ("within_s",),
}


@pytest.mark.parametrize("method", METHODS)
def test_what_a_method_cannot_take_it_refuses_and_writes_nothing(store: FileStorage, method: str) -> None:
    version = push(store, b"content")
    good: dict[str, Any] = {
        "source": b"x", "filename": "new", "user_id": USER, "file_id": version.file_id, "chunk_ids": [bytes(32)],
        "file_ids": [version.file_id],
        "diff": ManifestDiff(version.version_id, 1, version.chunk_size, ()), "have_version_id": version.version_id,
    }  # fmt: skip
    in_order = {
        "push": ("source",),
        "missing_chunks": ("chunk_ids",),
        "delete_files": ("file_ids",),
        "revise": ("file_id", "diff"),
    }.get(method, ("filename",) if method == "find" else ("file_id",) if "file_id" in METHODS[method] else ())
    positional = in_order + (("source",) if method == "diff" else ())
    keywords = [name for name in good if name in METHODS[method] and name not in positional]
    counted = store.counts()
    for name in METHODS[method]:
        for bad in BAD[name]:
            given = good | {name: bad}
            arguments = [given[one] for one in positional]
            named = {one: given[one] for one in {*keywords, name} - {*positional}}
            with pytest.raises(InvalidArgument):
                getattr(store, method)(*arguments, **named)
    assert store.counts() == counted
    assert store.scrub().clean
    assert [found.filename for found in store.list_files(user_id=USER)] == ["file"]


def test_opening(root: Path) -> None:
    for bad in (
        {"chunk_size": 65536.0}, {"chunk_size": True}, {"profile": (1, 2)}, {"volumes": "abc"}, {"volumes": [b"a"]},
        {"create": 1},
    ):  # fmt: skip
        with pytest.raises(InvalidArgument):
            FileStorage.open(root, **bad)
    for path in (b"store", 7, None, "a\0b"):
        with pytest.raises(InvalidArgument):
            FileStorage.open(path)  # type: ignore[arg-type]
    assert not root.exists()
    open_store(root).close()


@pytest.mark.parametrize(("k", "n"), [(1.0, 2), (1, 2.0), (True, 2), (1, True), ("1", 2), (None, None)])
def test_a_profile(k: Any, n: Any) -> None:
    with pytest.raises(InvalidArgument):
        ErasureProfile(k, n)


class _Text(str):
    """A subclass of str, as in numpy and template engines."""

    __slots__ = ()


class _Number:
    """Not an int, but usable as one, as in numpy."""

    def __init__(self, value: int) -> None:
        self._value = value

    def __index__(self) -> int:
        return self._value


def test_what_is_as_good_as_text_or_a_number_is_taken(store: FileStorage) -> None:
    version = store.push(
        b"x", filename=_Text("name"), user_id=_Text(USER), note=_Text("n"), time_ms=_Number(-5)  # type: ignore[arg-type]
    )  # fmt: skip
    assert (version.filename, version.user_id, version.note, version.time_ms) == ("name", USER, "n", -5)
    assert store.get(_Text(version.file_id), user_id=_Text(USER)) == b"x"
    assert store.scrub().clean


def test_a_parameter_without_a_rule_is_a_fault_of_the_program() -> None:
    def method(self: object, *, unheard_of: int) -> None:
        """Do nothing."""

    with pytest.raises(TypeError, match="unheard_of"):
        checked(method)


def test_python_says_which_arguments_there_are(store: FileStorage) -> None:
    with pytest.raises(TypeError, match="filname"):
        store.push(b"x", filname="a", user_id=USER)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="positional"):
        store.find("a", USER)  # type: ignore[call-arg]


def test_what_cannot_be_written_into_an_upload(store: FileStorage) -> None:
    with store.upload(filename="a", user_id=USER) as upload:
        for bad in ("text", 7, None):
            with pytest.raises(InvalidArgument):
                upload.write(bad)  # type: ignore[arg-type]
        for ids in (None, 7, "a" * 32, [b"short"], ["a" * 32], [None]):
            with pytest.raises(InvalidArgument):
                upload.reuse(ids)  # type: ignore[arg-type]
        for size in (1.0, True, "1", Awkward()):
            with pytest.raises(InvalidArgument):
                upload.commit(size)  # type: ignore[arg-type]
        for file_id in ("a" * 16, "", b"short", 7, Awkward()):
            with pytest.raises(InvalidArgument):
                upload.commit(file_id=file_id)  # type: ignore[arg-type]
            with pytest.raises(InvalidArgument):
                upload.commit(file_id=bytes(16), base=file_id)  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument):
            upload.commit(base=bytes(32))


def test_a_size_of_more_digits_than_python_writes_out(store: FileStorage) -> None:
    with store.upload(filename="a", user_id=USER) as upload, pytest.raises(InvalidArgument, match="announced"):
        upload.commit(10**5000)


def test_a_version_of_a_file_cannot_have_another_name(store: FileStorage) -> None:
    version = push(store, b"content")
    with store.upload(filename="other", user_id=USER) as upload:
        upload.write(b"more")
        with pytest.raises(InvalidArgument, match="called"):
            upload.commit(file_id=bytes.fromhex(version.file_id))
    assert [found.filename for found in store.list_files(user_id=USER)] == ["file"]


@pytest.mark.parametrize(
    "data", [bytearray(CHUNK), memoryview(bytes(2 * CHUNK))[::2], memoryview(bytes(CHUNK)).cast("d")]
)
def test_a_patch_is_as_many_bytes_as_its_buffer(store: FileStorage, data: bytearray | memoryview) -> None:
    version = push(store, content(1, CHUNK))
    diff = _DIFF(version.version_id, CHUNK, version.chunk_size, [_PATCH(0, blake3(bytes(CHUNK)).digest(), data)])
    assert get(store, store.revise(version.file_id, diff, user_id=USER)) == bytes(CHUNK)
