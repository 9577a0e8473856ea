"""push, get, ls, log, stat, revise, rm."""

from __future__ import annotations

import os
import random
import stat
from base64 import b64encode
from pathlib import Path

import pytest

from storage import FileStorage
from tests.cli.conftest import Cli

MIB = 1 << 20


def content(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.mark.parametrize("size", [0, 1, MIB, 3 * MIB + 17])
def test_what_was_pushed_comes_back(cli: Cli, size: int) -> None:
    cli.write("a.bin", content(size))
    [version] = cli.json("push", "a.bin")
    assert (version["filename"], version["size"], version["user_id"]) == ("a.bin", size, cli.user)
    cli.run("get", "a.bin", "-o", "back")
    assert cli.read("back") == content(size)
    got = cli.json("get", version["file_id"], "-o", "again")
    assert got["output"] == "again"
    assert cli.read("again") == content(size)


def test_standard_streams(cli: Cli) -> None:
    data = content(2 * MIB + 5)
    cli.run("push", "-", "--name", "piped", stdin=data)
    assert cli.run("get", "piped", "-o", "-").stdout == data
    cli.run("revise", "piped", "-", stdin=data[::-1])
    assert cli.run("get", "piped", "-o", "-").stdout == data[::-1]


def test_ranges(cli: Cli) -> None:
    data = content(2 * MIB + 100)
    cli.run("push", "-", "--name", "r", stdin=data)
    for asked, expected in (("1048570-1048580", data[1048570:1048581]), ("-7", data[-7:])):
        assert cli.run("get", "r", "--range", asked, "-o", "-").stdout == expected
    cli.error("get", "r", "--range", "9-3", "-o", "-", code=2)


def test_versions(cli: Cli) -> None:
    cli.run("push", "-", "--name", "v", "--note", "first", stdin=b"one")
    cli.write("two", b"two")
    cli.run("revise", "v", "two", "--note", "second")
    cli.run("push", "-", "--name", "v", stdin=b"three")
    log = cli.json("log", "v")
    assert [version["note"] for version in log] == ["", "second", "first"]
    assert [version["parent_id"] for version in log] == [log[1]["version_id"], log[2]["version_id"], None]
    assert len(cli.json("log", "v", "--limit", "2")) == 2
    assert cli.run("get", "v", "--version", log[1]["version_id"], "-o", "-").stdout == b"two"
    assert cli.run("get", "v", "--version", log[2]["version_id"][:16], "-o", "-").stdout == b"one"
    assert cli.json("stat", "v", "--version", log[2]["version_id"])["size"] == 3
    assert "second" in cli.text("log", "v")
    cli.error("get", "v", "--version", "0" * 64, code=3)
    cli.error("get", "v", "--version", "00000000", code=3)
    cli.error("get", "v", "--version", "no hex", code=2)


def test_revise_only_if_nobody_else_did(cli: Cli) -> None:
    cli.run("push", "-", "--name", "c", stdin=b"one")
    first = cli.json("stat", "c")["version_id"]
    cli.run("revise", "c", "-", "--base", first[:12], stdin=b"two")
    said = cli.error("revise", "c", "-", "--base", first, stdin=b"other", code=4)
    assert cli.json("stat", "c")["version_id"] in said
    assert cli.run("get", "c", "-o", "-").stdout == b"two"


def test_revise_with_the_same_content_makes_no_version(cli: Cli) -> None:
    cli.write("same", content(MIB + 1))
    cli.run("push", "same")
    assert "nothing differs" in cli.text("revise", "same", "same")
    assert len(cli.json("log", "same")) == 1


def test_revise_of_many_chunks(cli: Cli) -> None:
    cli.write("m", content(9 * MIB + 9))
    cli.run("push", "m")
    for changed in (content(12 * MIB + 3, seed=2), content(5 * MIB, seed=3), b""):
        cli.write("m2", changed)
        cli.run("revise", "m", "m2")
        assert cli.run("get", "m", "-o", "-").stdout == changed


def test_listing(cli: Cli) -> None:
    for name in ("b", "a", "dir/c"):
        cli.run("push", "-", "--name", name, stdin=name.encode())
    assert cli.names() == ["a", "b", "dir/c"]
    assert [version["filename"] for version in cli.json("ls", "dir/")] == ["dir/c"]
    lines = cli.text("ls").splitlines()
    assert [line.split()[-1] for line in lines] == ["a", "b", "dir/c"]
    assert cli.json("ls", "nothing") == []
    assert cli.text("ls", "nothing") == ""


def test_users_see_their_own(cli: Cli) -> None:
    [version] = cli.json("push", "-", "--name", "mine", stdin=b"x")
    assert cli.json("ls", "--user", "somebody else") == []
    cli.error("get", "mine", "--user", "somebody else", code=3)
    cli.error("get", version["file_id"], "--user", "somebody else", code=3)


def test_deleted_is_gone(cli: Cli) -> None:
    cli.run("push", "-", "--name", "d", stdin=b"x")
    cli.run("push", "-", "--name", "e", stdin=b"x")
    cli.error("rm", "d", "nope", code=3)
    assert cli.names() == ["d", "e"]
    assert [version["filename"] for version in cli.json("rm", "d", "e")] == ["d", "e"]
    assert cli.names() == []
    cli.error("get", "d", code=3)


def test_any_name(cli: Cli) -> None:
    names = ["\x1b[31mred", "[bold]no markup", "line\nbreak", "tab\tquote'\"", "文件 名.txt"]
    for name in names:
        cli.write(name, name.encode())
    pushed = cli.run("push", *names)
    assert cli.names() == names
    listed = cli.run("ls")
    assert len(listed.stdout.decode().splitlines()) == len(listed.stdout.splitlines()) == len(names)
    for shown in (pushed.stdout, listed.stdout, cli.run("stat", names[0]).stdout):
        assert b"\x1b" not in shown
    for name in names:
        (cli.directory / name).unlink()
        cli.run("get", name)
        assert cli.read(name) == name.encode()


def test_bad_names(cli: Cli) -> None:
    for name in ("../up", "", "x" * 1025, b"\xff".decode(errors="surrogateescape")):
        cli.error("push", "-", "--name", name, stdin=b"x", code=2)
    cli.error("push", "-", stdin=b"x", code=2)
    assert cli.names() == []


def test_push_checks_everything_first(cli: Cli) -> None:
    cli.write("good", b"x")
    (cli.directory / "sub").mkdir()
    (cli.directory / "sub" / "good").write_bytes(b"y")
    cli.error("push", "good", "missing", code=2)
    cli.error("push", "good", "sub", code=2)
    cli.error("push", "good", "sub/good", code=2)
    cli.error("push", "good", "good2", "--name", "one", code=2)
    cli.error("push", "good", "--k", "3", code=2)
    cli.error("push", "good", "--k", "4", "--n", "3", code=2)
    cli.run("push", "good", "--name", "first")
    assert cli.names() == ["first"]


def test_profile_of_one_file(cli: Cli) -> None:
    [version] = cli.json("push", "-", "--name", "p", "--k", "2", "--n", "5", stdin=content(MIB))
    assert version["profile"] == {"k": 2, "n": 5}
    assert cli.run("get", "p", "-o", "-").stdout == content(MIB)


def test_get_does_not_overwrite_unasked(cli: Cli) -> None:
    path = cli.write("keep", b"old")
    cli.run("push", "-", "--name", "keep", stdin=b"new")
    cli.error("get", "keep", code=1)
    assert path.read_bytes() == b"old"
    path.chmod(0o640)
    cli.run("get", "keep", "-o", "keep")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_get_into_directories_links_and_devices(cli: Cli) -> None:
    cli.run("push", "-", "--name", "dir/x", stdin=b"new")
    (cli.directory / "into").mkdir()
    cli.run("get", "dir/x", "-o", "into")
    assert cli.read("into/x") == b"new"
    (cli.directory / "link").symlink_to("into/y")
    cli.run("get", "dir/x", "-o", "link")
    assert (cli.directory / "link").is_symlink()
    assert cli.read("into/y") == b"new"
    cli.run("get", "dir/x", "-o", "/dev/null")
    cli.error("get", "dir/x", "-o", "nowhere/x", code=1)
    assert sorted(os.listdir(cli.directory)) == ["into", "link"]


def test_json_and_stdout_exclude_each_other(cli: Cli) -> None:
    cli.run("push", "-", "--name", "j", stdin=b"x")
    cli.error("get", "j", "-o", "-", "--json", code=2)


def test_a_directory_to_write_to_is_made(cli: Cli) -> None:
    cli.run("push", "-", "--name", "a/b.txt", stdin=b"x")
    cli.run("get", "a/b.txt", "-o", "new/er/")
    assert (cli.directory / "new/er/b.txt").read_bytes() == b"x"
    cli.run("get", "a/b.txt", "-o", "new/er")
    (cli.directory / "new/file").write_bytes(b"mine")
    cli.error("get", "a/b.txt", "-o", "new/file/", code=1)
    cli.error("get", "a/b.txt", "-o", "", code=2)
    assert (cli.directory / "new/file").read_bytes() == b"mine"


def errors(cli: Cli, *arguments: str, code: int) -> list[str]:
    """The lines that a command says about files that failed."""
    return cli.run(*arguments, code=code).stderr.decode().splitlines()


def test_many_files_in_one_call(cli: Cli) -> None:
    files = {f"f{number}": content(number * 700) for number in range(60)} | {"large": content(3 * MIB), "日本": b"x"}
    for name, data in files.items():
        cli.write(name, data)
    said = cli.text("push", *files, "--note", "together").splitlines()
    assert sum(line.endswith(" stored") for line in said) == 62
    assert said[-1].startswith("62 files: ")
    assert cli.json("stat", "large")["note"] == "together"
    assert "unchanged" in cli.text("push", "f1", "f2")
    ids = {each["filename"]: each["file_id"] for each in cli.json("ls")}
    asked = [ids[name] if name > "f3" else name for name in files]
    assert cli.text("get", *asked, "-o", "there/").splitlines()[-1].startswith("62 files: ")
    assert {name: (cli.directory / "there" / name).read_bytes() for name in files} == files
    assert errors(cli, "get", "f1", "f2", code=1)[-1].endswith("2 of 2 files were not fetched")
    (cli.directory / "f1").unlink()
    assert errors(cli, "get", "f1", "f2", code=1)[-1].endswith("1 of 2 files were not fetched")
    assert cli.read("f1") == files["f1"]
    assert cli.text("rm", *asked).startswith("deleted 62 files")
    assert cli.names() == []


def test_files_that_fail_do_not_keep_the_others(cli: Cli) -> None:
    for name in ("a", "b", "c"):
        cli.write(name, name.encode())
    (cli.directory / "b").chmod(0)
    if not os.access(cli.directory / "b", os.R_OK):
        assert "b: " in errors(cli, "push", "a", "b", "c", code=1)[0]
        assert cli.names() == ["a", "c"]
    cli.run("push", "a", "c")
    said = errors(cli, "get", "a", "nothing", "c", "-o", "there/", code=3)
    assert "there is no file 'nothing'" in said[0]
    assert said[1:] == ["taskworker: 1 of 3 files were not fetched"]
    assert sorted(os.listdir(cli.directory / "there")) == ["a", "c"]
    cli.run("push", "a", "--name", "dir/a")
    assert "written already" in errors(cli, "get", "a", "dir/a", "-o", "there/", code=1)[0]
    for arguments in (["--version", "abcd"], ["--range", "0-1"], ["-o", "-"], ["-o", "file"], ["-o", ""]):
        cli.error("get", "a", "c", *arguments, code=2)
    assert [each["filename"] for each in cli.json("get", "a", "c", "-o", "json/")] == ["a", "c"]


def test_attributes_that_a_program_gave_are_shown(tmp_path: Path) -> None:
    attributes = {"type": b"text/plain\x1b[2J", "digest": bytes([255]) * 16, "long": b"x" * 81}
    with FileStorage.open(tmp_path / "store") as store:
        store.push(b"1", filename="a", user_id="ann", attributes=attributes)
    cli = Cli(tmp_path, {"TASKWORKER_STORE": str(tmp_path / "store")}, "ann")
    shown = cli.text("stat", "a")
    assert "has      type = text/plain\\x1b[2J\n" in shown
    assert "has      digest, 16 bytes\n" in shown
    assert "has      long, 81 bytes\n" in shown
    expected = {name: b64encode(value).decode() for name, value in attributes.items()}
    assert cli.json("stat", "a")["attributes"] == expected
    assert cli.json("log", "a")[0]["attributes"] == expected
    assert "attributes" not in cli.json("ls")[0]
    cli.write("a", b"2")
    assert "attributes" not in cli.json("push", "a")[0]
