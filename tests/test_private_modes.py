"""Whatever the umask is, nobody else can reach what stores, pools and workers keep."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage import FileStorage
from storage.errors import StorageError, StoreUnavailable
from storage.system.private_files import write_private
from storage.system.private_paths import NotPrivate, make_private_directory, make_root_directory
from taskworker import Client
from taskworker.client.local_files import replacing
from taskworker.errors import StorageUnavailable
from taskworker.rpc.serving import Server
from tests.cluster.processes import WAIT_S

_PROGRAM = (sys.executable, "-m", "taskworker")
_FUNCTION = "def shout(text: str) -> str:\n    return text.upper()\n"


def _wider(directory: Path, *, entered_by_sandboxes: frozenset[str] = frozenset()) -> list[str]:
    """What somebody else could reach, and what is a link."""
    found = []
    for above, directories, files in os.walk(directory):
        # Sandboxes have user ids of their own, and must enter such a directory; nobody else gets to it.
        directories[:] = [name for name in directories if name not in entered_by_sandboxes]
        for name in (*directories, *files):
            path = Path(above, name)
            status = path.lstat()
            if stat.S_IMODE(status.st_mode) & 0o077 or not (
                stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)
            ):
                found.append(f"{stat.filemode(status.st_mode)} {path.relative_to(directory)}")
    return found


def _run(*arguments: str, umask: int, cwd: Path) -> None:
    subprocess.run([*_PROGRAM, *arguments], umask=umask, cwd=cwd, check=True, timeout=WAIT_S, stdout=subprocess.PIPE)


_STORE = """
import os
from pathlib import Path
from storage import FileStorage
from storage.snapshot import take_snapshot

with FileStorage.open("made/store") as store:
    kept = store.push(os.urandom(300_000), filename="a", user_id="ann")
    gone = store.push(os.urandom(300_000), filename="b", user_id="ann")
    store.delete(gone.file_id, user_id="ann")
    store.collect(grace_s=0)
    store.scrub()
take_snapshot(Path("made/store"), Path("made/copy"))
"""


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o277])
def test_a_store_is_private(tmp_path: Path, umask: int) -> None:
    subprocess.run([sys.executable, "-c", _STORE], umask=umask, cwd=tmp_path, check=True, env=_with_source())
    assert stat.S_IMODE((tmp_path / "made").stat().st_mode) == 0o700
    assert (tmp_path / "made/copy/catalog/data.mdb").exists()
    assert not _wider(tmp_path / "made")


def test_a_pool_and_its_workers_are_private(tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text(_FUNCTION)
    home, socket_file = tmp_path / "made", tmp_path / "pool.sock"
    more = ("--workers", "2", "--k", "1", "--n", "2", "--listen", f"unix:{socket_file}", "--json")
    process = subprocess.Popen(
        [*_PROGRAM, "up", "--dir", str(home), *more], umask=0, stdout=subprocess.PIPE, cwd=tmp_path
    )
    try:
        assert process.stdout is not None
        told = b""
        while not told.endswith(b"}\n"):
            piece = os.read(process.stdout.fileno(), 4096)
            assert piece
            told += piece
        assert json.loads(told)
        assert stat.S_IMODE(socket_file.stat().st_mode) == 0o600
        with Client(f"unix:{socket_file}") as client:
            client.push(os.urandom(300_000), filename="a", user_id="ann")
        for command in (["deploy", "shout", "f:shout"], ["call", "shout", "x"]):
            _run("--pool", f"unix:{socket_file}", *command, umask=0, cwd=tmp_path)
        assert not _wider(home, entered_by_sandboxes=frozenset({"functions"}))
        assert {path.name for path in home.rglob("*")} >= {"catalog", "calls", "functions", "VOLUME", "lock.mdb"}
    finally:
        process.terminate()
        process.communicate(timeout=WAIT_S)
    assert not _wider(home, entered_by_sandboxes=frozenset({"functions"}))


def test_a_store_that_others_could_read_is_narrowed_when_it_is_opened(tmp_path: Path) -> None:
    with FileStorage.open(tmp_path / "store") as store:
        file_id = store.push(b"x" * 100_000, filename="a", user_id="ann").file_id
    for path in (tmp_path / "store", *(tmp_path / "store").rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o666)
    with FileStorage.open(tmp_path / "store") as store:
        assert store.get(file_id, user_id="ann") == b"x" * 100_000
    assert stat.S_IMODE((tmp_path / "store").stat().st_mode) == 0o700
    assert not _wider(tmp_path / "store/catalog")
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o700 for path in (tmp_path / "store/volumes").iterdir())


def test_a_directory_with_other_things_only_becomes_unwritable_for_others(tmp_path: Path) -> None:
    tmp_path.chmod(0o775)
    (tmp_path / "mine").touch()
    make_root_directory(tmp_path)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


@pytest.mark.parametrize("name", ["LOCK", "catalog/data.mdb", "catalog/lock.mdb"])
def test_a_planted_link_is_not_written_through(tmp_path: Path, name: str) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (tmp_path / "store/catalog").mkdir(parents=True)
    (tmp_path / "store" / name).symlink_to(precious)
    with pytest.raises((NotPrivate, StoreUnavailable)):
        FileStorage.open(tmp_path / "store")
    assert precious.read_text() == "precious"


@pytest.mark.parametrize("name", ["STORE.new", "volumes/0/VOLUME.new"])
def test_a_planted_link_where_files_are_prepared_is_removed(tmp_path: Path, name: str) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    place = tmp_path / "store" / name
    place.parent.mkdir(parents=True)
    place.symlink_to(precious)
    FileStorage.open(tmp_path / "store").close()
    assert precious.read_text() == "precious"
    assert not place.is_symlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a link of another user")
def test_a_link_of_another_user_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "target").write_text("old")
    for name, target in (("directory", "elsewhere"), ("file", "target"), ("nowhere", "planted")):
        (tmp_path / name).symlink_to(tmp_path / target)
        os.lchown(tmp_path / name, 12345, 12345)
    for what in (tmp_path / "file", tmp_path / "nowhere", tmp_path / "directory" / "file"):
        with pytest.raises(NotPrivate, match="symbolic link of user 12345"), replacing(what) as file:
            file.write(b"new")
    with pytest.raises(StorageError, match="symbolic link of user 12345"):
        FileStorage.open(tmp_path / "directory")
    with pytest.raises(NotPrivate):
        make_private_directory(tmp_path / "directory")
    assert (tmp_path / "target").read_text() == "old"
    assert not (tmp_path / "planted").exists()
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a pipe of another user")
def test_nothing_is_written_to_a_pipe_of_another_user(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    os.chown(tmp_path / "pipe", 12345, 12345)
    with pytest.raises(NotPrivate, match="pipe of user 12345"), replacing(tmp_path / "pipe"):
        raise AssertionError


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_fetched_file_has_the_rights_of_any_new_file(tmp_path: Path, umask: int) -> None:
    program = (
        "from pathlib import Path; from taskworker.client.local_files import replacing\n"
        "with replacing(Path('new')) as file: file.write(b'x')\n"
        "with replacing(Path('kept')) as file: file.write(b'x')"
    )
    (tmp_path / "kept").touch()
    (tmp_path / "kept").chmod(0o640)
    subprocess.run([sys.executable, "-c", program], umask=umask, cwd=tmp_path, check=True, env=_with_source())
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE((tmp_path / "kept").stat().st_mode) == 0o640
    assert sorted(os.listdir(tmp_path)) == ["kept", "new"]


def test_nothing_changes_the_umask() -> None:
    root = Path(__file__).parents[1]
    files = [*(root / "storage").rglob("*.py"), *(root / "taskworker").rglob("*.py")]
    assert len(files) > 300
    assert not [str(path) for path in files if "os.umask(" in path.read_text(encoding="utf-8")]


def _with_source() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}


@pytest.fixture
def seen(tmp_path: Path) -> Iterator[set[int]]:
    """The modes with which others see the socket file ``socket``, from before it is there until the test ends."""
    modes: set[int] = set()
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            try:
                modes.add(stat.S_IMODE((tmp_path / "socket").lstat().st_mode))
            except FileNotFoundError:
                continue

    looking = threading.Thread(target=look)
    looking.start()
    yield modes
    ended.set()
    looking.join()


def test_a_socket_is_never_wider_than_its_owner(tmp_path: Path, seen: set[int]) -> None:
    for _ in range(5):
        server = Server({})
        server.start(f"unix:{tmp_path / 'socket'}")
        server.stop(0)
        assert os.listdir(tmp_path) == []
    assert seen <= {0o600}


def test_a_file_in_the_place_of_a_socket_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "socket").write_text("precious")
    server = Server({})
    with pytest.raises(StorageUnavailable, match="something else is there"):
        server.start(f"unix:{tmp_path / 'socket'}")
    server.stop(0)
    assert (tmp_path / "socket").read_text() == "precious"


def test_a_socket_that_is_served_is_not_taken_over_and_one_that_is_left_over_is(tmp_path: Path) -> None:
    address = f"unix:{tmp_path / 'socket'}"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "socket"))
    first, second = Server({}), Server({})
    first.start(address)
    with pytest.raises(StorageUnavailable, match="another server"):
        second.start(address)
    second.stop(0)
    assert (tmp_path / "socket").is_socket()
    first.stop(0)


@pytest.mark.parametrize("length", [100, 107])
def test_a_socket_may_have_the_longest_path_that_there_is(tmp_path: Path, length: int) -> None:
    above = tmp_path / ("d" * (length - len(os.fsencode(tmp_path)) - 3))
    above.mkdir()
    path = above / "s"
    assert len(os.fsencode(path)) == length
    server = Server({})
    server.start(f"unix:{path}")
    with socket.socket(socket.AF_UNIX) as connecting:
        connecting.connect(str(path))
    server.stop(0)
    assert os.listdir(above) == []


def test_a_private_file_replaces_what_was_left_beside_it(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / ".key.new").symlink_to(tmp_path / "precious")
    write_private(tmp_path / "key", b"k", durable=False)
    assert (tmp_path / "precious").read_text() == "precious"
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
