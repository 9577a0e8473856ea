"""Functions, users, secrets and the audit trail on the page, each for those who may see them."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from html import unescape
from pathlib import Path

import pytest

from taskworker.client.egress import EgressClient
from taskworker.client.secrets import SecretClient
from taskworker.client.users import UserClient
from taskworker.gateways.page.views.functions import arguments_in
from tests.functions.processes import FunctionPool
from tests.gateways.page.conftest import Person

FUNCTION = """
def shout(text: str, times: int = 1) -> str:
    print("<b>shouting</b>", text)
    if text == "fail":
        raise ValueError("<i>no</i>")
    return text.upper() * times
"""


@pytest.fixture(scope="session")
def function(pool: FunctionPool, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A deployed function."""
    directory = tmp_path_factory.mktemp("shouting")
    (directory / "shouting.py").write_text(FUNCTION)
    pool.deploy("page-shout", "shouting:shout", directory)
    pool.await_workers("page-shout", 3)
    return "page-shout"


@pytest.mark.parametrize(
    ("text", "args", "kwargs"),
    [
        ("", [], {}),
        ("1\n\n  two words  \n", ["1", "two words"], {}),
        ('a=1\r\n[1, 2]\r\nb = 2\nc={"d": "e=f"}', ["[1, 2]", "b = 2"], {"a": "1", "c": '{"d": "e=f"}'}),
        ('"x=1"', ['"x=1"'], {}),
    ],
)
def test_arguments_in_forms(text: str, args: list[str], kwargs: dict[str, str]) -> None:
    assert arguments_in(text) == (args, kwargs)


def test_functions_are_called_and_watched(
    ann: Person, olga: Person, function: str, person: Callable[..., Person]
) -> None:
    page = ann.see("/functions")
    assert function in page
    assert '<td class="number">\u2013</td>' in page  # there were no calls that could have taken any time
    assert "0 ms" not in page + ann.see("/function", name=function)
    page = ann.do("/function/call", name=function, arguments="<s>\ntimes=2")
    assert "&lt;S&gt;&lt;S&gt;" in page
    assert 'id="logs-heading"' not in page
    page = ann.do("/function/call", name=function, arguments="fail")
    assert "&lt;i&gt;no&lt;/i&gt;" in page
    assert 'role="alert"' in page
    assert 'role="alert"' in ann.do("/function/call", name=function, arguments="a\nunknown=1")
    page = olga.see("/function", name=function)
    assert "&lt;b&gt;shouting&lt;/b&gt; &lt;s&gt;" in page
    assert "page-shout" in olga.see("/functions")
    assert olga.browser.get("/function?name=nothing").status_code == 404
    reader = person(scopes=["files:read"]).sign_in()
    assert reader.browser.get("/functions").status_code == 403
    assert "Functions" not in reader.see("/files")


def test_operators_manage_users_and_their_tokens(
    url: str, ann: Person, olga: Person, users: UserClient, person: Callable[..., Person]
) -> None:
    name = f"new-{uuid.uuid4().hex[:8]}"
    assert "is added" in olga.do("/user/add", name=name, role="user")
    assert 'role="alert"' in olga.do("/user/add", name=name, role="emperor")
    page = olga.do("/user/token", name=name, label="<b>laptop", scopes="files:read:reports/", expires="day")
    token = re.search(r"twu1\.[\w-]+", page)
    assert token is not None
    page = olga.see("/user", name=name)
    assert token[0] not in page
    assert "&lt;b&gt;laptop" in page
    [made] = users.tokens(name)
    assert made.scopes == ["files:read:reports/"]
    assert made.expires_ms is not None
    holder = Person(url, name, token[0]).sign_in()
    assert holder.browser.get("/files?prefix=reports/").status_code == 200
    assert "revoked" in olga.do("/user/revoke", name=name, token_id=made.token_id)
    assert holder.browser.get("/files?prefix=reports/").status_code == 303
    holder.browser.close()
    assert "is removed" in olga.do("/user/remove", name=name)
    assert olga.browser.get("/user", params={"name": name}).status_code == 400
    auditor = person("auditor").sign_in()
    assert ann.name in auditor.see("/users")
    assert "Make a token" not in auditor.see("/user", name=ann.name)
    for path in ("/user/add", "/user/token", "/user/revoke", "/user/remove"):
        for one in (auditor, ann):
            answer = one.send(path, name=ann.name, role="operator", expires="day", token_id="x", back="/functions")
            assert answer.headers["location"] == "/functions"
    assert [one.role for one in users.users() if one.user == ann.name] == ["user"]


def test_nobody_is_shown_values_of_secrets(olga: Person, pool: FunctionPool, person: Callable[..., Person]) -> None:
    name, value = f"page-{uuid.uuid4().hex[:8]}", "value-that-is-never-shown"
    with SecretClient(pool.address) as secrets, EgressClient(pool.address) as egress:
        secrets.set(name, value)
        secrets.grant(name, "page-shout", ["api.example"])
        egress.allow("page-shout", "https://api.example/v1")
        for one in (olga, person("auditor").sign_in()):
            page = one.see("/secrets")
            assert name in page
            assert "api.example" in page
            assert value not in page
        secrets.remove(name)
        egress.deny("page-shout")


def test_the_audit_trail_shows_who_did_what(olga: Person, ann: Person) -> None:
    ann.browser.get("/users")
    page = olga.see("/audit", text=ann.name)
    assert ann.name in page
    assert "PERMISSION_DENIED" in page
    assert olga.name not in re.sub(r"<header.*?</header>", "", page, flags=re.DOTALL)
    assert "There are no records" in olga.see("/audit", text=uuid.uuid4().hex, since="week")
    assert "records are as they were written" in unescape(olga.do("/audit/verify", back="/audit"))


def test_others_do_not_see_what_is_for_operators(ann: Person, function: str) -> None:
    for path in ("/secrets", "/users", f"/user?name={ann.name}", "/audit"):
        answer = ann.browser.get(path)
        assert answer.status_code == 403
    menu = ann.see("/files")
    for entry in ("Overview", "Secrets", "Users", "Audit"):
        assert f">{entry}</a>" not in menu


def test_pages_name_their_own_styles_and_scripts_by_content(ann: Person) -> None:
    static = Path(__file__).parents[3] / "taskworker/gateways/page/static"
    page = ann.see("/files")
    for name in ("page.css", "page.js"):
        [url] = re.findall(rf'"(/static/{re.escape(name)}\?\w+)"', page)
        answer = ann.browser.get(url)
        assert answer.content == (static / name).read_bytes()
        assert "immutable" in answer.headers["cache-control"]
