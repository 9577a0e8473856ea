"""Recovery keys: what people write down is read again, and slips of the pen are found."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import InvalidArgument
from storage.sealing.master_keys import MasterKey
from storage.sealing.recovery_key import key_of_recovery_text, recovery_rows

LETTERS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
KNOWN = ["000G-40R4-0M30-EG83", "104G-M2RC-1M70-Y4K6", "208H-44RM-2MB1-FWBQ", "30CH-M6RW-3MF1-ZVY4"]
keys = st.binary(min_size=32, max_size=32).map(MasterKey)


@given(keys)
def test_it_is_read_again(key: MasterKey) -> None:
    rows = recovery_rows(key)
    assert all(set(row) <= {*LETTERS, "-"} and len(row) == 19 for row in rows)
    assert key_of_recovery_text("\n".join(rows)).raw == key.raw


def test_its_form_never_changes() -> None:
    assert recovery_rows(MasterKey(bytes(range(32)))) == KNOWN
    assert key_of_recovery_text("\n".join(KNOWN)).raw == bytes(range(32))


@pytest.mark.parametrize(
    "written",
    [
        "# of the pool in the cellar\n1  {0}\n2  {1}\n\n3. {2}\n4: {3}\n",
        "{0} {1} {2} {3}",
        "{0}{1}{2}{3}",
    ],
)
def test_however_it_is_written(written: str) -> None:
    for rows in (KNOWN, [row.lower() for row in KNOWN], [row.replace("0", "o").replace("1", "l") for row in KNOWN]):
        assert key_of_recovery_text(written.format(*rows)).raw == bytes(range(32))
    assert key_of_recovery_text(written.format(*KNOWN).replace("-", " ")).raw == bytes(range(32))


@given(keys, st.integers(0, 3), st.integers(0, 15), st.sampled_from([*LETTERS, "U", "!"]))
def test_a_wrong_character_is_found_with_its_row(key: MasterKey, row: int, at: int, other: str) -> None:
    rows = [line.replace("-", "") for line in recovery_rows(key)]
    if rows[row][at] == other:
        return
    rows[row] = rows[row][:at] + other + rows[row][at + 1 :]
    told = ""
    try:
        found = key_of_recovery_text("\n".join(rows))
    except InvalidArgument as error:
        told = str(error)
    if told:
        assert f"wrong in row {row + 1}:" in told
        assert rows[0] not in told
    else:  # once in 65,536 times, the check of another row is right
        assert [line.replace("-", "") for line in recovery_rows(found)] == rows


def test_rows_in_another_order_and_missing_characters_are_found() -> None:
    first, second, third, fourth = KNOWN
    with pytest.raises(InvalidArgument, match="wrong in row 2 and 3"):
        key_of_recovery_text("\n".join((first, third, second, fourth)))
    for short in (KNOWN[:3], [*KNOWN[:3], fourth[:-1]], [*KNOWN, "A"], []):
        with pytest.raises(InvalidArgument, match="64 in all, and this has"):
            key_of_recovery_text("\n".join(short))
