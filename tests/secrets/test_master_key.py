"""The master key: made, refused, missing, another one, rotated, and rotated amid a crash."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from storage.catalog import LmdbCatalog
from storage.errors import InvalidArgument
from storage.sealing.master_keys import MasterKey, new_master_key
from taskworker.errors import SecretsUnavailable
from taskworker.outbound.secrets.master_key import GivenKeys, KeyFile
from taskworker.outbound.secrets.vault import DOCUMENT
from tests.secrets.kept import secrets_in

FIRST, SECOND = new_master_key().text(), new_master_key().text()


def plant(directory: Path, source: GivenKeys | None = None) -> None:
    with secrets_in(directory, source) as kept:
        kept.set("key", "value")
        kept.grant("key", "f")


def test_it_is_made_for_its_owner_alone_and_a_note_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = os.umask(0)
    try:
        with secrets_in(tmp_path, KeyFile(tmp_path / "new" / "key")) as kept:
            kept.check()
    finally:
        os.umask(before)
    made = tmp_path / "new" / "key"
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    assert [str(made) in record.getMessage() for record in caplog.records] == [True]
    assert not any(line in caplog.text for line in made.read_text().splitlines())
    with secrets_in(tmp_path, KeyFile(made)) as kept:
        kept.check()
    assert len(caplog.records) == 1


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o700, 0o602])
def test_a_wider_mode_is_refused_until_it_is_put_right(tmp_path: Path, mode: int) -> None:
    plant(tmp_path)
    (tmp_path / "master.key").chmod(mode)
    with secrets_in(tmp_path) as kept:
        for call in (kept.check, kept.list, kept.rotate_master, lambda: kept.set("new", "value")):
            with pytest.raises(SecretsUnavailable, match=rf"mode {mode:04o}.*chmod 600"):
                call()
        with pytest.raises(SecretsUnavailable) as told:
            kept.get("f", "key")
        assert str(tmp_path) not in str(told.value)
        (tmp_path / "master.key").chmod(0o400)
        assert kept.get("f", "key") == "value"


def test_another_s_file_or_what_is_no_file_is_refused(tmp_path: Path) -> None:
    plant(tmp_path)
    path = tmp_path / "master.key"
    text = path.read_text()
    if os.geteuid() == 0:
        os.chown(path, 12345, 12345)
        with secrets_in(tmp_path) as kept, pytest.raises(SecretsUnavailable, match="belongs to user 12345"):
            kept.list()
    path.unlink()
    aside = tmp_path / "aside"
    aside.write_text(text)
    aside.chmod(0o600)
    path.symlink_to(aside)
    with secrets_in(tmp_path) as kept, pytest.raises(SecretsUnavailable, match="cannot be opened"):
        kept.list()
    path.unlink()
    os.mkfifo(path, 0o600)
    with secrets_in(tmp_path) as kept, pytest.raises(SecretsUnavailable, match="not a regular file"):
        kept.list()
    path.unlink()
    for content in ("", "short", "A" * 44, "# only a comment\n", FIRST[:-2]):
        path.write_text(content)
        path.chmod(0o600)
        with secrets_in(tmp_path) as kept, pytest.raises(SecretsUnavailable, match="no master key") as told:
            kept.list()
        assert not content or content not in str(told.value)
    path.write_text(text)
    with secrets_in(tmp_path) as kept:
        assert kept.get("f", "key") == "value"


def test_without_it_nothing_is_lost_and_no_other_is_made(tmp_path: Path) -> None:
    plant(tmp_path)
    path, aside = tmp_path / "master.key", tmp_path / "aside"
    path.rename(aside)
    with secrets_in(tmp_path) as kept:
        for call in (kept.check, kept.list, kept.rotate_master, lambda: kept.remove("key")):
            with pytest.raises(SecretsUnavailable, match=r"missing.*bring the key back"):
                call()
        assert not path.exists()
        aside.rename(path)
        assert kept.get("f", "key") == "value"


def test_a_wrong_one_is_told_apart_by_its_id(tmp_path: Path) -> None:
    plant(tmp_path)
    path = tmp_path / "master.key"
    right = path.read_text()
    path.write_text(FIRST)
    with secrets_in(tmp_path) as kept:
        with pytest.raises(SecretsUnavailable, match=MasterKey.of_text(FIRST).secrets_id):
            kept.list()
        with pytest.raises(SecretsUnavailable):
            kept.set("new", "value")
        with pytest.raises(SecretsUnavailable):
            kept.rotate_master()
    assert path.read_text() == FIRST
    path.write_text(right)
    with secrets_in(tmp_path) as kept:
        assert kept.get("f", "key") == "value"
    path.write_text(FIRST)
    with secrets_in(tmp_path) as kept:
        kept.remove_all()
        kept.set("key", "again")
        assert [one.name for one in kept.list()] == ["key"]


def test_a_given_key_is_rotated_by_giving_both(tmp_path: Path) -> None:
    plant(tmp_path, GivenKeys(FIRST))
    assert list(tmp_path.iterdir()) == [tmp_path / "catalog"]
    with secrets_in(tmp_path, GivenKeys(FIRST)) as kept:
        with pytest.raises(InvalidArgument, match="TASKWORKER_MASTER_KEY=NEW,OLD"):
            kept.rotate_master()
        assert kept.get("f", "key") == "value"
    with secrets_in(tmp_path, GivenKeys(SECOND)) as kept, pytest.raises(SecretsUnavailable, match="environment"):
        kept.list()
    with secrets_in(tmp_path, GivenKeys(f"{SECOND}, {FIRST}")) as kept:
        assert kept.get("f", "key") == "value"
    with secrets_in(tmp_path, GivenKeys(SECOND)) as kept:
        assert kept.get("f", "key") == "value"
    with secrets_in(tmp_path, GivenKeys(FIRST)) as kept, pytest.raises(SecretsUnavailable):
        kept.list()
    with secrets_in(tmp_path, GivenKeys("nonsense")) as kept, pytest.raises(SecretsUnavailable, match="base64"):
        kept.list()
    assert FIRST not in repr(GivenKeys(FIRST))


def test_secrets_are_used_while_the_key_changes(tmp_path: Path) -> None:
    plant(tmp_path)
    with secrets_in(tmp_path) as kept:
        stop, got = threading.Event(), []

        def use() -> None:
            while not stop.is_set():
                got.append(kept.get("f", "key"))

        user = threading.Thread(target=use)
        user.start()
        rotations = [kept.rotate_master() for _ in range(10)]
        while not got:
            pass
        stop.set()
        user.join()
    assert set(got) == {"value"}
    assert len({one.key_id for one in rotations}) == 10
    assert rotations[-1].key_id == MasterKey.of_text((tmp_path / "master.key").read_text().splitlines()[1]).id.hex()


def test_old_copies_of_key_or_catalog_are_worth_nothing_alone(tmp_path: Path) -> None:
    plant(tmp_path)
    path = tmp_path / "master.key"
    old_key = path.read_text()
    catalog = LmdbCatalog(tmp_path / "catalog")
    old_document = catalog.document(DOCUMENT)
    assert old_document
    with secrets_in(tmp_path, catalog=catalog) as kept:
        kept.rotate_master()
        assert catalog.document(DOCUMENT) != old_document
        catalog.save_document(DOCUMENT, old_document)
        with pytest.raises(SecretsUnavailable, match="the right key"):
            kept.list()
    catalog.close()
    path.write_text(old_key)
    with secrets_in(tmp_path) as kept:
        assert kept.get("f", "key") == "value"  # both of the same time


def test_a_crash_at_any_point_of_a_rotation_leaves_all_readable(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.secrets.crashing", str(tmp_path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    steps = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(steps) > 30
    assert {1, 2} == {one["left"] for one in steps}  # both before, between and after the two writes of the key file
    assert steps[-1] == {"step": len(steps) - 1, "killed": False, "left": 1}
