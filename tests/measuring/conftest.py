"""The pool that these tests share, and users of each test's own."""

from __future__ import annotations

from tests.shared_files import pool, user

__all__ = ["pool", "user"]
