"""sync: a local copy and its stored file, from either side."""

from __future__ import annotations

import os
import random
from pathlib import Path

from storage import FileStorage
from tests.cli.conftest import Cli

MIB = 1 << 20


def sync(cli: Cli, *arguments: str, code: int = 0) -> str:
    return str(cli.json("sync", *arguments, code=code)["outcome"])


def stored(cli: Cli, name: str) -> bytes:
    return cli.run("get", name, "-o", "-").stdout


def test_changes_go_both_ways(cli: Cli) -> None:
    data = bytearray(random.Random(1).randbytes(5 * MIB + 9))
    cli.write("n", data)
    assert sync(cli, "n") == "sent"
    assert sync(cli, "n") == "in_step"
    data[2 * MIB] ^= 1
    cli.write("n", data)
    assert sync(cli, "n") == "sent"
    assert stored(cli, "n") == data
    data[4 * MIB :] = b"shorter"
    cli.run("revise", "n", "-", stdin=bytes(data))
    assert sync(cli, "n") == "fetched"
    assert cli.read("n") == data
    data += random.Random(2).randbytes(3 * MIB)
    cli.run("revise", "n", "-", stdin=bytes(data))
    assert sync(cli, "n") == "fetched"
    assert cli.read("n") == data
    assert sync(cli, "n") == "in_step"


def test_a_change_that_leaves_size_and_time_is_seen(cli: Cli) -> None:
    path = cli.write("n", b"one")
    sync(cli, "n")
    times = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert sync(cli, "n") == "sent"
    assert stored(cli, "n") == b"two"


def test_a_file_only_touched_is_in_step(cli: Cli) -> None:
    path = cli.write("n", b"one")
    sync(cli, "n")
    os.utime(path, (1, 1))
    assert sync(cli, "n") == "in_step"
    cli.run("revise", "n", "-", stdin=b"two")
    os.utime(path, (2, 2))
    assert sync(cli, "n") == "fetched"


def conflict(cli: Cli) -> None:
    cli.write("n", b"base")
    sync(cli, "n")
    cli.write("n", b"local")
    cli.run("revise", "n", "-", stdin=b"theirs")


def test_changes_on_both_sides_conflict(cli: Cli) -> None:
    conflict(cli)
    said = cli.error("sync", "n", code=4)
    assert "--prefer" in said
    assert (cli.read("n"), stored(cli, "n")) == (b"local", b"theirs")


def test_the_same_change_on_both_sides_does_not(cli: Cli) -> None:
    conflict(cli)
    cli.write("n", b"theirs")
    assert sync(cli, "n") == "in_step"
    cli.write("n", b"next")
    assert sync(cli, "n") == "sent"


def test_prefer_local_keeps_the_stored_loser_in_the_history(cli: Cli) -> None:
    conflict(cli)
    assert sync(cli, "n", "--prefer", "local") == "sent"
    assert stored(cli, "n") == b"local"
    second = cli.json("log", "n")[1]["version_id"]
    assert cli.run("get", "n", "--version", second, "-o", "-").stdout == b"theirs"


def test_prefer_stored_keeps_the_local_loser_beside(cli: Cli) -> None:
    conflict(cli)
    assert sync(cli, "n", "--prefer", "stored") == "fetched"
    assert cli.read("n") == b"theirs"
    assert cli.read("n.local-1") == b"local"
    assert sync(cli, "n") == "in_step"


def test_the_first_time(cli: Cli) -> None:
    cli.run("push", "-", "--name", "there", stdin=b"x")
    assert sync(cli, "there") == "fetched"
    assert cli.read("there") == b"x"
    assert sync(cli, "new/copy", "there") == "fetched"
    cli.write("same", b"x")
    assert sync(cli, "same", "there") == "in_step"
    cli.write("other", b"y")
    cli.error("sync", "other", "there", code=4)
    cli.error("sync", "nothing", code=3)
    cli.error("sync", "other", "nothing", code=3)


def test_a_lost_copy_is_fetched_again(cli: Cli) -> None:
    path = cli.write("n", b"one")
    sync(cli, "n")
    path.unlink()
    assert sync(cli, "n") == "fetched"
    assert cli.read("n") == b"one"


def test_a_deleted_file_is_not_stored_again_by_itself(cli: Cli) -> None:
    cli.write("n", b"one")
    sync(cli, "n")
    cli.run("rm", "n")
    assert ".taskworker-sync/n" in cli.error("sync", "n", code=3)
    (cli.directory / ".taskworker-sync" / "n").unlink()
    assert sync(cli, "n") == "sent"


def test_ties(cli: Cli) -> None:
    cli.write("n", b"one")
    sync(cli, "n")
    cli.run("push", "-", "--name", "m", stdin=b"two")
    cli.error("sync", "n", "m", code=1)
    tie = Path(".taskworker-sync/n")
    cli.write(str(tie), b"{}")
    assert str(tie) in cli.error("sync", "n", code=1)
    assert os.listdir(cli.directory / ".taskworker-sync") == ["n"]


def test_a_copy_of_a_version_that_was_deleted_is_brought_into_step(embedded: Cli) -> None:
    path = embedded.write("n", b"one")
    sync(embedded, "n")
    os.utime(path, (1, 1))
    with FileStorage.open(embedded.directory.parent / "store") as store:
        store.push(b"two", filename="n", user_id="ann")
        _, first = store.history(store.list_files(user_id="ann")[0].file_id, user_id="ann")
        store.delete_version(first.file_id, first.version_id, user_id="ann")
    assert "choose with --prefer" in embedded.error("sync", "n", code=4)
    assert sync(embedded, "n", "--prefer", "stored") == "fetched"
    assert (embedded.read("n"), embedded.read("n.local-1")) == (b"two", b"one")
