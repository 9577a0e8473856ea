"""Names and owners of files, and lists."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import FileNotFound, FileStorage, InvalidArgument, VersionNotFound
from tests.storage.helpers import USER, open_store, push

GOOD = [
    "a",
    " ",
    "/",
    "//",
    "/etc/passwd",
    "a/b/c",
    "...",
    ".hidden",
    "a..b",
    "数据/文件.txt",
    "📦👩‍👩‍👧",
    "line\nbreak",
    "tab\there",
    "\x01\x7f\u200e",
    "e\u0301",
    "\u00e9",
    "a" * 440,
    "a" * 441,
    "a" * 1024,
    "é" * 512,
    "\U0010ffff" * 256,
]
BAD = [
    "",
    "a\0b",
    "\0",
    ".",
    "..",
    "../a",
    "a/..",
    "a/../b",
    "./a",
    "a/.",
    "a" * 1025,
    "é" * 513,
    "\ud800",
    "x" * 65536,
]


@pytest.mark.parametrize("name", GOOD)
def test_good_names_are_kept_byte_for_byte(store: FileStorage, name: str) -> None:
    version = push(store, name.encode(), name)
    assert version.filename == name
    assert store.find(name, user_id=USER) == version
    assert [found.filename for found in store.list_files(user_id=USER)] == [name]
    assert push(store, b"second", name).parent_id == version.version_id


@pytest.mark.parametrize("name", BAD)
def test_bad_names_are_refused(store: FileStorage, name: str) -> None:
    for call in (lambda: push(store, b"x", name), lambda: store.find(name, user_id=USER)):
        _refused(call)
    assert store.stats().files == 0


@pytest.mark.parametrize("user", ["", "a\0b", "u" * 257, "é" * 129, "\udfff"])
def test_bad_users_are_refused(store: FileStorage, user: str) -> None:
    version = push(store, b"x")
    for call in (
        lambda: push(store, b"x", user=user),
        lambda: store.get(version.file_id, user_id=user),
        lambda: store.list_files(user_id=user),
        lambda: store.missing_chunks([], user_id=user),
    ):
        _refused(call)


def _refused(call: Callable[[], object]) -> None:
    with pytest.raises(InvalidArgument):
        call()


@pytest.mark.parametrize("argument", [5, b"bytes", None])
def test_names_must_be_text(store: FileStorage, argument: Any) -> None:
    _refused(lambda: store.push(b"x", filename=argument, user_id=USER))
    _refused(lambda: store.push(b"x", filename="f", user_id=argument))


def test_names_are_not_normalised(store: FileStorage) -> None:
    composed, decomposed = push(store, b"1", "\u00e9"), push(store, b"2", "e\u0301")
    assert composed.file_id != decomposed.file_id


def test_long_names_that_begin_alike_are_different_files(store: FileStorage) -> None:
    names = ["n" * 440, "n" * 441, "n" * 440 + "m", "n" * 1023 + "1", "n" * 1023 + "2"]
    versions = {name: push(store, name.encode(), name) for name in names}
    assert len({version.file_id for version in versions.values()}) == len(names)
    for name, version in versions.items():
        assert store.find(name, user_id=USER) == version
    store.delete(versions[names[3]].file_id, user_id=USER)
    assert store.find(names[3], user_id=USER) is None
    assert store.find(names[4], user_id=USER) == versions[names[4]]


@pytest.mark.parametrize("note", ["", "why", "注" * 1365])
def test_notes_and_times(store: FileStorage, note: str) -> None:
    version = store.push(b"x", filename="f", user_id=USER, note=note, time_ms=-5)
    assert (version.note, version.time_ms) == (note, -5)
    assert store.stat(version.file_id, user_id=USER) == version


def test_notes_and_times_out_of_bounds(store: FileStorage) -> None:
    _refused(lambda: store.push(b"x", filename="f", user_id=USER, note="n" * 4097))
    _refused(lambda: store.push(b"x", filename="f", user_id=USER, note="\ud800"))
    _refused(lambda: store.push(b"x", filename="f", user_id=USER, time_ms=1 << 63))
    _refused(lambda: store.push(b"x", filename="f", user_id=USER, chunk_size=1000))
    _refused(lambda: store.push(b"x", filename="f", user_id=USER, chunk_size=1 << 30))


def test_users_do_not_meet(store: FileStorage) -> None:
    hers, his = push(store, b"hers", user="ada"), push(store, b"his", user="bob")
    assert hers.file_id != his.file_id
    assert store.list_files(user_id="ada") == [hers]
    assert store.find("file", user_id="bob") == his
    assert store.find("file", user_id="eve") is None
    for call in (
        lambda: store.get(hers.file_id, user_id="bob"),
        lambda: store.open_file(hers.file_id, user_id="bob"),
        lambda: store.stat(hers.file_id, user_id="bob"),
        lambda: store.history(hers.file_id, user_id="bob"),
        lambda: store.chunk_ids(hers.file_id, user_id="bob"),
        lambda: store.diff(hers.file_id, b"", user_id="bob"),
        lambda: store.synchronize(hers.file_id, have_version_id=hers.version_id, user_id="bob"),
        lambda: store.delete(hers.file_id, user_id="bob"),
    ):
        with pytest.raises(FileNotFound):
            call()
    assert store.get(hers.file_id, user_id="ada") == b"hers"


@pytest.mark.parametrize("file_id", ["", "x", "00" * 16, "00" * 15, "0" * 31, "é" * 32, "00 " * 16, "0x" + "0" * 30])
def test_ids_that_name_nothing(store: FileStorage, file_id: str) -> None:
    push(store, b"x")
    with pytest.raises(FileNotFound):
        store.get(file_id, user_id=USER)
    with pytest.raises(FileNotFound):
        store.delete(file_id, user_id=USER)


@pytest.mark.parametrize("version_id", ["", "x", "00" * 32, "00" * 31])
def test_versions_that_are_none(store: FileStorage, version_id: str) -> None:
    version = push(store, b"x")
    other = push(store, b"y", "other")
    for wrong in (version_id, other.version_id):
        with pytest.raises(VersionNotFound):
            store.get(version.file_id, user_id=USER, version_id=wrong)
        with pytest.raises(VersionNotFound):
            store.history(version.file_id, user_id=USER, before=wrong)


# -- lists -----------------------------------------------------------------------------------------

_NAMES = st.text(st.sampled_from("ab/é数📦n"), min_size=1, max_size=6).filter(lambda name: name not in (".", ".."))
_LONG = st.builds(lambda tail: "n" * 440 + tail, st.text(st.sampled_from("ab"), max_size=3))


def _order(name: str) -> tuple[bytes, bool]:
    """Return a sort key: names sort by their first 440 bytes, longer ones last, in any order among them."""
    encoded = name.encode()
    return encoded[:440], len(encoded) > 440


@pytest.fixture(scope="module")
def many(module_scratch: Path) -> Any:
    """A store to which each example adds a user."""
    with open_store(module_scratch / "store", k=1, n=1) as opened:
        yield opened, iter(range(10**6))


@given(
    names=st.sets(st.one_of(_NAMES, _LONG), max_size=14),
    prefix=st.sampled_from(["", "a", "é", "n", "n" * 440, "n" * 441, "n" * 440 + "b", "zz"]),
    page=st.integers(1, 5),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_paging_gives_every_name_once_in_order(many: Any, names: set[str], prefix: str, page: int) -> None:
    store, users = many
    user = f"user {next(users)}"
    for name in names:
        push(store, b"", name, user)
    expected = [name for name in names if name.startswith(prefix)]
    whole = [version.filename for version in store.list_files(user_id=user, prefix=prefix)]
    assert sorted(whole) == sorted(expected)
    assert [_order(name) for name in whole] == sorted(_order(name) for name in expected)
    paged: list[str] = []
    while batch := store.list_files(user_id=user, prefix=prefix, after=paged[-1] if paged else None, limit=page):
        assert len(batch) <= page
        paged += [version.filename for version in batch]
        if len(batch) < page:
            break
    assert paged == whole


def test_after_a_name_that_is_not_there(store: FileStorage) -> None:
    for name in ("a", "b", "d"):
        push(store, b"", name)

    def after(name: str) -> list[str]:
        return [version.filename for version in store.list_files(user_id=USER, after=name)]

    assert after("c") == ["d"]
    assert after("a") == ["b", "d"]
    assert after("z") == []
    assert store.list_files(user_id=USER, limit=0) == []
    assert [version.filename for version in store.list_files(user_id=USER, prefix="b", after="a")] == ["b"]


def test_history_paging(store: FileStorage) -> None:
    versions = [push(store, b"%d" % number) for number in range(7)]
    newest_first = versions[::-1]
    file_id = versions[0].file_id
    assert store.history(file_id, user_id=USER) == newest_first
    assert store.history(file_id, user_id=USER, limit=0) == []
    paged = store.history(file_id, user_id=USER, limit=3)
    while len(paged) < 7:
        more = store.history(file_id, user_id=USER, limit=3, before=paged[-1].version_id)
        assert more
        paged += more
    assert paged == newest_first
    assert store.history(file_id, user_id=USER, before=versions[0].version_id) == []
    assert [version.parent_id for version in newest_first] == [*(v.version_id for v in newest_first[1:]), None]


def test_a_deleted_name_is_free_at_once(store: FileStorage) -> None:
    first = push(store, b"1")
    store.delete(first.file_id, user_id=USER)
    assert store.find("file", user_id=USER) is None
    assert store.list_files(user_id=USER) == []
    with pytest.raises(FileNotFound):
        store.get(first.file_id, user_id=USER, version_id=first.version_id)
    with pytest.raises(FileNotFound):
        store.delete(first.file_id, user_id=USER)
    second = push(store, b"1")
    assert second.file_id != first.file_id
    assert second.parent_id is None
