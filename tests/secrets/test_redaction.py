"""What a call was given does not come out in what it prints, or in the errors it ends with."""

from __future__ import annotations

import base64
import contextlib
import json
import urllib.parse
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import FileStorage
from taskworker.calls import redaction
from taskworker.calls.call import Call, CallReport, OutputLine, RunningCall
from taskworker.calls.capabilities import NoCapabilities
from taskworker.calls.redaction import CallRedactors, Redactor
from taskworker.calls.spec import FunctionSpec
from taskworker.errors import FunctionFailed
from taskworker.functions.hosting.host import FunctionHost
from taskworker.functions.hosting.user_files import EmbeddedFiles
from taskworker.functions.packing.modules import pack_module

SECRET = 'p4ss/wörd+ "quoted"?&=%'


OUTER, INNER, OTHER = Call("f", call_id="1"), Call("inner", call_id="1", chain=("f",)), Call("g", call_id="2")


def redactor_of(*values: str) -> Redactor:
    redactor = Redactor()
    for value in values:
        redactor.add(value)
    return redactor


@pytest.mark.parametrize(
    "form",
    [
        SECRET,
        base64.b64encode(SECRET.encode()).decode(),
        base64.b64encode(SECRET.encode()).decode().rstrip("="),
        base64.urlsafe_b64encode(SECRET.encode()).decode(),
        urllib.parse.quote(SECRET),
        urllib.parse.quote(SECRET, safe=""),
        urllib.parse.quote_plus(SECRET),
        SECRET.encode().hex(),
        SECRET.encode().hex().upper(),
        json.dumps(SECRET)[1:-1],
        json.dumps(SECRET, ensure_ascii=False)[1:-1],
        repr(SECRET)[1:-1],
        repr(SECRET.encode())[2:-1],
    ],
)
def test_a_value_and_its_encodings_are_replaced(form: str) -> None:
    assert redactor_of(SECRET).text(f"before <{form}> after") == "before <***> after"


@settings(max_examples=60)
@given(
    value=st.text("abcXYZ019-_", min_size=16, max_size=40), before=st.binary(max_size=9), after=st.binary(max_size=9)
)
def test_a_value_within_a_longer_base64_text_is_replaced(value: str, before: bytes, after: bytes) -> None:
    redactor = redactor_of(value)
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        shown = redactor.text(encode(before + value.encode() + after).decode())
        assert "***" in shown
        # At most the characters at the edges, which neighbours decide as well, are left.
        assert len(shown) <= len(encode(before + after)) + 3 + 8


def test_the_longer_of_two_goes_first_and_lines_go_alone() -> None:
    assert redactor_of("secret", "secret-and-more").text("secret-and-more secret") == "*** ***"
    key = "-----BEGIN KEY-----\nMIIBVgIBADANBgkqhkiG\n9w0BAQEFAASC\n-----END KEY-----"
    redactor = redactor_of(key)
    assert redactor.text(f"a {key} b") == "a *** b"
    assert redactor.text("it has MIIBVgIBADANBgkqhkiG in it") == "it has *** in it"
    assert redactor_of("x").text("axe 78 eA==") == "a***e 78 eA=="


MANY = "\n".join(f"{number:05}/{SECRET}" for number in range(100))
"""A value of many lines, whose forms are looked for all at once."""


@pytest.mark.parametrize("line", MANY.split("\n")[::33])
def test_each_line_of_a_long_value_goes_in_all_its_forms(line: str) -> None:
    hidden = redactor_of(MANY, "x", "abc").text
    for form in (line, base64.b64encode(line.encode()).decode(), urllib.parse.quote(line), line.encode().hex()):
        assert hidden(f"before <{form}> after") == "before <***> after"
        assert hidden(form) == "***"
        assert hidden(f"{form}{form} {form}") == "****** ***"
    assert hidden(f"{line}\n{line}") == "***\n***"
    assert hidden(MANY) == "***"
    assert hidden(f"abc, x: {line[:-1]}") == f"***, ***: {line[:-1]}"


@settings(max_examples=60)
@given(
    st.lists(st.text("ab\n", min_size=1, max_size=12), min_size=1, max_size=8),
    st.text("ab\n", max_size=60),
)
def test_one_pass_for_many_forms_hides_what_a_pass_for_each_does(values: list[str], text: str) -> None:
    forms = {form for value in values for form in redaction._forms(value) if len(form) >= 4}
    hidden = redaction._ManyForms(forms).hidden_in(text)
    assert not any(form in hidden for form in forms)
    kept = [part for part in hidden.split("***") if part]
    assert all(part in text for part in kept)
    if not any(form in text for form in forms):
        assert hidden == text


def test_a_report_keeps_its_result_and_loses_the_rest() -> None:
    report = CallReport(
        result=json.dumps("the-secret"),
        error=FunctionFailed("KeyError: 'the-secret'"),
        output=[OutputLine(1, "stdout", "got the-secret"), OutputLine(2, "stderr", "nothing")],
    )
    redactor_of("the-secret").report(report)
    assert str(report.error) == "KeyError: '***'"
    assert report.output == [OutputLine(1, "stdout", "got ***"), OutputLine(2, "stderr", "nothing")]
    assert json.loads(report.result) == "the-secret"


def test_calls_that_one_led_to_share_what_it_was_given() -> None:
    redactors = CallRedactors()
    with redactors.during(OUTER) as outer, redactors.during(OTHER) as other:
        with redactors.during(INNER) as inner:
            redactors.given(INNER, "the-secret")
            assert inner.text("the-secret") == "***"
            assert other.text("the-secret") == "the-secret"
        assert outer.text("the-secret") == "***"
    with redactors.during(OUTER) as later:
        assert later.text("the-secret") == "the-secret"
    redactors.given(OUTER, "late")  # a call that is over


def test_what_is_given_to_a_function_concerns_all_its_calls() -> None:
    redactors = CallRedactors()
    with redactors.during(OUTER) as outer, redactors.during(OTHER) as other:
        with redactors.during(INNER):
            redactors.given_to("inner", "the-secret")
        redactors.given_to("inner", "too late")
        redactors.given_to("g", "another")
        assert outer.text("the-secret, too late, another") == "***, too late, another"
        assert other.text("the-secret, too late, another") == "the-secret, too late, ***"


def test_an_error_that_ends_a_call_is_redacted_on_its_way() -> None:
    redactors = CallRedactors()

    def fails() -> None:
        with redactors.during(OUTER):
            redactors.given(OUTER, "the-secret")
            raise FunctionFailed("told the-secret")

    with pytest.raises(FunctionFailed, match=r"^told \*\*\*$"):
        fails()


LEAKY = """
from taskworker.inside import worker


def leaks():
    value = worker.get_secret("key")
    print("got", value)
    print("x" * 3_995 + value)
    raise ValueError(f"refused: {value}")
"""


class Giving(NoCapabilities):
    def secret(self, name: str) -> str:
        return f"value-of-{name}"


def test_a_worker_tells_its_pool_nothing_of_what_a_call_was_given(tmp_path: Path) -> None:
    (tmp_path / "leaky.py").write_text(LEAKY)
    packed = pack_module("leaky:leaks", FunctionSpec(name="leaks", entry="leaky:leaks"), root=tmp_path)
    with contextlib.closing(FileStorage.open(tmp_path / "store")) as store:
        host = FunctionHost(
            tmp_path / "functions",
            lambda call, _timeout_s: EmbeddedFiles(store, call.user_id),
            lambda call, _timeout_s, _asking: call.function,
            lambda _call, _timeout_s, _asking: Giving(),
        )
        with contextlib.closing(host):
            host.register(packed)
            report = host.run(host.own_function("leaks"), Call("leaks"), 60.0, RunningCall())
    assert str(report.error).splitlines()[0] == "ValueError: refused: ***"
    # Also where a long line is cut: in the middle of it.
    assert [line.text for line in report.output] == ["got ***", "x" * 3_995 + "***"]


REMEMBERING = """
from taskworker.inside import worker


def remembers(ask: bool):
    global value
    if ask:
        value = worker.get_secret("key")
    else:
        print("remembered", globals().get("value"))
"""


def test_a_process_that_serves_several_calls_tells_no_secret_of_an_earlier_one(tmp_path: Path) -> None:
    (tmp_path / "remembering.py").write_text(REMEMBERING)
    spec = FunctionSpec(name="remembers", entry="remembering:remembers", isolation="user")
    packed = pack_module("remembering:remembers", spec, root=tmp_path)
    with contextlib.closing(FileStorage.open(tmp_path / "store")) as store:
        host = FunctionHost(
            tmp_path / "functions",
            lambda call, _timeout_s: EmbeddedFiles(store, call.user_id),
            lambda call, _timeout_s, _asking: call.function,
            lambda _call, _timeout_s, _asking: Giving(),
        )
        with contextlib.closing(host):
            host.register(packed)
            function = host.own_function("remembers")
            assert host.run(function, Call("remembers", ("true",)), 60.0, RunningCall()).error is None
            report = host.run(function, Call("remembers", ("false",)), 60.0, RunningCall())
            other = host.run(function, Call("remembers", ("false",), user_id="bob"), 60.0, RunningCall())
    assert [line.text for line in report.output] == ["remembered ***"]
    assert [line.text for line in other.output] == ["remembered None"]
