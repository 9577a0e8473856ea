"""Exceptions of user code that do not say what they are, or say it in ways of their own."""

from __future__ import annotations

import importlib
import types
from collections.abc import Callable
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
        (_Ends(), "(its text is not available: SystemExit)"),
        (_SaysItself(), "(its text is not available: RecursionError)"),
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
    assert frames == ["(its frames are not available: SystemExit)"]


class _Uncaused(Exception):
    @property
    def __cause__(self) -> NoReturn:  # type: ignore[override]
        raise SystemExit(3)


def _caught(act: Callable[[], object]) -> BaseException:
    try:
        act()
    except Exception as error:
        return error
    raise AssertionError("it raised nothing")


def test_what_caused_an_exception_is_told_within_bounds() -> None:
    def wraps(cause: BaseException, times: int = 1) -> NoReturn:
        try:
            raise cause
        except Exception as error:
            if times > 1:
                wraps(RuntimeError(str(times)), times - 1)
            raise ValueError("outer") from error

    def handles() -> None:
        try:
            raise KeyError("k")
        except KeyError:
            raise ValueError("outer")  # noqa: B904 - that is what is told

    def hides() -> None:
        try:
            raise KeyError("k")
        except KeyError:
            raise ValueError("outer") from None

    assert failures.causes_of(ValueError("alone")) == []
    assert failures.causes_of(_caught(hides)) == []
    assert failures.causes_of(_caught(handles)) == ["while handling KeyError: 'k'"]
    assert failures.causes_of(_caught(lambda: wraps(_Ends()))) == [
        f"caused by {__name__}._Ends: (its text is not available: SystemExit)"
    ]
    long = failures.causes_of(_caught(lambda: wraps(_Huge(), times=9)))
    assert len(long) == 4
    assert all(len(line) < 600 for line in long)
    loop = ValueError("loop")
    loop.__cause__ = loop
    assert failures.causes_of(loop) == ["caused by ValueError: loop"] * 4
    assert failures.causes_of(_Uncaused()) == ["(its cause is not available: SystemExit)"]


def test_a_module_that_is_missing_amid_a_call_says_how_to_bring_it() -> None:
    missing = failures.how_to_bring(_caught(lambda: importlib.import_module("no_such_module.inner")))
    assert "--include" in missing
    assert "--requirements" in missing
    assert failures.how_to_bring(ModuleNotFoundError("none", name="tkinter.ttk")) == "; sandboxes have no such module"
    assert failures.how_to_bring(ModuleNotFoundError("of no name")) == ""
    assert failures.how_to_bring(ValueError("x")) == ""
