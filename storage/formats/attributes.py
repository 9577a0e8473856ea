"""Attributes of a version in its record: pairs of a name and a value, in the order of the names."""

from __future__ import annotations

from storage.errors import FormatError, InvalidArgument
from storage.limits import check_attributes

Pairs = tuple[tuple[str, bytes], ...]


def require_canonical(pairs: Pairs) -> None:
    """Check attributes that were read from a record. One without attributes has another format.

    Raises:
        FormatError: there are none, they exceed the limits, are not sorted, or two have the same name.
    """
    try:
        canonical = tuple(check_attributes(dict(pairs)).items())
    except InvalidArgument as error:
        raise FormatError(f"version record has attributes that cannot be: {error}") from error
    if not pairs or canonical != pairs:
        raise FormatError("version record is not in canonical form (attributes)")
