"""Gateways that take their socket from systemd: nobody is refused while they are not there."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.functions.processes import FunctionPool
from tests.gateways.s3.conftest import keys_file

PROGRAM = [sys.executable, "-m", "taskworker"]
WAIT_S = 60


@contextlib.contextmanager
def gateway(
    passed: list[socket.socket], arguments: list[str], env: Mapping[str, str]
) -> Iterator[subprocess.Popen[str]]:
    """A gateway to which sockets are passed as systemd does it; see sd_listen_fds(3)."""
    redirected = " ".join(f"{3 + at}<&{one.fileno()}" for at, one in enumerate(passed))
    script = f'export LISTEN_PID=$$ LISTEN_FDS={len(passed)} LISTEN_FDNAMES=gateway; exec "$@" {redirected}'
    command = ["bash", "-c", script, "bash", *PROGRAM, "gateway", *arguments, "--listen", "systemd"]
    process = subprocess.Popen(
        command,
        pass_fds=[one.fileno() for one in passed],
        env=dict(env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=WAIT_S)


def listener(kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    """A socket as that of a unit, above the numbers that are passed."""
    made = socket.socket(socket.AF_INET, kind)
    made.bind(("127.0.0.1", 0))
    if kind == socket.SOCK_STREAM:
        made.listen(100)
    return made


def answer(address: str, path: str) -> bytes:
    with urllib.request.urlopen(f"http://{address}/{path}", timeout=WAIT_S) as reply:
        return bytes(reply.read())


@pytest.fixture
def of_s3(pool: FunctionPool, tmp_path: Path) -> list[str]:
    return ["s3", "--keys", str(keys_file(tmp_path)), "--public", "shown=TWAAAAAAAAAAAAAAAAAA"]


def environment(pool: FunctionPool) -> dict[str, str]:
    return {**os.environ, "TASKWORKER_POOL": pool.address}


def test_who_connects_while_the_gateway_is_started_again_is_answered(pool: FunctionPool, of_s3: list[str]) -> None:
    pool.client.push(b"content", filename="shown/file", user_id="s3-user")
    with listener() as held:
        address = f"127.0.0.1:{held.getsockname()[1]}"
        found: list[bytes] = []
        asking = [threading.Thread(target=lambda: found.append(answer(address, "shown/file"))) for _ in range(3)]
        asking[0].start()  # before the first gateway
        with gateway([held], of_s3, environment(pool)) as first:
            asking[0].join(WAIT_S)
            first.send_signal(signal.SIGTERM)
            assert first.wait(WAIT_S) in (0, 143)
        asking[1].start()  # when it has stopped
        with gateway([held], of_s3, environment(pool)) as second:
            asking[1].join(WAIT_S)
            second.kill()
            second.wait(WAIT_S)
        asking[2].start()  # when it was killed
        with gateway([held], of_s3, environment(pool)):
            asking[2].join(WAIT_S)
    assert found == [b"content"] * 3


def test_the_page_is_served_at_a_passed_socket(pool: FunctionPool) -> None:
    with listener() as held, gateway([held], ["page"], environment(pool)):
        assert b"<html" in answer(f"127.0.0.1:{held.getsockname()[1]}", "")


def refusal(passed: list[socket.socket], arguments: list[str], env: Mapping[str, str]) -> str:
    with gateway(passed, arguments, env) as process:
        _, error = process.communicate(timeout=WAIT_S)
        assert process.returncode in (1, 2)
        return error


def test_what_is_not_one_listening_socket_is_refused(pool: FunctionPool, of_s3: list[str]) -> None:
    env = environment(pool)
    with listener() as one, listener() as other, listener(socket.SOCK_DGRAM) as datagrams, socket.socket() as idle:
        assert "passed no socket" in refusal([], of_s3, env)
        assert "passed 2 sockets" in refusal([one, other], of_s3, env)
        assert "does not listen for TCP" in refusal([datagrams], of_s3, env)
        assert "does not listen for TCP" in refusal([idle], of_s3, env)


def test_other_machines_need_tls_at_a_passed_socket(pool: FunctionPool, of_s3: list[str]) -> None:
    with socket.create_server(("0.0.0.0", 0)) as everywhere:
        assert "without TLS" in refusal([everywhere], of_s3, environment(pool))


@pytest.mark.skipif(
    shutil.which("systemd-socket-activate") is None, reason="SYSTEMD IS NOT INSTALLED, SO IT STARTS NO GATEWAY"
)
def test_systemd_starts_a_gateway_with_the_first_connection(pool: FunctionPool, of_s3: list[str]) -> None:
    pool.client.push(b"content", filename="shown/file", user_id="s3-user")
    with listener() as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    kept = [f"--setenv={name}={value}" for name, value in environment(pool).items() if "\n" not in value]
    command = [
        "systemd-socket-activate",
        f"--listen={address}",
        *kept,
        *PROGRAM,
        "gateway",
        *of_s3,
        "--listen",
        "systemd",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        assert "Listening on" in process.stderr.readline()
        assert answer(address, "shown/file") == b"content"
    finally:
        process.kill()
        process.communicate(timeout=WAIT_S)
