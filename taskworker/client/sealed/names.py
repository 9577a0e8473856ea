"""The form of sealed names, for those who have no key; loads no cryptography."""

from __future__ import annotations

import re
from typing import Protocol

from storage.errors import KeyRequired

PREFIX = "sealed1."
_SEALED = re.compile(r"sealed1\.([A-Za-z0-9_-]{11})\.[A-Za-z0-9_-]{23,}")


class Named(Protocol):
    """A version, or the message that tells of one."""

    @property
    def file_id(self) -> str:
        """The file's id."""

    @property
    def filename(self) -> str:
        """The file's name."""


def key_in(filename: str) -> str | None:
    """The id of the key, as it is written in a sealed name; None: the name is not sealed."""
    match = _SEALED.fullmatch(filename)
    return match and match[1]


def require_readable(version: Named) -> None:
    """Refuse to read a sealed file without its key: nobody wants its ciphertext.

    Raises:
        KeyRequired: the file is sealed.
    """
    if key_in(version.filename) is not None:
        raise KeyRequired(
            f"file {version.file_id} is sealed with a key of its user's; give that key (key=, --key-file) to read it"
        )
