"""Who gets in, for how long, and what other sites' pages cannot do."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from taskworker.cli import gateways
from taskworker.cli.exits import ExitCode, Failure
from taskworker.cli.page_process import PageProcess
from taskworker.cli.session import Session, Settings
from taskworker.cli.ui import ui
from taskworker.client.users import UserClient
from taskworker.gateways.page.live import ENDED
from taskworker.gateways.page.sessions import CODE_S, IDLE_S, LASTING_S, SESSIONS_EACH_MAX
from tests.cluster.processes import Process
from tests.functions.processes import FunctionPool
from tests.gateways.page.conftest import Clock, Person

People = Callable[..., Person]


def is_signed_in(one: Person) -> bool:
    answer = one.browser.get("/files")
    assert answer.status_code in (200, 303)
    return answer.status_code == 200


def test_nobody_sees_anything_without_signing_in(url: str) -> None:
    for path in ("/", "/files", "/file?id=1", "/file/content?id=1", "/worker?id=w0", "/file/compare"):
        answer = httpx.get(url + path)
        assert answer.status_code == 303
        assert answer.headers["location"].startswith("/sign-in")
    for path in ("/share", "/unshare", "/file/delete", "/worker/forget", "/sign-out"):
        answer = httpx.post(url + path, data={"csrf": "x"}, headers={"origin": url})
        assert answer.headers["location"] == "/sign-in"
    assert httpx.put(f"{url}/files/upload?name=a", content=b"x", headers={"origin": url}).status_code == 401
    assert httpx.get(url + "/", headers={"accept": "text/event-stream"}).text == ENDED


def test_signing_in_leads_to_what_was_asked_for_and_nowhere_else(url: str, person: People) -> None:
    one = person()
    asked = one.browser.get("/files?prefix=a%2F")
    form = one.browser.get(asked.headers["location"]).text
    assert 'name="next" value="/files?prefix=a%2F"' in form
    answer = one.browser.post("/sign-in", data={"token": one.token, "next": "/files?prefix=a%2F"})
    assert answer.headers["location"] == "/files?prefix=a%2F"
    for elsewhere in ("https://evil.test/", "//evil.test/", "/\\evil.test", "evil", "/a\r\nb: c"):
        answer = one.browser.post("/sign-in", data={"token": one.token, "next": elsewhere})
        assert answer.headers["location"] == "/"


@pytest.mark.parametrize("token", ["", "nonsense", "twl1." + "A" * 43, "twu1." + "A" * 43])
def test_what_is_no_valid_token_does_not_sign_in(url: str, token: str) -> None:
    answer = httpx.post(f"{url}/sign-in", data={"token": token}, headers={"origin": url})
    assert answer.status_code in (400, 401)
    assert "set-cookie" not in answer.headers
    assert 'role="alert"' in answer.text


def test_the_cookie_is_for_this_page_alone(url: str, person: People) -> None:
    one = person()
    answer = one.browser.post("/sign-in", data={"token": one.token})
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"taskworker-{httpx.URL(url).port}=")
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
    assert one.token not in cookie
    assert one.token not in one.see("/files")


def test_revoking_the_token_ends_its_sessions(ann: Person, users: UserClient) -> None:
    assert is_signed_in(ann)
    [token] = users.tokens(ann.name)
    users.revoke(token.token_id)
    assert not is_signed_in(ann)


def test_signing_out_ends_the_session(ann: Person) -> None:
    cookies = dict(ann.browser.cookies)
    assert ann.send("/sign-out").headers["location"] == "/sign-in"
    ann.browser.cookies = httpx.Cookies(cookies)
    assert not is_signed_in(ann)


def test_sessions_end_when_nobody_uses_them_and_after_a_day_at_the_latest(person: People, clock: Clock) -> None:
    one = person().sign_in()
    for _ in range(int(LASTING_S / (0.9 * IDLE_S))):
        clock.now_s += 0.9 * IDLE_S
        assert is_signed_in(one)
    clock.now_s += 0.9 * IDLE_S
    assert not is_signed_in(one)
    one.sign_in()
    clock.now_s += IDLE_S
    assert not is_signed_in(one)


def test_one_user_has_so_many_sessions_at_most(person: People) -> None:
    one = person()
    jars = []
    for _ in range(SESSIONS_EACH_MAX + 1):
        one.browser.cookies.clear()
        one.sign_in()
        jars.append(dict(one.browser.cookies))
    states = []
    for jar in (jars[0], jars[1], jars[-1]):
        one.browser.cookies = httpx.Cookies(jar)
        states.append(is_signed_in(one))
    assert states == [False, True, True]


def test_a_link_signs_in_once_and_soon(url: str, person: People, clock: Clock) -> None:
    one = person()
    bearer = {"authorization": f"Bearer {one.token}"}

    def link() -> str:
        told = httpx.post(f"{url}/sign-in/link", headers=bearer).json()
        assert told["user"] == one.name
        return str(told["path"])

    path = link()
    assert one.token not in path
    for _ in range(2):  # programs that look at links do not use them up
        assert f"Sign in as <bdi>{one.name}</bdi>" in one.see(path)
    assert one.browser.post(path).status_code == 303
    assert is_signed_in(one)
    assert one.browser.get(path).status_code == 410
    assert one.browser.post(path).status_code == 410
    late = link()
    clock.now_s += CODE_S
    assert one.browser.post(late).status_code == 410
    assert httpx.post(f"{url}/sign-in/link", headers={"authorization": "Bearer twu1.x"}).status_code == 400
    assert httpx.post(f"{url}/sign-in/link", headers={**bearer, "origin": url}).status_code == 401


def test_forms_of_other_pages_change_nothing(url: str, ann: Person) -> None:
    ann.upload("kept.txt", b"1")
    csrf = ann.csrf
    attempts = [
        ({"csrf": csrf}, {"origin": "http://evil.test"}, 403),
        ({"csrf": csrf}, {"origin": "null"}, 403),
        ({"csrf": csrf}, {"sec-fetch-site": "cross-site"}, 403),
        ({"csrf": csrf}, {"sec-fetch-site": "same-site"}, 403),
        ({"csrf": "x" * 43}, {}, 403),
        ({}, {}, 403),
    ]
    for fields, headers, status in attempts:
        fields = {**fields, "name": "kept.txt", "with_user": "eve", "expires": "ever"}
        assert ann.browser.post("/share", data=fields, headers=headers).status_code == status
    upload = {"x-csrf": "wrong", "content-type": "application/octet-stream"}
    assert ann.browser.put("/files/upload?name=b", content=b"x", headers=upload).status_code == 403
    page = ann.see("/files")
    assert "eve" not in page
    assert (
        ann.browser.post("/sign-in", data={"token": ann.token}, headers={"origin": "http://e.test"}).status_code == 403
    )


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("page.test", 200),
        ("PAGE.test.:80", 200),
        ("localhost:1", 200),
        ("127.0.0.1", 200),
        ("[::1]:8080", 200),
        ("evil.test", 421),
        ("page.test.evil.test", 421),
        ("", 421),
        ("[::1", 421),
    ],
)
def test_only_its_own_names_are_served(url: str, host: str, status: int) -> None:
    assert httpx.get(f"{url}/sign-in", headers={"host": host}).status_code == status


def test_every_reply_says_what_browsers_may_do_with_it(url: str, ann: Person) -> None:
    ann.upload("a.html", b"<script>alert(1)</script>")
    listing = ann.see("/files")
    content = next(part.split('"')[0] for part in listing.split('href="')[1:] if "/file/content" in part)
    style = next(part.split('"')[0] for part in listing.split('href="')[1:] if "page.css" in part)
    for path in ("/sign-in", "/files", "/nothing", "/file?id=nothing", style, content.replace("&amp;", "&"), "/"):
        answer = ann.browser.get(path)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"
        assert answer.headers["cache-control"] == "no-store" or path == style
    got = ann.browser.get(content.replace("&amp;", "&"))
    assert got.content == b"<script>alert(1)</script>"
    assert got.headers["content-type"] == "application/octet-stream"
    assert got.headers["content-disposition"].startswith("attachment;")
    assert got.headers["content-security-policy"].startswith("sandbox;")


def test_no_page_has_anything_inline_or_from_elsewhere(ann: Person, olga: Person) -> None:
    ann.upload("a.txt", b"1")
    pages = [ann.see("/files"), olga.see("/"), olga.see("/worker", id="w0"), ann.browser.get("/sign-in").text]
    for text in pages:
        assert " style=" not in text
        assert "<style" not in text
        assert " onclick" not in text
        assert "<script>" not in text
        assert "http://" not in text.replace("http://www.w3.org", "")
        assert "https://" not in text


def test_paths_lead_to_nothing_else(url: str, ann: Person) -> None:
    for path in ("/static/../app.py", "/static/%2e%2e%2fapp.py", "/static/..%2f..%2fapp.py", "/%2e%2e/x", "//files"):
        answer = ann.browser.get(url + path)
        assert answer.status_code in (303, 404)
        assert "PageApp" not in answer.text
    assert ann.browser.delete("/files").status_code == 404


def test_forms_are_bounded(ann: Person) -> None:
    many = "&".join(f"f{number}=1" for number in range(100))
    for body in (b"a=" + b"x" * 300_000, many.encode(), b"a=%ff"):
        headers = {"content-type": "application/x-www-form-urlencoded"}
        assert ann.browser.post("/share", content=body, headers=headers).status_code == 400
    assert ann.browser.post("/share", json={}).status_code == 400


def test_commands_do_not_serve_or_send_tokens_to_others_without_tls(pool: FunctionPool) -> None:
    session = Session(Settings(pool=pool.address))
    commands: list[Callable[[], None]] = [
        lambda: gateways.page(session, listen="0.0.0.0:0"),
        lambda: ui(session, listen="0.0.0.0:0"),
        lambda: ui(session, at="http://page.example"),
        lambda: ui(session, at="http://127.0.0.1:1/path"),
        lambda: ui(session, at="nonsense"),
    ]
    for command in commands:
        with pytest.raises(Failure) as failure:
            command()
        assert failure.value.code is ExitCode.USAGE


def test_ui_prints_a_link_of_a_page_that_runs(
    url: str, pool: FunctionPool, person: People, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    ui(Session(Settings(pool=pool.address)), at=url)
    link = capsys.readouterr().out.split()[0]
    assert link.startswith(f"{url}/sign-in/")
    one = person()
    assert one.browser.post(link).status_code == 303
    assert one.see("/")
    with pytest.raises(Failure, match="no page answers"):
        ui(Session(Settings(pool=pool.address)), at="http://127.0.0.1:1")


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/sign-in").status_code == 200
    except httpx.TransportError:
        return False


def test_a_pool_serves_its_page_in_a_process_of_its_own(tmp_path: Path) -> None:
    arguments = ["pool", "--dir", str(tmp_path / "pool"), "--listen", "127.0.0.1:0", "--page", "127.0.0.1:0"]
    pool = Process(arguments, tmp_path / "pool.log")
    try:
        url = str(pool.announced["page"])
        assert "Sign in" in httpx.get(f"{url}/sign-in").text
        (page,) = [one for one in psutil.Process(pool.pid).children() if "page" in one.cmdline()]
        page.kill()
        deadline_s = time.monotonic() + 60
        while page.is_running() or not _answers(url):
            assert time.monotonic() < deadline_s, (tmp_path / "pool.log").read_text()
            time.sleep(0.1)
    finally:
        pool.stop()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/sign-in")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"listen": "0.0.0.0:1"}, "--page-cert"),
        ({"listen": "127.0.0.1:1", "no_auth": True}, "--no-auth"),
        ({"cert": Path("c")}, "need --page"),
        ({"listen": "127.0.0.1:1", "cert": Path("c")}, "belong together"),
    ],
)
def test_pages_that_a_pool_does_not_serve(options: dict[str, Any], why: str) -> None:
    with pytest.raises(Failure, match=why):
        PageProcess(**{"listen": "", "cert": None, "key": None, "no_auth": False, **options})
