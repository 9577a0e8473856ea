"""The error for arguments that a function does not take."""

from __future__ import annotations


class ArgumentRefused(Exception):
    """An argument does not fit its parameter. The text says why."""
