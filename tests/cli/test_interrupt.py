"""SIGINT and SIGTERM leave nothing half done."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from tests.cli.conftest import TIMEOUT_S, Cli, serving

ENDINGS = (0, 130)  # done already, or interrupted


def wait_until_it_unwinds(process: subprocess.Popen[bytes]) -> None:
    """Wait until it is this program's code that runs: before, it is Python that ends as it likes."""
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
        if int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1:
            return
        threading.Event().wait(0.002)


def wait_until_read(process: subprocess.Popen[bytes], data: bytes) -> None:
    """Give a process its standard input, which stays open, and wait until it has taken nearly all of it."""
    assert process.stdin is not None
    os.set_blocking(process.stdin.fileno(), True)
    process.stdin.write(data)
    process.stdin.flush()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_push_cut_off_leaves_no_version(cli: Cli, number: signal.Signals) -> None:
    process = cli.start("push", "-", "--name", "cut")
    wait_until_read(process, bytes(6_000_000))
    process.send_signal(number)
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 128 + number
    assert (out, err) == (b"", b"")
    assert cli.names() == []
    assert not list(cli.directory.iterdir())
    assert cli.json("scrub")["clean"]


def test_a_revise_cut_off_leaves_the_head(cli: Cli) -> None:
    cli.run("push", "-", "--name", "kept", stdin=b"old")
    process = cli.start("revise", "kept", "-")
    wait_until_read(process, bytes(6_000_000))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    assert cli.run("get", "kept", "-o", "-").stdout == b"old"
    assert len(cli.json("log", "kept")) == 1


def test_signals_at_any_moment_of_a_get(cli: Cli) -> None:
    data = os.urandom(20_000_000)
    cli.write("big", data)
    cli.run("push", "big")
    for moment in range(8):
        process = cli.start("get", "big", "-o", "out")
        wait_until_it_unwinds(process)
        threading.Event().wait(0.05 * moment)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=TIMEOUT_S)
        here = set(os.listdir(cli.directory))
        assert process.returncode in ENDINGS, err.decode()
        assert here in ({"big"}, {"big", "out"})
        if "out" in here:
            assert cli.read("out") == data
            (cli.directory / "out").unlink()


def test_signals_at_any_moment_of_a_push(cli: Cli) -> None:
    cli.run("push", "-", "--name", "a", stdin=b"")
    for moment in range(8):
        cli.write("big", os.urandom(20_000_000))
        process = cli.start("push", "big")
        wait_until_it_unwinds(process)
        threading.Event().wait(0.05 * moment)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode in ENDINGS, err.decode()
        stored = cli.names()
        assert stored in (["a"], ["a", "big"])
        assert "big" in stored or process.returncode != 0
        if "big" in stored:
            assert cli.run("get", "big", "-o", "-").stdout == cli.read("big")
            cli.run("rm", "big")


def test_a_server_ends_well_while_it_is_used(embedded: Cli, tmp_path: Path) -> None:
    with serving(embedded, tmp_path / "store") as address:
        process = embedded.start("push", "-", "--name", "cut", "--pool", address)
        wait_until_read(process, bytes(6_000_000))
    _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 6, err.decode()
    assert embedded.names() == []
