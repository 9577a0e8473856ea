"""Pages of files and versions, compared with a plain model; and pushes with conditions."""

from __future__ import annotations

import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import (
    ConflictError,
    FileNotFound,
    FilePage,
    FileStorage,
    InvalidArgument,
    Version,
    VersionNotFound,
    listing,
)
from storage.catalog import table_catalog
from tests.storage.helpers import CHUNK, content, open_store
from tests.storage.test_encryption import KEY, open_sealed

ADA = "ada"
HIDDEN = "deleted"
LONG = "l/" * 219  # 438 bytes: with two more, what the catalog's keys have of a name
NAMES = [
    "a", "a/", "a/b", "a/b/c", "a/b/d", "a/c", "a0", "b/x", "b/y", "b/\U0010ffff", "c", "c/hidden", "d/hidden/1",
    "d/hidden/2", "d/shown", "e/hidden", f"{LONG}xx/1", f"{LONG}xx/2", f"{LONG}xy", "z//q", "z/q", "ä/ö",
]  # fmt: skip


@pytest.fixture(scope="module", params=[None, KEY], ids=["plain", "encrypted"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    with open_sealed(tmp_path_factory.mktemp("listing") / "store", request.param) as opened:
        for name in NAMES:
            for number in range(1 + len(name) % 3):
                opened.push(b"%d" % number, filename=name, user_id=ADA)
            if "hidden" in name:
                opened.push(b"", filename=name, user_id=ADA, attributes={HIDDEN: b"1"})
        opened.push(b"x", filename="a/b", user_id="bob")
        yield opened


def expected(prefix: str, delimiter: str, *, hidden: bool) -> list[str]:
    found: dict[str, None] = {}
    for name in sorted(NAMES, key=str.encode):
        if name.startswith(prefix) and not (hidden and "hidden" in name):
            at = name.find(delimiter, len(prefix)) if delimiter else -1
            found[name if at < 0 else name[: at + len(delimiter)]] = None
    return list(found)


@given(
    prefix=st.sampled_from(["", "a", "a/", "a/b", "b/", "d/", "d/hidden/", LONG, f"{LONG}xx/", "nothing", "z/"]),
    delimiter=st.sampled_from(["", "/", "b", "hidden", "//"]),
    limit=st.integers(1, 30),
    hidden=st.booleans(),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_pages_put_together_are_what_there_is(
    store: FileStorage, prefix: str, delimiter: str, limit: int, hidden: bool
) -> None:
    seen: list[str] = []
    after: str | None = None
    while True:
        page = store.list_page(
            user_id=ADA, prefix=prefix, delimiter=delimiter, after=after, limit=limit, hidden=HIDDEN if hidden else ""
        )
        assert len(page.files) + len(page.prefixes) <= limit
        seen += [*(one.filename for one in page.files), *page.prefixes]
        after = page.next_after
        if after is None:
            break
        assert page.files or page.prefixes
    assert sorted(seen, key=str.encode) == expected(prefix, delimiter, hidden=hidden)


@given(
    prefix=st.sampled_from(["", "a", "a/", "b/", "d/"]), delimiter=st.sampled_from(["", "/"]), limit=st.integers(1, 12)
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_pages_of_versions_put_together_are_all_histories(
    store: FileStorage, prefix: str, delimiter: str, limit: int
) -> None:
    versions: list[Version] = []
    prefixes: list[str] = []
    latest: set[str] = set()
    after: str | None = None
    before: str | None = None
    while True:
        page = store.list_versions(
            user_id=ADA, prefix=prefix, delimiter=delimiter, after=after, before=before, limit=limit
        )
        assert 0 < len(page.versions) + len(page.prefixes) <= limit
        versions += page.versions
        prefixes += page.prefixes
        latest |= page.latest
        after, before = page.next_after, page.next_before
        if after is None:
            break
    listed = expected(prefix, delimiter, hidden=False)
    heads = [
        one
        for one in store.list_files(user_id=ADA, prefix=prefix)
        if not delimiter or delimiter not in one.filename[len(prefix) :]
    ]
    histories = [store.history(one.file_id, user_id=ADA) for one in heads]
    assert versions == [one for history in histories for one in history]
    assert latest == {one.version_id for one in heads}
    names = {one.filename for one in heads}
    assert prefixes == [one for one in listed if one not in names]


def test_a_page_begins_after_any_name(store: FileStorage) -> None:
    def page(after: str, delimiter: str = "/") -> list[str]:
        found = store.list_page(user_id=ADA, delimiter=delimiter, after=after, limit=2)
        return sorted([one.filename for one in found.files] + found.prefixes, key=str.encode)

    assert page("a") == ["a/", "a0"]
    assert page("a/") == ["a0", "b/"]  # a common beginning: all below it is passed
    assert page("a/b") == ["a/", "a0"]  # another name: what comes after it still counts
    assert page("a/", delimiter="") == ["a/b", "a/b/c"]
    assert page("nothing there") == ["z/", "ä/"]
    assert store.list_page(user_id=ADA, after="\U0010ffff").next_after is None
    assert store.list_page(user_id=ADA, limit=0).next_after is None


def test_versions_after_a_version(store: FileStorage) -> None:
    head = store.find("a/b/c", user_id=ADA)
    assert head is not None
    second = store.history(head.file_id, user_id=ADA)[1]
    page = store.list_versions(user_id=ADA, after="a/b/c", before=head.version_id, limit=1)
    assert page.versions == [second]
    assert page.latest == frozenset()
    with pytest.raises(VersionNotFound):
        store.list_versions(user_id=ADA, after="a/b/c", before="0" * 64)
    with pytest.raises(InvalidArgument, match="give both"):
        store.list_versions(user_id=ADA, before=head.version_id)
    other = store.list_versions(user_id=ADA, prefix="b/", after="a/b/c", before=head.version_id, limit=1)
    assert other.versions[0].filename == "b/x"  # of the prefix, whatever else was asked for
    gone = store.list_versions(user_id=ADA, after="a/bb", before=head.version_id, limit=1)
    assert gone.versions[0].filename == "a/c"


def test_a_listing_of_many_names_reads_few_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is passed is skipped, and a page that finds little says where to go on."""
    read = 0
    names_before = table_catalog.TableCatalog.names

    def names(self: Any, *arguments: Any) -> Any:
        nonlocal read
        found = names_before(self, *arguments)
        read += len(found)
        return found

    with open_store(tmp_path / "store", k=1, n=1) as store:
        files = [(f"{top}/{number:04}", b"x") for top in range(4) for number in range(1500)]
        assert all(one.error is None for one in store.push_many(files, user_id=ADA, attributes={HIDDEN: b""}))
        monkeypatch.setattr(table_catalog.TableCatalog, "names", names)
        assert store.list_page(user_id=ADA, delimiter="/").prefixes == ["0/", "1/", "2/", "3/"]
        assert read < 100
        read = 0
        assert len(store.list_page(user_id=ADA, prefix="2/", after="2/0700", limit=10).files) == 10
        assert read < 50
        monkeypatch.setattr(listing, "_EXAMINED_MAX", 1000)
        pages: list[FilePage] = []
        after: str | None = None
        while not pages or after is not None:
            pages.append(store.list_page(user_id=ADA, delimiter="/", after=after, hidden=HIDDEN))
            after = pages[-1].next_after
        assert [(one.files, one.prefixes) for one in pages] == [([], [])] * 6
        reached = [one.next_after or "" for one in pages[:-1]]
        assert all(first < second for first, second in pairwise(reached))


# -- conditions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 10, 3 * CHUNK])
def test_a_push_that_must_not_replace_anything(root: Path, size: int) -> None:
    data = content(1, size)
    with open_store(root) as store:
        first = store.push(data, filename="a", user_id=ADA, if_absent=True)
        for again in (data, content(2, 3 * CHUNK)):
            with pytest.raises(ConflictError) as caught:
                store.push(again, filename="a", user_id=ADA, if_absent=True)
            assert (caught.value.head, caught.value.base) == (first.version_id, None)
        second = store.push(b"second", filename="a", user_id=ADA, if_head=first.version_id)
        with pytest.raises(ConflictError) as caught:
            store.push(b"third", filename="a", user_id=ADA, if_head=first.version_id)
        assert (caught.value.head, caught.value.base) == (second.version_id, first.version_id)
        with pytest.raises(FileNotFound, match="should be the head"):
            store.push(b"x", filename="b", user_id=ADA, if_head=second.version_id)
        store.delete(first.file_id, user_id=ADA)
        assert store.push(b"x", filename="a", user_id=ADA, if_absent=True).parent_id is None
        for wrong in ({"if_absent": True, "if_head": first.version_id}, {"if_head": "abc"}, {"if_head": "é"}):
            with pytest.raises(InvalidArgument):
                store.push(b"x", filename="a", user_id=ADA, **wrong)


def test_the_condition_is_decided_at_the_commit(root: Path) -> None:
    with open_store(root) as store:
        with store.upload(filename="a", user_id=ADA, if_absent=True) as upload:
            upload.write(content(3, 2 * CHUNK))
            other = store.push(b"sooner", filename="a", user_id=ADA)
            with pytest.raises(ConflictError):
                upload.commit()
        assert store.history(other.file_id, user_id=ADA) == [other]


def test_of_many_at_once_one_wins(root: Path) -> None:
    with open_store(root) as store:
        base = store.push(b"base", filename="counter", user_id=ADA)
        won: list[Version] = []
        lost: list[str] = []
        begin = threading.Barrier(8)

        def race(number: int, **condition: Any) -> None:
            filename = "counter" if "if_head" in condition else "new"
            begin.wait()
            try:
                won.append(store.push(b"%d" % number, filename=filename, user_id=ADA, **condition))
            except ConflictError as error:
                lost.append(error.head)

        for condition in ({"if_head": base.version_id}, {"if_absent": True}):
            threads = [threading.Thread(target=race, args=(number,), kwargs=condition) for number in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert [one.version_id for one in won] == [lost[0]]
            assert set(lost) == {won[0].version_id}
            assert len(lost) == 7
            won.clear()
            lost.clear()
