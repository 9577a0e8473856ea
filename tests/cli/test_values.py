"""Values that are converted without pydantic become what typer makes of them, and are refused as it refuses them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

from taskworker.cli.app import app_for
from taskworker.cli.values import UNSURE, ConvertedLightly


def _parameters() -> Iterator[tuple[str, Any]]:
    def walk(command: Any, words: list[str]) -> Iterator[tuple[str, Any]]:
        for parameter in command.params:
            if hasattr(parameter, "type_descriptor"):
                yield " ".join([*words, parameter.name]), parameter
        for name, below in getattr(command, "commands", {}).items():
            yield from walk(below, [*words, name])

    yield from walk(typer.main.get_command(app_for(())), [])


def _key(parameter: Any) -> str:
    """What its conversion depends on."""
    rules = parameter.type_descriptor.parameter_info
    kept = ("min", "max", "clamp", "exists", "file_okay", "dir_okay", "writable", "readable", "parser", "allow_dash")
    several = parameter.multiple or parameter.nargs == -1
    return f"{parameter.type_descriptor.annotation} {several} {[getattr(rules, name) for name in kept]}"


ALL = dict(_parameters())
DIFFERENT = {_key(parameter): name for name, parameter in ALL.items()}
_TEXTS = st.one_of(
    st.sampled_from(["", ".", "-", "file", "directory", "directory/", "missing", "/", "~", "file/", "a//b", "\udcff"]),
    st.sampled_from(
        ["0", "00", "7", "-7", "+7", "1_0", " 5", "5 ", "1.", ".5", "1e3", "nan", "inf", "0.50", "٣", "10" * 9]
    ),
    st.sampled_from(["call", "Call", "user", "list", "log", "show", "text", "json", "JSON"]),
    st.integers().map(str),
    st.floats().map(str),
    st.text(max_size=8),
)


@pytest.fixture(autouse=True, scope="module")
def _somewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    place = tmp_path_factory.mktemp("values")
    (place / "file").touch()
    (place / "directory").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        yield


def _outcome(converter: Any, value: Any, parameter: Any) -> tuple[object, object]:
    try:
        converted = converter.coerce(value, param=parameter, ctx=None)
    except typer.BadParameter as error:
        return "refused", str(error)
    return type(converted), repr(converted)


@settings(max_examples=500)
@given(name=st.sampled_from(sorted(DIFFERENT.values())), texts=st.lists(_TEXTS, min_size=1, max_size=3))
def test_a_value_becomes_what_it_does_with_pydantic(name: str, texts: list[str]) -> None:
    parameter = ALL[name]
    value = tuple(texts) if parameter.multiple or parameter.nargs == -1 else texts[0]
    typers_own = type(parameter).get_runtime_param(parameter)
    assert _outcome(ConvertedLightly(parameter), value, parameter) == _outcome(typers_own, value, parameter)


def test_defaults_are_what_they_are_with_pydantic_and_need_none() -> None:
    for name, parameter in ALL.items():
        default = parameter.default() if callable(parameter.default) else parameter.default
        typers_own = type(parameter).get_runtime_param(parameter)
        converted = ConvertedLightly(parameter)
        assert _outcome(converted, default, parameter) == _outcome(typers_own, default, parameter), name
        assert converted._converted(default) is not UNSURE or parameter.is_flag, name


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [(int, "20", 20), (float, "1.5", 1.5), (str, "a b", "a b"), (Path, "x/y", Path("x/y"))],
)
def test_usual_values_need_no_pydantic(annotation: type, text: str, value: object) -> None:
    parameter = next(one for one in ALL.values() if one.type_descriptor.annotation is annotation)
    assert ConvertedLightly(parameter)._converted(text) == value
