"""References to files by id or name, with one order of precedence everywhere."""

from __future__ import annotations

import re
from collections.abc import Callable

from storage.errors import FileNotFound
from storage.formats.versions import Version

_FILE_ID = re.compile(r"[0-9a-f]{32}")


def may_be_id(reference: str) -> bool:
    """Whether ``reference`` has the form of a file id."""
    return _FILE_ID.fullmatch(reference) is not None


def by_id_or_name(
    reference: str, *, stat: Callable[[str], Version], find: Callable[[str], Version | None]
) -> Version | None:
    """The head of the file with this id, otherwise of the file with this name; None if there is neither.

    Ids take precedence, since nobody can choose one: a file named like another's id does not hide that file.

    Args:
        reference: an id or a name.
        stat: returns the head of the file with an id, or raises FileNotFound.
        find: returns the head of the file with a name.
    """
    if may_be_id(reference):
        try:
            return stat(reference)
        except FileNotFound:
            pass  # try it as a name
    return find(reference)
