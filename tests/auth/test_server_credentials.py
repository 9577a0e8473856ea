"""Servers with TLS bear many callers that connect at the same moment, and follow their certificates."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.storage.helpers import python_environment

CONNECTIONS = 3000
PROGRAM = """
    import os, socket, sys, threading
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path
    import grpc
    from taskworker.auth.server_certificates import ServerTls
    from tests.auth.members import Members

    members = Members.in_directory(Path(sys.argv[1]))
    credentials = {
        "members": members.pool.for_grpc_server,
        "users": ServerTls(members.authority, "127.0.0.1:0").credentials,
    }[sys.argv[2]]()
    context, name = {
        "members": (members.worker.client, members.pool.identity.dns_name),
        "users": (members.worker.client_of_any, None),
    }[sys.argv[2]]
    context.set_alpn_protocols(["h2"])
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    left = iter(range(int(sys.argv[3])))

    def connect():
        for _ in left:
            with socket.create_connection(("127.0.0.1", port), 60) as connection:
                with context.wrap_socket(connection, server_hostname=name) as secured:
                    assert secured.getpeercert(True)

    callers = os.fork()
    if not callers:
        with ThreadPoolExecutor(16) as threads:
            for done in [threads.submit(connect) for _ in range(16)]:
                done.result()
        os._exit(0)
    assert os.waitpid(callers, 0)[1] == 0, "callers were not served"
    print("alive")
    os._exit(0)
"""


@pytest.mark.parametrize("whom", ["members", "users"])
def test_many_callers_that_connect_at_once(tmp_path: Path, whom: str) -> None:
    """Runs in its own process, which crashed when gRPC was told of the certificates with each connection."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), tmp_path, whom, str(CONNECTIONS)],
        env=python_environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr[-2000:]
