"""AsyncClient is made of Client, and has all its methods."""

from __future__ import annotations

import inspect

import pytest

from scripts.async_client import CLIENT, NOT_AWAITED, generated
from taskworker import AsyncClient, Client

PUBLIC = sorted(name for name in dir(Client) if not name.startswith("_") and callable(getattr(Client, name)))


def test_the_generated_files_are_fresh() -> None:
    for name, text in generated().items():
        assert (CLIENT / name).read_text() == text, "run python scripts/async_client.py"


@pytest.mark.parametrize("name", [name for name in PUBLIC if name not in NOT_AWAITED])
def test_a_coroutine_takes_what_the_method_takes(name: str) -> None:
    method, coroutine = (inspect.signature(getattr(each, name)) for each in (Client, AsyncClient))
    assert list(method.parameters) == list(coroutine.parameters)
    for parameter in method.parameters.values():
        assert coroutine.parameters[parameter.name].default == parameter.default
        assert coroutine.parameters[parameter.name].kind == parameter.kind


def test_both_are_made_of_the_same_arguments() -> None:
    assert list(inspect.signature(Client).parameters) == list(inspect.signature(AsyncClient).parameters)
