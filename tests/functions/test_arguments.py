"""From a call's strings to a function's values, and from its result to JSON."""

from __future__ import annotations

import base64
import collections
import dataclasses
import datetime
import decimal
import enum
import json
import math
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Optional

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AfterValidator, BeforeValidator
from typing_extensions import TypedDict

from taskworker.sandbox.inside import plain as without_pydantic
from taskworker.sandbox.inside import validation
from taskworker.sandbox.inside.arguments import Parameters, value_of
from taskworker.sandbox.inside.refusals import ArgumentRefused
from taskworker.sandbox.inside.results import NoJson, json_of


class Order(pydantic.BaseModel):
    item: str
    count: int = 1


class Blob(pydantic.BaseModel):
    data: bytes


@dataclasses.dataclass
class Point:
    x: float
    y: float


@dataclasses.dataclass
class Picture:
    data: bytes
    parts: list[bytes]


class Told(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
    data: bytes


class Mark(TypedDict):
    data: bytes


class Colour(enum.Enum):
    RED = b"\xff"


def annotated(a: int, b: int = 2, *rest: int, note: str = "", **more: float) -> int:
    return 0


def plain(a, b=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    return a, b


def bound(function: Any, *args: str, **kwargs: str) -> dict[str, Any]:
    return dict(Parameters(function).bind(args, kwargs).arguments)


def test_numbers_are_numbers_with_and_without_annotations() -> None:
    assert bound(annotated, "3", "4") == {"a": 3, "b": 4, "rest": (), "note": "", "more": {}}
    assert bound(plain, "3", "4") == {"a": 3, "b": 4}
    assert bound(plain, "3.5", b="null") == {"a": 3.5, "b": None}


def test_a_bare_word_is_a_text() -> None:
    assert bound(plain, "hello", '"3"') == {"a": "hello", "b": "3"}
    assert bound(plain, "", "NaN") == {"a": "", "b": "NaN"}
    assert value_of("[1, 2") == "[1, 2"
    assert value_of('{"a": [1, "二"]}') == {"a": [1, "二"]}


def test_a_parameter_for_texts_takes_numbers_as_they_stand() -> None:
    def greet(name: str, code: str | None = None) -> str:
        return name

    assert bound(greet, "007") == {"name": "007", "code": None}
    assert bound(greet, "7", "1e3") == {"name": "7", "code": "1e3"}
    assert bound(greet, '"quoted"', "null") == {"name": "quoted", "code": None}


def _ordinary(value: Any) -> Any:
    if value in ("admin", 3, [3]):
        raise ValueError("reserved")
    return value


@pytest.mark.parametrize(
    ("hint", "refused"),
    [
        (Annotated[str, AfterValidator(_ordinary)], ["admin", '"admin"', ' "admin"', '\t"admin"']),
        (Annotated[str, pydantic.Field(min_length=5)], ['"abc"', "abc", "3"]),
        (Annotated[str, pydantic.Field(max_length=0)], ['"abc"', "3", "[]", "null"]),
        (Annotated[Any, AfterValidator(_ordinary)], ["3", "[3]", '"admin"']),
        (Annotated[int, AfterValidator(_ordinary)] | str, ["3"]),
        (str | list[int], ['[1, "x"]']),
        (Annotated[object, BeforeValidator(_ordinary)], ["3", "[3]"]),
        (Literal["admin"], ['"\\"admin\\""', '"other"', "3"]),
        (pydantic.Json[int], ['"x"', "x"]),
        (str, ['"\\ud800"']),
    ],
)
def test_what_a_parameter_s_own_checks_refuse_is_not_taken_in_another_form(hint: Any, refused: list[str]) -> None:
    def function(value: hint) -> None: ...

    function.__annotations__ = {"value": hint}
    for text in refused:
        with pytest.raises(ArgumentRefused, match="'value'"):
            bound(function, text)


def test_a_check_sees_each_value_once() -> None:
    seen: list[object] = []

    def note(value: object) -> object:
        seen.append(value)
        return value

    def function(value: Any) -> None: ...

    function.__annotations__ = {"value": Annotated[Any, BeforeValidator(note)]}
    for text in ("word", "3", '"3"', "[1]"):
        bound(function, text)
    assert seen == ["word", 3, "3", [1]]


def test_a_decimal_keeps_its_digits() -> None:
    def function(value: decimal.Decimal, other: Annotated[decimal.Decimal | None, "a note"] = None) -> None: ...

    digits = "0.12345678901234567890123"
    assert bound(function, digits, digits) == {"value": decimal.Decimal(digits), "other": decimal.Decimal(digits)}
    assert bound(function, "-1e3", "null") == {"value": decimal.Decimal("-1e3"), "other": None}
    with pytest.raises(ArgumentRefused, match="'value'"):
        bound(function, "1.2.3")


def test_json_that_python_cannot_read_is_no_text() -> None:
    def take(value: str) -> None: ...

    for text in ("9" * 5000, f"[{'9' * 5000}]", "[" * 3000 + "]" * 3000):
        with pytest.raises(ArgumentRefused, match=r"'a': it (is nested too deeply|has a number of too many digits)"):
            bound(plain, text)
        assert bound(take, text) == {"value": text}
    assert bound(plain, "9" * 5000 + "x") == {"a": "9" * 5000 + "x", "b": None}
    assert bound(plain, "1e999", "-1e999") == {"a": "1e999", "b": "-1e999"}
    assert bound(plain, "1e308", "1e-999") == {"a": 1e308, "b": 0.0}


def test_extra_arguments_are_converted_one_by_one() -> None:
    arguments = bound(annotated, "1", "2", "3", "4", note="5", weight="1.5")
    assert arguments == {"a": 1, "b": 2, "rest": (3, 4), "note": "5", "more": {"weight": 1.5}}


BYTES = (b"", b"\xff", b"\xff\xfe", b"\xff\xff\xff", bytes(range(240, 256)), b"plain", bytes(range(256)))


@pytest.mark.parametrize("data", BYTES, ids=len)
def test_bytes_are_standard_base64_everywhere(data: bytes) -> None:
    def take(data: bytes, picture: Picture, pictures: list[Picture], mark: Mark) -> None: ...

    sent = base64.b64encode(data).decode()
    for form in (bytes, bytearray, memoryview):
        assert json.loads(json_of(form(data), "it")) == sent
    held = {"a": [data], "b": Picture(data, [data]), "c": {data}, "d": iter_of(data), "e": collections.deque([data])}
    picture = {"data": sent, "parts": [sent]}
    assert json.loads(json_of(held, "it")) == {"a": [sent], "b": picture, "c": [sent], "d": [sent], "e": [sent]}
    assert json.loads(json_of({data: 1, (1, 2): {"x": [data]}}, "it")) == {sent: 1, "1,2": {"x": [sent]}}
    assert json.loads(json_of([Colour.RED, {Colour.RED: 1}], "it")) == ["/w==", {"/w==": 1}]
    for text in (sent, base64.urlsafe_b64encode(data).decode(), sent.rstrip("=")):
        of = json.dumps({"data": text, "parts": [text]})
        taken = bound(take, json.dumps(text), of, f"[{of}]", json.dumps({"data": text}))
        own = Picture(data, [data])
        assert taken == {"data": data, "picture": own, "pictures": [own], "mark": {"data": data}}


def iter_of(data: bytes) -> Iterator[bytes]:
    yield data


def test_models_say_themselves_how_their_bytes_are_written() -> None:
    def take(blob: Blob, told: Told) -> None: ...

    assert bound(take, '{"data": "////"}', '{"data": "////"}') == {
        "blob": Blob(data=b"////"),
        "told": Told(data=b"\xff" * 3),
    }
    assert json_of([Blob(data=b"////"), Told(data=b"abc")], "it") == '[{"data":"////"},{"data":"YWJj"}]'


def test_models_dataclasses_times_and_bytes() -> None:
    def take(order: Order, at: datetime.datetime, data: bytes, point: Point) -> None: ...

    taken = bound(
        take, '{"item": "tea"}', "2026-11-25T10:00:00Z", base64.b64encode(b"\0\xff").decode(), '{"x": 1, "y": 2}'
    )
    assert taken["order"] == Order(item="tea", count=1)
    assert taken["at"] == datetime.datetime(2026, 11, 25, 10, tzinfo=datetime.UTC)
    assert taken["data"] == b"\0\xff"
    assert taken["point"] == Point(1, 2)


@pytest.mark.parametrize(
    ("args", "kwargs", "named"),
    [
        (["x", "4"], {}, "'a'"),
        (["1", "4.5"], {}, "'b'"),
        (["1", "2", "three"], {}, "'rest'"),
        (["1"], {"weight": "heavy"}, "weight"),
        ([], {}, "'a'"),
        (["1"], {"a": "2"}, "'a'"),
    ],
)
def test_a_misfit_names_its_parameter(args: list[str], kwargs: dict[str, str], named: str) -> None:
    with pytest.raises(ArgumentRefused, match=named):
        Parameters(annotated).bind(args, kwargs)


def test_too_many_arguments_tell_what_the_function_takes() -> None:
    with pytest.raises(ArgumentRefused, match=r"too many positional arguments; the function takes \(a, b=None\)"):
        bound(plain, "1", "2", "3")


def test_a_huge_misfit_is_told_briefly() -> None:
    with pytest.raises(ArgumentRefused) as refused:
        bound(annotated, "x" * 1_000_000)
    assert len(str(refused.value)) < 500


HINTS = (
    *(int, float, str, bool, Any, list, dict, list[int], list[list[str]], dict[str, Any], dict[str, list[float]]),
    *(int | None, str | None, Optional[bool], list[str] | None, typing.List[int], typing.Dict[str, int]),  # noqa: UP006, UP045
    *(list[Any], dict[int, int], list[bytes], bytes, datetime.datetime, int | str | None, None),
)
ODD_TEXTS = ("NaN", "[NaN]", "Infinity", "-Infinity", "1e999", "-0", "1" * 4_299, "1" * 5_000, "[" * 300, '"\\ud800"')
JSON_TEXTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=5,
).map(json.dumps)
TEXTS = (
    JSON_TEXTS
    | st.sampled_from(("null", " null", "true", "3", "-7", "2.5", "[1, 2]", '["a"]'))
    | st.sampled_from(('{"a": [1.5]}', '{"a": 1, "a": 2}'))
    | st.text(max_size=20)
    | st.text('0123456789.eE+-NaInfity"[]{}:, \t\\ud8', max_size=12)
    | st.sampled_from(ODD_TEXTS)
)


def outcome(hint: Any, texts: list[str]) -> object:
    def function(a: hint, b: hint = 1) -> None: ...

    function.__annotations__ = {} if hint is None else {"a": hint, "b": hint}
    try:
        return repr(Parameters(function).take(texts, {}))
    except ArgumentRefused as error:
        return str(error)


@given(st.sampled_from(HINTS), st.lists(TEXTS, max_size=3))
def test_the_short_ways_end_where_the_long_way_does(hint: Any, texts: list[str]) -> None:
    require_one_outcome(hint, texts)


@pytest.mark.parametrize("text", ODD_TEXTS, ids=lambda text: text[:12])
def test_the_short_ways_read_odd_texts_as_the_long_way_does(text: str) -> None:
    for hint in HINTS:
        require_one_outcome(hint, [text])


def require_one_outcome(hint: Any, texts: list[str]) -> None:
    """By short ways and by the long one."""
    found = outcome(hint, texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(without_pydantic, "taker", lambda _hint: None)
        patch.setattr(validation, "read_alike", lambda _text: False)
        patch.setattr(Parameters, "take", lambda self, args, kwargs: _by_binding(self, args, kwargs))
        assert outcome(hint, texts) == found


def _by_binding(parameters: Parameters, args: list[str], kwargs: dict[str, str]) -> tuple[object, object]:
    bound = parameters.bind(args, kwargs)
    given_first = len(args)  # what is not given, the function's defaults stand for
    return list(bound.args[:given_first]), bound.kwargs


@given(st.text(max_size=50))
def test_any_text_is_some_value(text: str) -> None:
    json.dumps(value_of(text), allow_nan=False)


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**53), 2**53)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=10,
    )
)
def test_json_goes_in_and_out_unchanged(value: Any) -> None:
    assert value_of(json.dumps(value)) == value
    try:
        value_text = json_of(value, "it")
    except NoJson:
        assert "\\ud" in json.dumps(value)  # lone surrogates have no UTF-8
    else:
        assert json.loads(value_text) == value


def test_results_of_many_types() -> None:
    result = {
        "order": Order(item="tea"),
        "point": Point(1.5, 2),
        "at": datetime.datetime(2026, 11, 25, tzinfo=datetime.UTC),
        "data": b"\0\xff",
        "set": {1},
        "tuple": (1, 2),
    }
    assert json.loads(json_of(result, "it")) == {
        "order": {"item": "tea", "count": 1},
        "point": {"x": 1.5, "y": 2},
        "at": "2026-11-25T00:00:00Z",
        "data": base64.b64encode(b"\0\xff").decode(),
        "set": [1],
        "tuple": [1, 2],
    }


def _endless() -> list[Any]:
    loop: list[Any] = []
    loop.append(loop)
    return loop


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (object(), "object"),
        (lambda: 0, "function"),
        ({"deep": [object()]}, "object"),
        (math.nan, "not finite"),
        ([1, math.inf], "not finite"),
        (_endless(), "contains itself"),
        ("\ud800", "surrogates"),
        ([10**5000], "too many digits"),
        (Order, "unknown type"),
        (Blob(data=b"\xff"), "a model has bytes"),
        ({"key": Order(item="\ud800")}, "surrogates"),
    ],
)
def test_what_json_cannot_hold_is_named(value: object, named: str) -> None:
    with pytest.raises(NoJson, match=f"^it cannot be sent as JSON: .*{named}"):
        json_of(value, "it")
