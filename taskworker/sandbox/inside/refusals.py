"""Why an argument is not taken."""

from __future__ import annotations


class ArgumentRefused(Exception):
    """An argument does not fit its parameter; the text names it."""
