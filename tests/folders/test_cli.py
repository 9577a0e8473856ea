"""Folders on the command line, in real processes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cli.conftest import Cli, cli, embedded, server  # noqa: F401 - fixtures
from tests.folders.trees import described, make


def test_a_directory_is_pushed_and_got(cli: Cli) -> None:  # noqa: F811
    source = cli.directory / "photos"
    make(
        source, {b"a": ("file", b"1", 0o600, 5), b"in": {b"b": ("link", b"../a", 6), b"c.tmp": ("file", b"", 0o644, 7)}}
    )
    said = cli.text("push", "photos", "--exclude", "*.tmp")
    assert "photos/: 1 file, 1 B" in said
    assert "1 sent (1 B), 0 unchanged" in said
    assert cli.json("push", "photos", "--exclude", "*.tmp")["stored"] == 0
    (source / "in/c.tmp").unlink()
    os.utime(source / "in", ns=(8, 8))
    cli.run("push", "photos", "--name", "archive/photos")
    cli.run("get", "archive/photos/", "-o", "back")
    assert described(cli.directory / "back") == described(source)
    assert "already here" in cli.error("get", "photos/", code=1)


def test_files_with_problems_are_told_and_the_rest_is_stored(embedded: Cli) -> None:  # noqa: F811
    make(embedded.directory / "d", {b"bad\xff": ("file", b"", 0o644, 5), b"good": ("file", b"", 0o644, 5)})
    process = embedded.run("push", "d", code=1)
    assert process.stderr.decode().splitlines() == [
        r"taskworker: d/bad\xff: its name is not UTF-8, as names in the store must be; rename it",
        "taskworker: 1 file could not be stored as it is; all others were",
    ]
    assert embedded.names() == ["d/", "d/good"]


def test_a_directory_is_synced(cli: Cli) -> None:  # noqa: F811
    make(cli.directory / "one", {b"a": ("file", b"1", 0o600, 5), b"in": {b"b": ("link", b"../a", 6)}})
    cli.write("first", b"")
    cli.run("push", "first")  # a dry run makes no store
    assert cli.text("sync", "one", "notes/", "--dry-run").splitlines() == [
        "send: a",
        "send: in",
        "send: in/b",
        "notes/: 3 changes to make",
    ]
    assert cli.json("sync", "one", "notes/")["sent"] == 2
    assert "2 fetched (1 B), 0 deleted here" in cli.text("sync", "two", "notes/")
    (cli.directory / "one" / "a").write_bytes(b"of one")
    (cli.directory / "two" / "a").write_bytes(b"of two")
    cli.run("sync", "one", "notes/")
    said = cli.text("sync", "two", "notes/").splitlines()
    assert said[0].startswith("kept both: a (conflict, ")
    assert (cli.directory / "two" / "a").read_bytes() == b"of one"
    assert (cli.directory / "two" / said[0].removeprefix("kept both: ")).read_bytes() == b"of two"
    (cli.directory / "one" / os.fsdecode(b"bad\xff")).write_bytes(b"")
    assert b"not UTF-8" in cli.run("sync", "one", "notes/", code=1).stderr
    assert "for files" in cli.error("sync", "one", "--prefer", "local", code=2)
    assert "not a directory" in cli.error("sync", "one/a", "--dry-run", code=2)


def test_the_store_itself_is_not_pushed_into_itself(tmp_path: Path) -> None:
    here = Cli(tmp_path, {"TASKWORKER_STORE": str(tmp_path / "store")}, "ann")
    (tmp_path / "file").write_bytes(b"x")
    assert here.json("push", ".", "--name", "all")["files"] == 1


def test_wrong_uses_are_refused(embedded: Cli) -> None:  # noqa: F811
    (embedded.directory / "d").mkdir()
    embedded.write("f", b"")
    assert "for a directory" in embedded.error("push", "f", "--exclude", "x", code=2)
    assert "nothing else in the same call" in embedded.error("push", "d", "f", code=2)
    embedded.run("push", "d")
    assert "name it with -o" in embedded.error("get", "d/", "-o", "-", code=2)
    assert "single file" in embedded.error("get", "d/", "--range", "0-1", code=2)


def test_snapshots_are_taken_listed_compared_restored_and_forgotten(
    embedded: Cli,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = embedded.directory / "photos"
    make(source, {b"a": ("file", b"1", 0o600, 5), b"in": {b"b\xff": ("link", b"../a", 6)}})
    first = embedded.json("folder", "snapshot", "photos", "--note", "before")
    before = described(source)
    (source / "new").write_bytes(b"2")
    said = embedded.text("folder", "snapshot", "photos")
    assert "2 files, 2 B" in said
    assert "1 read, 1 unchanged" in said
    (cache,) = (tmp_path / "cache/taskworker/folders").iterdir()
    assert cache.stat().st_mode & 0o777 == 0o600
    assert "0 read, 2 unchanged" in embedded.text("folder", "snapshot", "photos")
    assert embedded.text("folder", "list") == "photos\n"
    assert [each["note"] for each in embedded.json("folder", "snapshots", "photos")] == ["", "", "before"]
    short = first["snapshot"]["id"][:12]
    assert embedded.text("folder", "diff", "photos", short) == "+  new\n"
    assert [each["path"] for each in embedded.json("folder", "ls", "photos")] == ["a", "in", "in/b\\xff", "new"]
    embedded.run("folder", "restore", "photos", short, "-o", "back")
    assert described(embedded.directory / "back") == before
    embedded.run("folder", "restore", "photos", "latest", "in", "-o", "part")
    assert described(embedded.directory / "part") == described(source / "in")
    assert "2 snapshots would be forgotten" in embedded.text(
        "folder", "forget", "photos", "--keep-last", "1", "--dry-run"
    )
    assert "1 snapshot forgotten, 2 kept" in embedded.text("folder", "forget", "photos", short)
    assert len(embedded.json("folder", "snapshots", "photos")) == 2
    assert "no snapshot" in embedded.error("folder", "restore", "photos", short, "-o", "x", code=3)
    assert "no snapshots of a folder" in embedded.error("folder", "snapshots", "other", code=3)
    assert "--keep-last" in embedded.error("folder", "forget", "photos", code=2)
