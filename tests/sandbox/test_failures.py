"""Exceptions of user code that do not say what they are, or say it in ways of their own."""

from __future__ import annotations

import types
from typing import Any, NoReturn

import pytest

from taskworker.sandbox.inside import failures


class _Ends(Exception):
    def __str__(self) -> NoReturn:
        raise SystemExit(3)


class _SaysItself(Exception):
    def __str__(self) -> str:
        return str(self)


class _Odd(str):
    __slots__ = ()

    def encode(self, *_: Any) -> bytes:
        return b"\xff"

    def __getitem__(self, _: Any) -> str:
        raise KeyboardInterrupt

    def __len__(self) -> int:
        raise KeyboardInterrupt


class _SaysOdd(Exception):
    def __str__(self) -> str:
        return _Odd("odd \ud800")


class _Huge(Exception):
    def __str__(self) -> str:
        return "x" * 10_000_000


class _Nowhere(Exception):
    pass


class _Meta(type):
    @property
    def __name__(cls) -> NoReturn:  # type: ignore[override]
        raise SystemExit(3)


class _Nameless(Exception, metaclass=_Meta):
    pass


_Nowhere.__module__ = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (_Ends(), "(its text cannot be had: SystemExit)"),
        (_SaysItself(), "(its text cannot be had: RecursionError)"),
        (_SaysOdd(), "odd ?"),
        (_Huge(), "x" * 4000 + "..."),
        (_Nameless("said"), "said"),
    ],
)
def test_what_an_exception_says_is_told_however_it_says_it(error: Exception, text: str) -> None:
    assert failures.text_of(error) == text
    assert failures.type_name(error).endswith(type.__dict__["__qualname__"].__get__(type(error)))


def test_a_class_of_no_module_has_a_name() -> None:
    assert failures.type_name(_Nowhere()) == "_Nowhere"


def test_a_module_that_does_not_give_its_source_costs_the_frames_alone() -> None:
    class Loader:
        def get_source(self, _: str) -> NoReturn:
            raise SystemExit(3)

    module = types.ModuleType("app")
    vars(module)["__loader__"] = Loader()
    exec(compile("def f(): 1 / 0", f"{failures.CODE}app/app.py", "exec"), vars(module))
    with pytest.raises(ZeroDivisionError) as raised:
        module.f()
    frames = failures.frames_of(raised.value.__traceback__)
    assert frames == ["(its frames cannot be had: SystemExit)"]
