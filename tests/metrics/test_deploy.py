"""What is handed out for Prometheus and Grafana works with them, and asks for metrics that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import DOCS
from tests.metrics.prometheus import needs_prometheus

HERE = Path(__file__).parent
DEPLOY = HERE.parents[1] / "deploy"
RULES = DEPLOY / "prometheus" / "alerts.yml"
DASHBOARD = DEPLOY / "grafana" / "dashboard.json"
TESTS = ("alerts_test.yml", "alerts_in_weeks_test.yml")


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def expressions() -> Iterator[str]:
    for panel in panels():
        for target in panel.get("targets", []):
            yield target["expr"].replace("$__rate_interval", "1m").replace("$job", "taskworker")


def promtool(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], cwd=cwd, capture_output=True, text=True, check=False)


@needs_prometheus
def test_each_alert_fires_and_resolves(tmp_path: Path) -> None:
    for file in (RULES, *(HERE / name for name in TESTS)):
        shutil.copy(file, tmp_path)
    done = promtool("test", "rules", *TESTS, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_is_tried_and_told() -> None:
    alerts = re.findall(r"alert: (\w+)", RULES.read_text())
    tried = "".join((HERE / name).read_text() for name in TESTS)
    told = (DOCS / "how-to" / "monitoring.md").read_text()
    assert len(alerts) > 10
    for alert in alerts:
        assert f"alertname: {alert}\n" in tried
        assert f"`{alert}`" in told


@needs_prometheus
def test_prometheus_understands_all_of_the_dashboard(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": one} for number, one in enumerate(expressions())]
    (tmp_path / "panels.json").write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    done = promtool("check", "rules", "panels.json", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("where", [RULES, DASHBOARD], ids=["alerts", "dashboard"])
def test_only_metrics_that_there_are_are_asked_for(where: Path) -> None:
    told = (DOCS / "how-to" / "monitoring.md").read_text()  # which a test compares with what processes show
    found = re.findall(r"\btaskworker_\w+", where.read_text())
    asked = {name.removesuffix("_bucket").removesuffix("_count") for name in found}
    assert len(asked) > 10
    assert [name for name in sorted(asked) if f"`{name}`" not in told] == []


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    """By the parts of its model that it refuses, or shows nothing without."""
    dashboard = json.loads(DASHBOARD.read_text())
    assert dashboard["schemaVersion"] >= 36
    assert {one["name"] for one in dashboard["templating"]["list"]} == {"datasource", "job"}
    ids = [panel["id"] for panel in panels()]
    assert len(set(ids)) == len(ids)
    taken = set[tuple[int, int]]()
    for panel in panels():
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not taken & cells, f"{panel['title']} covers another panel"
        taken |= cells
        if panel["type"] != "row":
            assert panel["targets"]
            assert panel["datasource"]["uid"] == "${datasource}"
