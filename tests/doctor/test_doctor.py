"""The doctor finds what is wrong with this machine, says what to do, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from taskworker.auth.contexts import Context, Contexts
from taskworker.doctor.access import contexts, membership, port
from taskworker.doctor.disks import disk
from taskworker.doctor.examination import examine
from taskworker.doctor.findings import Finding, Verdict

TIMEOUT_S = 120


@pytest.fixture(autouse=True)
def own_contexts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def worst(findings: Iterable[Finding]) -> Finding:
    order = list(Verdict)
    return max(findings, key=lambda one: order.index(one.verdict))


def doctor(*options: str, files: int | None = None) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        if files is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    command = [sys.executable, "-m", "taskworker", "doctor", *options]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, preexec_fn=limit if files else None
    )


def test_a_machine_with_few_descriptors_has_a_problem(tmp_path: Path) -> None:
    options = ("--json", "--no-functions", "--dir", str(tmp_path / "new"), "--listen", "127.0.0.1:0")
    done = doctor(*options, files=512)
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert told["problems"] == 1
    (found,) = (one for one in told["findings"] if one["verdict"] == "problem")
    assert (found["about"], found["advice"] != "") == ("descriptors", True)
    assert not (tmp_path / "new").exists()
    assert {"versions", "clock"} <= {one["about"] for one in told["findings"]}


def test_people_are_told_line_by_line(tmp_path: Path) -> None:
    done = doctor("--no-functions", "--dir", str(tmp_path), "--listen", "nowhere")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    at = lines.index("PROBLEM  address nowhere: address 'nowhere' is not host:port, [ipv6]:port or unix:/path")
    assert lines[at + 1] == "         → write HOST:PORT, or unix:PATH"
    assert lines[-1].startswith("1 problem, ")
    assert list(tmp_path.iterdir()) == []


def test_an_address_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert worst(port(address)).verdict is Verdict.WARNING
        Contexts().put(Context(address, "token", "ann"))
        assert [one.text for one in port(address)] == ["a server of yours listens there"]
    assert worst(port(address)).verdict is Verdict.OK
    assert worst(port("192.0.2.1:50051")).verdict is Verdict.PROBLEM
    assert worst(port("unix:/nowhere/at/all")).verdict is Verdict.PROBLEM


def test_a_disk_is_flushed_and_left_as_it_was(tmp_path: Path) -> None:
    found = list(disk(tmp_path / "a" / "b"))
    assert worst(found).verdict is not Verdict.PROBLEM
    assert any("a flush takes" in one.text for one in found)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_disk_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert worst(disk(tmp_path)).verdict is Verdict.PROBLEM


def test_a_file_that_must_be_private(tmp_path: Path) -> None:
    (tmp_path / "master.key").write_text("key")
    (tmp_path / "master.key").chmod(0o644)
    found = worst(disk(tmp_path))
    assert found.verdict is Verdict.PROBLEM
    assert "chmod 600" in found.text


def test_contexts_that_are_damaged_or_have_gone() -> None:
    assert worst(contexts()).verdict is Verdict.OK
    with socket.create_server(("127.0.0.1", 0)) as free:
        gone = f"127.0.0.1:{free.getsockname()[1]}"
    kept = Contexts()
    kept.put(Context(gone, "token", "ann", server="pool"))
    assert worst(contexts()).verdict is Verdict.OK  # a server that this login started
    kept.use(gone)
    assert worst(contexts()).verdict is Verdict.WARNING  # commands without --pool fail
    kept.path.write_text("{")
    assert worst(contexts()).verdict is Verdict.PROBLEM


def test_a_directory_that_no_worker_joined_with_has_no_certificate(tmp_path: Path) -> None:
    assert list(membership(tmp_path)) == []
    (tmp_path / "member.json").write_text("{}")
    (tmp_path / "member.json").chmod(0o600)
    assert worst(membership(tmp_path)).verdict is Verdict.PROBLEM


def test_a_check_that_fails_does_not_hide_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[Finding]:
        raise RuntimeError("no /proc")

    monkeypatch.setattr("taskworker.doctor.examination.descriptors", broken)
    found = list(examine([tmp_path], [], functions=False))
    assert [one.text for one in found if one.about == "descriptors"] == ["it cannot be checked: no /proc"]
    assert found[-1].about.startswith("contexts ")
