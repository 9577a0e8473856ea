"""No module imports itself through others.

``./dev contracts`` compares packages. These tests compare single modules, and also count imports inside functions and
imports that only type checkers see.
"""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

TOP = Path(__file__).parents[1]


def test_no_modules_import_each_other_in_a_circle() -> None:
    modules = {_module_name(path): path for package in ("storage", "taskworker") for path in _sources(package)}
    graph = {name: {*_imported(name, path, modules)} - {name} for name, path in modules.items()}
    assert len(graph) > 300
    assert "storage.erasure.zfec_codec" in graph["storage.erasure.code"], "imports inside functions count"
    assert "taskworker.client.client" in graph["taskworker.client"], "imports for type checking count"
    assert _circle(graph) == []


def test_a_circle_is_found() -> None:
    assert _circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) in (list("abca"), list("bcab"), list("cabc"))


def test_relative_imports_are_resolved(tmp_path: Path) -> None:
    source = tmp_path / "one.py"
    source.write_text(
        "def late():\n    from . import two\n    from .inner.three import name\n    from .. import four\n"
    )
    modules = {f"top.{name}": source for name in ("four", "package.two", "package.inner.three")}
    assert {*_imported("top.package.one", source, modules)} == {*modules}


def _sources(package: str) -> list[Path]:
    return sorted((TOP / package).rglob("*.py"))


def _module_name(path: Path) -> str:
    parts = path.relative_to(TOP).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(name: str, path: Path, modules: dict[str, Path]) -> Iterator[str]:
    """The modules of ours that a module's text imports, wherever in it."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, [_above(package, node.level), node.module]))
            for alias in node.names:  # each is a module of the package, or a name in the module
                yield from [each for each in (f"{base}.{alias.name}", base) if each in modules][:1]


def _above(package: str, level: int) -> str:
    """The package that the dots of a relative import mean; empty without dots."""
    parts = package.split(".")
    return ".".join(parts[: len(parts) - level + 1]) if level else ""


def _circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules each of which imports the next; the last is the first. Empty if there is no circle."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        circle: list[str] = error.args[1]
        return circle[::-1]
    return []
