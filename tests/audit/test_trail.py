"""The audit trail: what it keeps, and that nobody changes it unseen."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from storage.errors import StoreFull
from taskworker.audit.files import Verification, files_in
from taskworker.audit.records import Entry, Record
from taskworker.audit.repeats import WINDOW_S, Repeats
from taskworker.audit.trail import BYTES_MIN, AuditTrail
from tests.auth.documents import Clock, Documents

ENTRY = Entry("ann", "t1", "AuthService.AddUser", "user=bob", "ipv4:127.0.0.1:5", "OK")


def _trail(directory: Path, documents: Documents, *, bytes_max: int = BYTES_MIN) -> AuditTrail:
    return AuditTrail(directory, documents, bytes_max=bytes_max, now_ms=Clock())


def _written(directory: Path, documents: Documents, count: int, *, bytes_max: int = BYTES_MIN) -> None:
    trail = _trail(directory, documents, bytes_max=bytes_max)
    threads = [threading.Thread(target=trail.add, args=(ENTRY._replace(on=f"user=u{n}"),)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    trail.close()


def _checked(directory: Path, documents: Documents) -> Verification:
    trail = _trail(directory, documents)
    try:
        return trail.verify()
    finally:
        trail.close()


def _records(trail: AuditTrail) -> list[Record]:
    return [one for one in trail.read() if one is not None]


def test_records_are_durable_once_added_and_go_on_after_a_restart(tmp_path: Path) -> None:
    documents = Documents()
    trail = _trail(tmp_path / "audit", documents)
    trail.add(ENTRY)
    assert (
        json.loads(files_in(tmp_path / "audit")[0].read_bytes().splitlines()[1].partition(b" ")[2])["on"] == "user=bob"
    )
    trail.close()
    trail = _trail(tmp_path / "audit", documents)
    trail.add(ENTRY._replace(who="bob"))
    assert [(one.n, one.who, one.count) for one in _records(trail)] == [(1, "ann", 1), (2, "bob", 1)]
    assert trail.verify() == Verification(2, 1, 2, [])
    trail.close()
    assert stat.S_IMODE((tmp_path / "audit").stat().st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in (tmp_path / "audit").iterdir())


def test_the_chain_is_what_the_documentation_says(tmp_path: Path) -> None:
    _written(tmp_path, Documents(), 3)
    (head, *lines) = files_in(tmp_path)[0].read_bytes().splitlines()
    digest = bytes.fromhex(head.removeprefix(b"after ").decode())
    for line in lines:
        told, _, body = line.partition(b" ")
        digest = sha256(digest + body).digest()
        assert told.decode() == digest.hex()


def _cut(lines: list[bytes]) -> list[bytes]:
    return lines[:-1]


def _cut_all_but_one(lines: list[bytes]) -> list[bytes]:
    return lines[:2]


def _drop_one(lines: list[bytes]) -> list[bytes]:
    return [*lines[:3], *lines[4:]]


def _swap(lines: list[bytes]) -> list[bytes]:
    return [*lines[:2], lines[3], lines[2], *lines[4:]]


def _edit(lines: list[bytes]) -> list[bytes]:
    return [line.replace(b"user=u", b"user=x") if at == 3 else line for at, line in enumerate(lines)]


def _edit_the_last(lines: list[bytes]) -> list[bytes]:
    return [*lines[:-1], lines[-1].replace(b"ann", b"bob")]


def _rewrite(lines: list[bytes]) -> list[bytes]:
    """Change the last record, and make its hash right."""
    body = lines[-1].partition(b" ")[2].replace(b"ann", b"bob").rstrip(b"\n")
    before = bytes.fromhex(lines[-2].partition(b" ")[0].decode())
    return [*lines[:-1], sha256(before + body).hexdigest().encode() + b" " + body + b"\n"]


def _tear(lines: list[bytes]) -> list[bytes]:
    return [*lines[:-1], lines[-1][:20]]


def _nonsense(lines: list[bytes]) -> list[bytes]:
    return [*lines[:3], b"\xff\xfe nonsense\n", *lines[3:]]


def _behead(lines: list[bytes]) -> list[bytes]:
    return lines[1:]


@pytest.mark.parametrize(
    "change",
    [_cut, _cut_all_but_one, _drop_one, _swap, _edit, _edit_the_last, _rewrite, _tear, _nonsense, _behead],
)
@pytest.mark.parametrize("is_running", [True, False])
def test_what_is_changed_is_found(
    tmp_path: Path, change: Callable[[list[bytes]], list[bytes]], is_running: bool
) -> None:
    documents = Documents()
    _written(tmp_path, documents, 6)
    (path,) = files_in(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    if is_running:
        trail = _trail(tmp_path, documents)
        path.write_bytes(b"".join(change(lines)))
        found = trail.verify()
        trail.close()
    else:
        path.write_bytes(b"".join(change(lines)))
        found = _checked(tmp_path, documents)
    assert found.problems
    assert _checked(tmp_path, documents).problems  # also later, after the trail went on


def test_a_missing_file_is_found(tmp_path: Path) -> None:
    documents = Documents()
    _written(tmp_path, documents, 3)
    files_in(tmp_path)[0].unlink()
    assert _checked(tmp_path, documents).problems


def test_a_line_that_a_crash_left_half_written_is_dropped(tmp_path: Path) -> None:
    documents = Documents()
    _written(tmp_path, documents, 3)
    with files_in(tmp_path)[0].open("ab") as file:
        file.write(b"0123")
    assert _checked(tmp_path, documents).problems == []
    _written(tmp_path, documents, 1)
    assert _checked(tmp_path, documents) == Verification(4, 1, 4, [])


def test_records_that_a_crash_kept_from_the_catalog_are_kept(tmp_path: Path) -> None:
    documents = Documents()
    _written(tmp_path, documents, 2)
    before = dict(documents.kept)
    _written(tmp_path, documents, 2)
    documents.kept = before
    assert _checked(tmp_path, documents) == Verification(4, 1, 4, [])


def test_the_oldest_records_are_removed_and_the_rest_is_sound(tmp_path: Path) -> None:
    documents = Documents()
    trail = _trail(tmp_path, documents)
    long = ENTRY._replace(on="x" * 500)
    round_number = 0
    while not files_in(tmp_path) or files_in(tmp_path)[0].stem.endswith("0001"):
        round_number += 1
        for number in range(250):  # known callers, each of which has a record of its own
            trail.count(long._replace(who=f"u{round_number}-{number}"))
        trail.add(long)
        trail._repeats = Repeats()
    found = trail.verify()
    assert found.problems == []
    assert found.first > 1
    assert found.records == found.last - found.first + 1
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2 * BYTES_MIN
    assert [one.n for one in _records(trail)] == list(range(found.first, found.last + 1))
    trail.close()
    files_in(tmp_path)[0].unlink()
    assert _checked(tmp_path, documents).problems


@pytest.mark.parametrize("error", [StoreFull("no space"), RuntimeError("of no kind that is expected")])
def test_a_write_that_fails_loses_nothing_and_delays_nobody_for_ever(tmp_path: Path, error: Exception) -> None:
    def failing(_name: str, _raw: bytes) -> None:
        raise error

    documents = Documents()
    trail = _trail(tmp_path, documents)
    save, documents.save_document = documents.save_document, failing  # type: ignore[method-assign,assignment]
    trail.add(ENTRY)
    documents.save_document = save  # type: ignore[method-assign]
    trail.add(ENTRY._replace(who="bob"))
    trail.close()
    trail = _trail(tmp_path, documents)
    assert [one.who for one in _records(trail)] == ["ann", "bob"]
    assert trail.verify().problems == []
    trail.close()


def test_following_shows_what_comes(tmp_path: Path) -> None:
    trail = _trail(tmp_path, Documents())
    trail.add(ENTRY)
    records = trail.read(follow=True)
    assert [next(records), next(records)] == [_records(trail)[0], None]
    trail.add(ENTRY._replace(who="bob"))
    assert next(one.who for one in records if one is not None) == "bob"
    trail.close()
    assert list(records) in ([], [None])


def test_only_what_is_new_enough_is_shown(tmp_path: Path) -> None:
    clock = Clock()
    trail = AuditTrail(tmp_path, Documents(), now_ms=clock)
    trail.add(ENTRY)
    clock.now_ms += 1_000
    trail.add(ENTRY)
    assert [one.n for one in trail.read(since_ms=clock.now_ms) if one is not None] == [2]
    trail.close()


def test_refusals_become_one_record_and_a_count() -> None:
    repeats = Repeats()
    refused = ENTRY._replace(outcome="PERMISSION_DENIED")
    noted = [repeats.note(refused._replace(peer=f"ipv4:127.0.0.1:{port}"), 0.0) for port in range(1000)]
    assert [one for one in noted if one is not None] == [refused._replace(peer="ipv4:127.0.0.1")]
    assert repeats.due_s(0.0) == WINDOW_S
    assert repeats.take() == [(refused._replace(peer="ipv4:127.0.0.1"), 999)]
    assert repeats.due_s(1.0) is None


def test_one_user_cannot_hide_the_refusals_of_others() -> None:
    repeats = Repeats()
    refused = ENTRY._replace(peer="unix:", outcome="PERMISSION_DENIED")
    flood = [refused._replace(who="eve", on=f"name {n}") for n in range(9999)]
    recorded = [one for entry in flood if (one := repeats.note(entry, 0.0)) is not None]
    assert 100 < len(recorded) <= 130
    assert {one.who for one in recorded} == {"eve"}
    others = [refused._replace(who=f"u{n}") for n in range(50)]
    assert [repeats.note(one, 0.0) for one in others] == others
    assert sum(count for entry, count in repeats.take() if entry.who == "eve") == 9999 - len(recorded)
    assert repeats.note(flood[0], 0.0) == flood[0], "the next window is empty"


def test_strangers_cannot_fill_the_trail_nor_hide_others() -> None:
    repeats = Repeats()
    strangers = [
        Entry("", "", f"S.C{n % 70}", os.urandom(8).hex(), f"ipv6:[::{n:x}]:1", "UNAUTHENTICATED") for n in range(9999)
    ]
    assert sum(repeats.note(one, 0.0) is not None for one in strangers) <= 65
    known = [ENTRY._replace(who=f"u{n}", outcome="PERMISSION_DENIED") for n in range(200)]
    assert all(repeats.note(one, 0.0) is not None for one in known)
    many = [ENTRY._replace(who=f"v{n}", outcome="PERMISSION_DENIED") for n in range(9999)]
    assert sum(repeats.note(one, 0.0) is not None for one in many) <= 57
    assert sum(count for _, count in repeats.take()) > 19_000
