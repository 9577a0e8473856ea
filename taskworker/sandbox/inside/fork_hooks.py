"""Removes fork hooks of the standard library that are unnecessary in a process with one thread.

``threading`` and ``logging`` renew their locks in a forked child, as another thread of the parent may have held one.
The base and the zygotes have a single thread, which the host checks, so no lock can be held. The hooks made each call
copy some 200 pages of memory, a third of all that it touched.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

_IDLE = ("threading", "logging")


def leave_out_idle() -> None:
    """Ignore the fork hooks of modules that only renew locks. Must be called before these modules are imported."""
    register: Callable[..., None] = os.register_at_fork

    def register_unless_idle(**hooks: Any) -> None:
        if sys._getframe(1).f_globals.get("__name__") not in _IDLE:
            register(**hooks)

    os.register_at_fork = register_unless_idle
