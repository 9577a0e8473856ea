"""Folders that were pushed before their pool encrypted, in real processes."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.folders.trees import described, make
from tests.functions.processes import WAIT_S, FunctionPool


@pytest.fixture
def plain_pool(tmp_path: Path) -> Iterator[FunctionPool]:
    with FunctionPool(tmp_path, pool_options=["--no-encryption"]) as pool:
        pool.await_whole()
        yield pool


def encrypt_from_now_on(pool: FunctionPool) -> None:
    pool._arguments.remove("--no-encryption")
    pool._arguments.append("--encryption")
    pool.restart_pool()
    pool.await_whole()


def await_encrypted(cli: Cli) -> None:
    give_up = time.monotonic() + WAIT_S
    while True:
        states = {work["name"]: work["state"] for work in cli.json("status")["work"]}
        if states.get("encrypt") == "idle":
            return
        assert time.monotonic() < give_up, states
        time.sleep(0.1)


@pytest.mark.parametrize("drop", [(), ("--drop-earlier",)])
def test_a_folder_comes_back_as_it_was_after_it_was_encrypted(plain_pool: FunctionPool, drop: tuple[str, ...]) -> None:
    here = plain_pool.directory / "here"
    here.mkdir()
    cli = Cli(here, {"TASKWORKER_POOL": plain_pool.address}, f"user-{uuid.uuid4()}")
    source = here / "photos"
    tree = {b"a": ("file", b"1" * 70_000, 0o600, 1_234_567_891), b"in": {b"b": ("file", b"small", 0o755, 7)}}
    make(source, tree)
    os.link(source / "a", source / "in" / "the same")
    os.utime(source / "in", ns=(8, 8))
    cli.run("push", "photos")
    shown = cli.json("stat", "photos/a")["version_id"]
    link = cli.json("link", "create", "photos/a", "--version", shown)["link"]

    encrypt_from_now_on(plain_pool)
    cli.run("encrypt", *drop)
    await_encrypted(cli)
    cli.run("get", "photos/", "-o", "back")
    assert described(here / "back") == described(source)
    assert cli.json("push", "photos")["stored"] == 0
    assert cli.text("get", "--link", link, "-o", "-") == "1" * 70_000
    history = cli.json("log", "photos/a")
    assert len(history) == (1 if drop else 2)
    assert (shown in [version["version_id"] for version in history]) is not bool(drop)
