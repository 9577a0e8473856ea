"""Compiled modules whose code names another path than the one they were compiled at."""

from __future__ import annotations

import importlib.util
import marshal
import struct
from pathlib import Path
from types import CodeType

_MAGIC = importlib.util.MAGIC_NUMBER
_HEADER_BYTES = 16
_TIMED = struct.Struct("<4sIII")
"""Header of a ``.pyc`` that is valid for the time and size of its source (PEP 552)."""
_HASHED = struct.Struct("<4sI8s")
"""Header of a ``.pyc`` that is valid for a hash of its source."""
_BY_HASH = 0b01
_WITHOUT_LOOKING = 0b01
"""Flags of a ``.pyc`` with a hash that the interpreter does not compare."""


def compiled_for(target: str, source: bytes, path: Path, mtime: int) -> bytes | None:
    """Return the content of a module's ``.pyc``, with ``target`` as the file name in its code.

    Reuses the code that this machine has in its ``__pycache__``, which is much faster than compiling.

    Args:
        target: path from which the module will be imported.
        source: text of the module.
        path: where the module is now.
        mtime: when the module was last changed, in whole seconds.

    Returns:
        The content; None if the module does not compile.
    """
    try:
        code = _kept(path, source, mtime) or compile(source, target, "exec", dont_inherit=True, optimize=0)
    except (SyntaxError, ValueError):
        return None
    return _HASHED.pack(_MAGIC, _WITHOUT_LOOKING, importlib.util.source_hash(source)) + marshal.dumps(_at(target, code))


def _kept(path: Path, source: bytes, mtime: int) -> CodeType | None:
    """Return the code in this machine's ``__pycache__``, if it was compiled from exactly this text."""
    try:
        content = Path(importlib.util.cache_from_source(str(path), optimization="")).read_bytes()
        if not _is_of(content, source, mtime):
            return None
        code = marshal.loads(content[_HEADER_BYTES:])
    except (OSError, EOFError, ValueError, TypeError):  # missing or incomplete
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
