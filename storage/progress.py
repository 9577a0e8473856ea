"""How far work is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with (done, total): bytes for push, get and scrub, objects otherwise; the total is 0 if unknown."""
