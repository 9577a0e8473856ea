"""Prometheus as a process, for tests that need it: those are skipped where it is not installed."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import pytest

WAIT_S = 60.0

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="PROMETHEUS IS NOT INSTALLED, SO NOTHING SCRAPES AND NO RULE IS TRIED: apt-get install prometheus",
)


class Prometheus:
    """Scrapes these processes every second; a context manager that ends it.

    Args:
        directory: for its data.
        targets: HOST:PORT of each process, by its job.
        rules: files with rules.
    """

    def __init__(self, directory: Path, targets: dict[str, list[str]], rules: Iterable[Path] = ()) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "500ms"},
            "rule_files": [str(path) for path in rules],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": each}]} for job, each in targets.items()
            ],
        }
        file = directory / "prometheus.json"  # JSON is YAML
        file.write_text(json.dumps(config))
        self._log = (directory / "prometheus.log").open("wb")
        self._process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={file}",
                f"--storage.tsdb.path={directory / 'prometheus'}",
                f"--web.listen-address={self.address}",
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def __enter__(self) -> Prometheus:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._process.terminate()
        self._process.wait()
        self._log.close()

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """The series of an expression with their values now; none while it cannot be asked."""
        found = self._get(f"query?query={quote(expression)}")
        return [(one["metric"], float(one["value"][1])) for one in found.get("result", [])]

    def firing(self) -> set[str]:
        """The names of the alerts that fire."""
        alerts = self._get("alerts").get("alerts", [])
        return {one["labels"]["alertname"] for one in alerts if one["state"] == "firing"}

    def _get(self, what: str) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(f"http://{self.address}/api/v1/{what}", timeout=WAIT_S) as answer:
                data: dict[str, Any] = json.load(answer)["data"]
                return data
        except (urllib.error.URLError, ConnectionError):
            return {}  # it is starting


def await_true(condition: Callable[[], object], what: str, wait_s: float = WAIT_S) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + wait_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def check_metrics(text: str) -> str:
    """What promtool has against the names, units and help texts of metrics; empty if nothing."""
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr
