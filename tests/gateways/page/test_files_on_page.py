"""Files on the page: what is shown, what can be done, and by whom."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from html import unescape

import pytest

from storage.errors import FileNotFound
from taskworker.client import Client
from tests.functions.processes import FunctionPool
from tests.gateways.page.conftest import Person


def file_of(one: Person, name: str, content: bytes) -> tuple[str, str]:
    """Upload a file; its id, and its version's."""
    url = one.upload(name, content).json()["url"]
    file_id = re.search(r"id=(\w+)", url)[1]  # type: ignore[index]
    versions = re.findall(r'<code title="(\w+)">', one.see("/file", id=file_id, owner=one.name))
    return file_id, versions[0]


@pytest.fixture
def files(pool: FunctionPool, ann: Person) -> Client:
    """Ann's files by the client."""
    return Client(pool.address, token=ann.token)


def test_uploads_are_the_same_files_as_those_of_the_client(ann: Person, files: Client) -> None:
    content = bytes(range(256)) * 12_000  # more than one piece
    answer = ann.upload("photos/2026/a.bin", content)
    assert answer.json()["name"] == "photos/2026/a.bin"
    head = files.find("photos/2026/a.bin", user_id=ann.name)
    assert head is not None
    assert files.get(head.file_id, user_id=ann.name) == content
    got = ann.browser.get("/file/content", params={"owner": ann.name, "id": head.file_id})
    assert got.content == content
    assert got.headers["content-length"] == str(len(content))
    assert ann.upload("photos/2026/a.bin", content).json()["unchanged"]
    assert "photos/" in ann.see("/files")
    assert "a.bin" in ann.see("/files", prefix="photos/2026/")


def test_names_that_lead_elsewhere_are_not_stored(ann: Person) -> None:
    for name in ("", "/a", "a/", "../a", "a/../b", "./a", "a//b", ".", "a" * 2000, "a\0b"):
        answer = ann.upload(name, b"x")
        assert answer.status_code == 400
        assert answer.json()["problem"]
    assert "no files yet" in ann.see("/files")


HOSTILE = [
    "<script>alert(1)</script>",
    "a\"onmouseover='alert(1)'.txt",
    "invoice\u202egpj.exe",
    "{{ 7*7 }}",
    "&lt;b&gt;",
    "two\nlines",
    "\u2066hidden\u2069",
    "'; DROP TABLE--",
    "%2e%2e%2f",
    "?owner=root#x",
]


def test_hostile_names_are_text_and_nothing_else(ann: Person, files: Client) -> None:
    for name in HOSTILE:
        files.push(name.encode(), user_id=ann.name, filename=name, note=name)
    listing = ann.see("/files", prefix="") + ann.see("/files", prefix="<script>alert(1)</")
    for raw in ("<script>alert", "\u202e", "\u2066", 'a"onmouseover', "<b>", ">49<"):
        assert raw not in listing
    assert "U+202E" in listing
    assert "U+000A" in listing
    links = {unescape(one) for one in re.findall(r'href="(/file\?[^"]+)"', listing)}
    assert len(links) == len(HOSTILE)
    for link in links:
        page = re.sub(r'value="[^"<>]*"', "", ann.see(link))  # what forms send back is the name itself
        assert "<script>alert" not in page
        assert "\u202e" not in page
        content = unescape(re.search(r'href="(/file/content[^"]+)"', page)[1])  # type: ignore[index]
        got = ann.browser.get(content)
        assert got.content.decode() in HOSTILE
        assert "\n" not in got.headers["content-disposition"]
        assert got.headers["content-disposition"].isascii()


def test_a_file_is_restored_to_a_former_version(ann: Person, files: Client) -> None:
    file_id, first = file_of(ann, "notes.txt", b"one\ntwo\n")
    _, second = file_of(ann, "notes.txt", b"one\n<b>three</b>\n")
    page = ann.see("/file/compare", owner=ann.name, id=file_id, before=first, after=second)
    assert '<span class="removed">-two</span>' in page
    assert '<span class="added">+&lt;b&gt;three&lt;/b&gt;</span>' in page
    old = ann.browser.get("/file/content", params={"owner": ann.name, "id": file_id, "version": first})
    assert old.content == b"one\ntwo\n"
    page = ann.do("/file/restore", owner=ann.name, id=file_id, version=first, head=second)
    assert "has the content of" in page
    assert files.get(file_id, user_id=ann.name) == b"one\ntwo\n"
    # What was seen is not the newest version any more: nothing is overwritten that was not seen.
    page = ann.do("/file/restore", owner=ann.name, id=file_id, version=second, head=second, back=f"/file?id={file_id}")
    assert 'role="alert"' in page
    assert files.get(file_id, user_id=ann.name) == b"one\ntwo\n"


def test_long_and_binary_files_are_not_compared_by_lines(ann: Person) -> None:
    file_id, first = file_of(ann, "b", b"\xff\xfe")
    _, second = file_of(ann, "b", b"x" * 300_000)
    assert "compared line by line" in ann.see("/file/compare", id=file_id, before=first, after=second)


def test_files_are_shared_and_taken_back(ann: Person, person: Callable[..., Person], pool: FunctionPool) -> None:
    bob = person().sign_in()
    file_id, _ = file_of(ann, "shared/a.txt", b"for bob")
    there = {"owner": ann.name, "id": file_id}
    assert bob.browser.get("/file", params=there).status_code in (403, 404)
    assert bob.browser.get("/file/content", params=there).status_code in (403, 404)
    page = ann.do(
        "/share", owner=ann.name, name="shared/a.txt", file_id=file_id, with_user=bob.name, write="", expires="day"
    )
    assert bob.name in page
    assert "shared/a.txt" in bob.see("/files")
    assert bob.browser.get("/file/content", params=there).content == b"for bob"
    assert "Share it" not in bob.see("/file", **there)
    bob.do("/file/delete", owner=ann.name, id=file_id)
    bob.do("/share", owner=ann.name, name="shared/a.txt", with_user=bob.name, write="yes", expires="ever")
    assert bob.browser.get("/file/content", params=there).content == b"for bob"
    ann.do("/unshare", owner=ann.name, name="shared/a.txt", with_user=bob.name)
    assert bob.browser.get("/file/content", params=there).status_code in (403, 404)
    page = ann.do("/file/link", owner=ann.name, file_id=file_id, expires="hour")
    link = re.search(r"twl1\.[\w-]+", page)
    assert link is not None
    assert link[0] not in ann.see("/file", **there)
    with Client(pool.address, token=link[0]) as anybody:
        assert anybody.get(file_id, user_id=ann.name) == b"for bob"


def test_directories_are_shared_whole(ann: Person, person: Callable[..., Person]) -> None:
    bob = person().sign_in()
    ann.upload("all/1.txt", b"1")
    ann.upload("all/of/2.txt", b"2")
    ann.do("/share", owner=ann.name, name="all/", with_user=bob.name, write="yes", expires="ever")
    assert "2.txt" in bob.see("/files", owner=ann.name, prefix="all/of/")
    assert bob.browser.get("/files", params={"owner": ann.name}).status_code in (403, 404)
    assert bob.upload("all/3.txt", b"3", owner=ann.name).status_code == 200
    assert bob.upload("other/3.txt", b"3", owner=ann.name).status_code in (403, 404)


def test_a_file_is_deleted(ann: Person, files: Client) -> None:
    file_id, _ = file_of(ann, "old/gone.txt", b"x")
    assert "are deleted" in ann.do("/file/delete", owner=ann.name, id=file_id)
    with pytest.raises(FileNotFound):
        files.get(file_id, user_id=ann.name)


def test_a_token_that_only_reads_changes_nothing_here_either(ann: Person, person: Callable[..., Person]) -> None:
    reader = person(scopes=["files:read"]).sign_in()
    page = reader.see("/files")
    assert 'type="file"' not in page
    assert reader.upload("a", b"x").status_code == 403
    page = reader.do("/share", owner=reader.name, name="a", with_user=ann.name, expires="day", back="/files")
    assert 'role="alert"' in page


def test_others_do_not_see_the_pool(ann: Person, person: Callable[..., Person], olga: Person) -> None:
    assert ann.browser.get("/").headers["location"] == "/files"
    for path in ("/worker?id=w0",):
        assert ann.browser.get(path).status_code == 403
    for path in ("/worker/drain", "/worker/keep", "/worker/forget"):
        assert 'role="alert"' in ann.do(path, id="w0", back="/files")
    auditor = person("auditor").sign_in()
    assert "survive" in auditor.see("/")
    assert "Drain" not in auditor.see("/worker", id="w0")
    assert 'role="alert"' in auditor.do("/worker/drain", id="w0", back="/worker?id=w0")
    page = olga.see("/")
    assert "w0" in page
    assert "Drain" in olga.see("/worker", id="w0")
    assert olga.browser.get("/worker?id=nobody").status_code == 400


def test_operators_see_files_of_others(ann: Person, olga: Person) -> None:
    ann.upload("ann.txt", b"x")
    assert "ann.txt" in olga.see("/files", owner=ann.name)


def test_open_windows_get_what_changes(ann: Person) -> None:
    headers = {"accept": "text/event-stream"}
    with ann.browser.stream("GET", "/files", headers=headers) as events:
        assert events.headers["content-type"].startswith("text/event-stream")
        seen = ""
        for line in events.iter_lines():
            seen += line
            if "no files yet" in seen and "new.txt" not in seen:
                assert ann.upload("new.txt", b"x").status_code == 200
                seen = ""
            if "new.txt" in seen:
                break


def test_windows_of_one_session_are_bounded_and_end_with_it(ann: Person) -> None:
    headers = {"accept": "text/event-stream"}
    with contextlib.ExitStack() as windows:
        streams = [windows.enter_context(ann.browser.stream("GET", "/files", headers=headers)) for _ in range(6)]
        lines = [stream.iter_lines() for stream in streams]
        for one in lines:
            next(one)
        assert ann.browser.get("/files", headers=headers).status_code == 204
        ann.send("/sign-out")
        for one in lines:
            assert "event: ended" in list(one)
