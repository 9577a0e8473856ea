"""Addresses that gateways cannot listen on are refused with the cause, in one line."""

from __future__ import annotations

import socket

import pytest

from taskworker.errors import StorageUnavailable
from taskworker.gateways.listening import listening


def test_a_taken_address_is_named_with_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(StorageUnavailable) as raised:
            listening(address)
    assert str(raised.value) == (
        f"cannot listen on {address} (Address already in use): is another server running there? Stop it, or choose "
        "another address"
    )


def test_a_name_that_cannot_be_looked_up_is_told_in_words() -> None:
    with pytest.raises(StorageUnavailable, match=r"cannot listen on nowhere\.invalid:9 \(") as raised:
        listening("nowhere.invalid:9")
    assert "Unknown error" not in str(raised.value)
