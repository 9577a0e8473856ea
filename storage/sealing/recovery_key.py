"""Recovery keys: a master key as text that people can write on paper and type in again.

A recovery key has four rows of four groups of four characters, in Crockford's base32, which has no I, L, O and U. A
row has 8 bytes of the key, and 2 bytes that check them and the number of the row. So all but one in 65,536 slips of the
pen are found, and the row that they are in.
"""

from __future__ import annotations

import base64
import re

from storage.errors import InvalidArgument
from storage.sealing.aead import KEY_BYTES, derived
from storage.sealing.master_keys import MasterKey

_ROWS = 4
_ROW_BYTES = KEY_BYTES // _ROWS
_CHECK_BYTES = 2
_ROW_CHARACTERS = 16
_GROUP_CHARACTERS = 4
_CHECK = "TaskWorker 2026-11 recovery key: check of a row"
_STANDARD = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_WRITTEN = str.maketrans(_STANDARD, _CROCKFORD)
_READ = str.maketrans(_CROCKFORD + "OIL", _STANDARD + _STANDARD[0] + _STANDARD[1] * 2)
_BETWEEN = re.compile(r"[\s\-\u2010-\u2015.:,]+")


def recovery_rows(key: MasterKey) -> list[str]:
    """Return a key's recovery key, as four rows such as ``7Q3M-VX0D-9ZKA-B2TE``."""
    return [_row(number, key.raw[at : at + _ROW_BYTES]) for number, at in enumerate(range(0, KEY_BYTES, _ROW_BYTES), 1)]


def key_of_recovery_text(text: str) -> MasterKey:
    """Return the key whose recovery key this is.

    Rows may have their numbers before them. Case, spaces and hyphens do not matter, ``O`` is read as zero, and ``I``
    and ``L`` as one. Lines that begin with ``#`` are left out.

    Raises:
        InvalidArgument: it is no recovery key; the text says which rows are wrong, and has nothing of the key.
    """
    lines = [line for line in text.upper().splitlines() if not line.lstrip().startswith("#")]
    groups = [group for group in _BETWEEN.split(" ".join(lines)) if group and group not in ("1", "2", "3", "4")]
    joined = "".join(groups)
    if len(joined) != _ROWS * _ROW_CHARACTERS:
        raise InvalidArgument(
            f"a recovery key has {_ROWS} rows of {_ROW_CHARACTERS} letters and digits, {_ROWS * _ROW_CHARACTERS} in "
            f"all, and this has {len(joined)}"
        )
    rows = [joined[at : at + _ROW_CHARACTERS] for at in range(0, len(joined), _ROW_CHARACTERS)]
    parts = [_part(number, row) for number, row in enumerate(rows, 1)]
    wrong = [str(number) for number, part in enumerate(parts, 1) if part is None]
    if wrong:
        raise InvalidArgument(
            f"the recovery key is wrong in row {' and '.join(wrong)}: compare {'its' if len(wrong) == 1 else 'their'} "
            "letters and digits with what was written down"
        )
    return MasterKey(b"".join(part for part in parts if part is not None))


def _row(number: int, part: bytes) -> str:
    text = base64.b32encode(part + _check(number, part)).decode().translate(_WRITTEN)
    return "-".join(text[at : at + _GROUP_CHARACTERS] for at in range(0, _ROW_CHARACTERS, _GROUP_CHARACTERS))


def _part(number: int, row: str) -> bytes | None:
    """The bytes of the key in a row; None if it is wrong."""
    if set(row) - set(_CROCKFORD + "OIL"):
        return None
    raw = base64.b32decode(row.translate(_READ))
    part, check = raw[:_ROW_BYTES], raw[_ROW_BYTES:]
    return part if check == _check(number, part) else None


def _check(number: int, part: bytes) -> bytes:
    return derived(bytes([number]) + part, _CHECK, _CHECK_BYTES)
