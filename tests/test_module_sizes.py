"""No module of the product grows so long that it is about several things."""

from __future__ import annotations

from pathlib import Path

TOP = Path(__file__).parents[1]
LINES_MAX = 500


def test_no_module_is_longer_than_500_lines() -> None:
    modules = [path for package in ("storage", "taskworker") for path in (TOP / package).rglob("*.py")]
    lengths = {
        str(path.relative_to(TOP)): len(path.read_text().splitlines())
        for path in modules
        if path.parent.name != "protos"  # generated
    }
    assert len(lengths) > 400
    assert {name: lines for name, lines in lengths.items() if lines > LINES_MAX} == {}
