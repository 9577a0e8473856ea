"""The programs by name, and the function that runs the one asked for.

An attack gives what it got: anything true is loot. What it raises is how it was refused.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Callable
from typing import Any, Protocol


class Channel(Protocol):
    """The channel, as far as attacks use it."""

    def ask(self, payload: bytes) -> bytes: ...


Attack = Callable[[Channel], object]
ATTACKS: dict[str, Attack] = {}
NUMBERS: dict[str, int] = {}
LIBC = ctypes.CDLL(None, use_errno=True)


def attack(function: Attack) -> Attack:
    """Add an attack to the corpus."""
    ATTACKS[function.__name__] = function
    return function


def call(name: str, *arguments: Any) -> int:
    """Make a system call by number, past every wrapper.

    Raises:
        OSError: it was refused.
    """
    return raw(NUMBERS[name], *arguments)


def raw(number: int, *arguments: Any) -> int:
    """Make a system call by its bare number.

    Raises:
        OSError: it was refused.
    """
    passed = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    status: int = LIBC.syscall(ctypes.c_long(number), *passed)
    if status < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return status


def prepare(document: bytes) -> None:
    """Take the numbers of this architecture's system calls."""
    import tests.sandbox.attacks.channel
    import tests.sandbox.attacks.files
    import tests.sandbox.attacks.interpreter
    import tests.sandbox.attacks.kernel
    import tests.sandbox.attacks.processes
    import tests.sandbox.attacks.resources
    import tests.sandbox.attacks.shared  # noqa: F401 - each adds its attacks

    NUMBERS.update(json.loads(document))


def run(request: bytes, channel: Channel) -> bytes:
    """Run one attack and say what it got."""
    try:
        loot = ATTACKS[request.decode()](channel)
    except (OSError, PermissionError, ValueError, ImportError, AttributeError, RuntimeError, TypeError) as error:
        return f"refused: {type(error).__name__}: {error}".encode()
    return f"LOOT: {loot!r}"[:10_000].encode() if loot else b"nothing"
