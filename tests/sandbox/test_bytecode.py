"""Compiled modules for another place: taken from what is compiled already, where that is of the same text."""

from __future__ import annotations

import importlib.util
import marshal
import py_compile
from pathlib import Path
from types import CodeType

import pytest

from taskworker.sandbox.bytecode import compiled_for

SOURCE = b"class A:\n    def b(self):\n        return [c for c in (lambda: 1)()]\n"
TARGET = "/inside/module.py"


@pytest.fixture
def module(tmp_path: Path) -> Path:
    path = tmp_path / "module.py"
    path.write_bytes(SOURCE)
    return path


def _compiled(module: Path, source: bytes = SOURCE) -> CodeType:
    content = compiled_for(TARGET, source, module, int(module.stat().st_mtime))
    assert content is not None
    assert content[:4] == importlib.util.MAGIC_NUMBER
    assert int.from_bytes(content[4:8], "little") == 1  # goes by a hash that is not compared
    assert str(module).encode() not in content
    code = marshal.loads(content[16:])
    assert isinstance(code, CodeType)
    assert set(_places(code)) == {TARGET}
    return code


def _places(code: CodeType) -> list[str]:
    inner = [place for one in code.co_consts if isinstance(one, CodeType) for place in _places(one)]
    return [code.co_filename, *inner]


def _keep(module: Path, text: bytes, mode: py_compile.PycInvalidationMode) -> Path:
    """Compile another text, so that it can be told which was taken, and say that it is of the module's."""
    kept = Path(importlib.util.cache_from_source(str(module)))
    py_compile.compile(str(module), doraise=True, invalidation_mode=mode)
    header = kept.read_bytes()[:16]
    kept.write_bytes(header + marshal.dumps(compile(text, str(module), "exec")))
    return kept


@pytest.mark.parametrize("mode", py_compile.PycInvalidationMode)
def test_code_that_is_compiled_already_is_taken(module: Path, mode: py_compile.PycInvalidationMode) -> None:
    _keep(module, b"TAKEN = [lambda: 1]", mode)
    assert "TAKEN" in _compiled(module).co_names


@pytest.mark.parametrize("mode", py_compile.PycInvalidationMode)
def test_but_not_that_of_an_earlier_text(module: Path, mode: py_compile.PycInvalidationMode) -> None:
    _keep(module, b"TAKEN = 1", mode)
    module.write_bytes(SOURCE + b"# later\n")
    assert "TAKEN" not in _compiled(module, SOURCE + b"# later\n").co_names


@pytest.mark.parametrize("content", [b"", b"x" * 15, importlib.util.MAGIC_NUMBER + bytes(12), b"\0" * 40])
def test_nor_half_of_one(module: Path, content: bytes) -> None:
    kept = Path(importlib.util.cache_from_source(str(module)))
    kept.parent.mkdir()
    kept.write_bytes(content)
    assert "A" in _compiled(module).co_names
    whole = _keep(module, b"TAKEN = 1", py_compile.PycInvalidationMode.TIMESTAMP)
    whole.write_bytes(whole.read_bytes()[:-3])
    assert "A" in _compiled(module).co_names


@pytest.mark.parametrize("source", [b"no python", b"\xff\xfe", b"a = 1\0"])
def test_what_does_not_compile_has_no_code(module: Path, source: bytes) -> None:
    assert compiled_for(TARGET, source, module, 0) is None
