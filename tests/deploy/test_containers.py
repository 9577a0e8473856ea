"""What is in deploy/ for containers is what their tools take, and starts commands with options that there are."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from docs_build import commands

DEPLOY = Path(__file__).parents[2] / "deploy"
STARTING = ("compose/compose.yaml", "kubernetes/base/pool.yaml", "kubernetes/base/workers.yaml")
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
_OTHERS = {"--build", "--detach"}  # of docker compose


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        shutil.which(program) is None, reason=f"{program.upper()} IS NOT INSTALLED, SO WHAT IT TAKES IS NOT VERIFIED"
    )


@pytest.mark.parametrize("name", STARTING)
def test_commands_have_options_that_there_are(name: str) -> None:
    text = (DEPLOY / name).read_text()
    known = {
        option
        for one in commands.commands()
        if one.path in ("taskworker pool", "taskworker worker", "taskworker worker-token")
        for parameter in one.parameters
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    given = set(_OPTION.findall(text)) - _OTHERS
    assert given
    assert given <= known


def test_ports_and_paths_are_the_same_everywhere() -> None:
    compose, pool, workers = ((DEPLOY / name).read_text() for name in STARTING)
    for port in ("50051", "50061", "50062", "9464"):
        assert port in compose
        assert port in pool
    for port in ("50052", "50053", "50061", "9464"):
        assert port in compose
        assert port in workers
    assert compose.count("--no-direct") == 2, "users of this machine reach the pool only"
    assert "--clients-port 50054" in workers
    assert {"port: 50054", "containerPort: 50054"} == set(re.findall(r"\w+: 50054", workers))
    policies = (DEPLOY / "kubernetes/base/network-policies.yaml").read_text()
    ports = set(re.findall(r"port: (\d+)", policies))
    assert ports == {"53", "50051", "50052", "50053", "50054", "50061", "50062", "9464"}
    container = (DEPLOY / "container/Containerfile").read_text()
    assert "USER 10001:10001" in container
    assert pool.count("runAsUser: 10001") == workers.count("runAsUser: 10001") == 1


@needs("kubectl")
@pytest.mark.parametrize("name", ["base", "functions"])
def test_kustomize_takes_the_manifests(name: str) -> None:
    made = subprocess.run(
        ["kubectl", "kustomize", DEPLOY / "kubernetes" / name], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    assert made.count("\nkind: StatefulSet") == 2
    assert ("procMount: Unmasked" in made) == (name == "functions")
    assert "--no-functions" in made if name == "base" else "value: --functions" in made


@needs("hadolint")
def test_hadolint_finds_nothing() -> None:
    subprocess.run(["hadolint", DEPLOY / "container/Containerfile"], check=True)


class _Answering(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/healthz" else 503)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        pass


def test_the_health_check_tells_a_process_that_answers_from_others() -> None:
    server = HTTPServer(("127.0.0.1", 0), _Answering)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"

    def code(path: str) -> int:
        script = [sys.executable, str(DEPLOY / "container/healthcheck.py")]
        return subprocess.run(script, env={**os.environ, "HEALTH_URL": url + path}, check=False).returncode

    assert code("/healthz") == 0
    assert code("/other") == 1
    server.shutdown()
    server.server_close()
    assert code("/healthz") == 1
