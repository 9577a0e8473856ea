"""How people and functions point at a file: by its id, or else by its name. One order, everywhere."""

from __future__ import annotations

import re
from collections.abc import Callable

from storage.errors import FileNotFound
from storage.formats.versions import Version

_FILE_ID = re.compile(r"[0-9a-f]{32}")


def may_be_id(reference: str) -> bool:
    """Whether this has the form of a file's id."""
    return _FILE_ID.fullmatch(reference) is not None


def by_id_or_name(
    reference: str, *, stat: Callable[[str], Version], find: Callable[[str], Version | None]
) -> Version | None:
    """The head of the file with this id, or else with this name; None if there is neither.

    Ids come first, since nobody can choose one: a file that was named like the id of another does not hide it.

    Args:
        reference: an id or a name.
        stat: gives the head of the file with an id, or raises FileNotFound.
        find: gives the head of the file with a name.
    """
    if may_be_id(reference):
        try:
            return stat(reference)
        except FileNotFound:
            pass  # then it is a name
    return find(reference)
