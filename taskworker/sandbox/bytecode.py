"""Compiled modules for a place other than the one they were compiled at."""

from __future__ import annotations

import importlib.util
import marshal
import struct
from pathlib import Path
from types import CodeType

_MAGIC = importlib.util.MAGIC_NUMBER
_HEADER_BYTES = 16
_TIMED = struct.Struct("<4sIII")
"""A ``.pyc`` that goes by time and size of its source (PEP 552)."""
_HASHED = struct.Struct("<4sI8s")
"""One that goes by a hash of its source."""
_BY_HASH = 0b01
_WITHOUT_LOOKING = 0b01
"""By hash, which nobody is to compare."""


def compiled_for(target: str, source: bytes, path: Path, mtime: int) -> bytes | None:
    """Give the content of the ``.pyc`` of a module, whose code says that it comes from ``target``.

    Where the module has been compiled, that code is taken: it is as good, and there much sooner.

    Args:
        target: path of the module, where it will be imported from.
        source: its text.
        path: where it is now.
        mtime: when it was changed, in whole seconds.

    Returns:
        None if it does not compile.
    """
    try:
        code = _kept(path, source, mtime) or compile(source, target, "exec", dont_inherit=True, optimize=0)
    except (SyntaxError, ValueError):
        return None
    return _HASHED.pack(_MAGIC, _WITHOUT_LOOKING, importlib.util.source_hash(source)) + marshal.dumps(_at(target, code))


def _kept(path: Path, source: bytes, mtime: int) -> CodeType | None:
    """The code as it was compiled for this machine's own use, if that was from this very text."""
    try:
        content = Path(importlib.util.cache_from_source(str(path), optimization="")).read_bytes()
        if not _is_of(content, source, mtime):
            return None
        code = marshal.loads(content[_HEADER_BYTES:])
    except (OSError, EOFError, ValueError, TypeError):  # there is none, or half of one
        return None
    return code if isinstance(code, CodeType) else None


def _is_of(content: bytes, source: bytes, mtime: int) -> bool:
    if len(content) < _HEADER_BYTES:
        return False
    magic, flags, noted_mtime, noted_size = _TIMED.unpack(content[:_HEADER_BYTES])
    if magic != _MAGIC:
        return False
    if flags & _BY_HASH:
        return content[8:_HEADER_BYTES] == importlib.util.source_hash(source)
    return (noted_mtime, noted_size) == (mtime & 0xFFFF_FFFF, len(source) & 0xFFFF_FFFF)


def _at(target: str, code: CodeType) -> CodeType:
    constants = tuple(_at(target, one) if isinstance(one, CodeType) else one for one in code.co_consts)
    return code.replace(co_filename=target, co_consts=constants)
