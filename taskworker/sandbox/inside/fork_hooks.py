"""Keeps what the standard library does in every forked child out of the children of a process with one thread.

``threading`` and ``logging`` make their locks anew after a fork, as a thread that is not in the child may have
held one. A base and a zygote have one thread, which the host checks, so nobody can. Doing it all the same
copied some 200 pages of memory in each call, a third of all that it touched.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

_IDLE = ("threading", "logging")


def leave_out_idle() -> None:
    """Have the hooks of modules that only renew locks not be registered. To be called before they are imported."""
    register: Callable[..., None] = os.register_at_fork

    def register_unless_idle(**hooks: Any) -> None:
        if sys._getframe(1).f_globals.get("__name__") not in _IDLE:
            register(**hooks)

    os.register_at_fork = register_unless_idle
