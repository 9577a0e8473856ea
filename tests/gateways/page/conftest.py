"""The page over the pool that the tests of gateways share, and people who are signed in to it."""

from __future__ import annotations

import re
import threading
import uuid
from collections.abc import Callable, Iterator
from html import unescape
from typing import Any

import httpx
import pytest

from taskworker.client.users import UserClient
from taskworker.gateways.http_server import HttpServer
from taskworker.gateways.page.app import PageApp
from tests.functions.processes import FunctionPool

_CSRF = re.compile(r'<body data-csrf="([^"]+)"')


class Person:
    """Somebody with a browser that runs no scripts."""

    def __init__(self, url: str, name: str, token: str) -> None:
        self.name = name
        self.token = token
        self.browser = httpx.Client(base_url=url, timeout=30, headers={"origin": url, "sec-fetch-site": "same-origin"})

    def sign_in(self) -> Person:
        """Sign in with the token."""
        answer = self.browser.post("/sign-in", data={"token": self.token})
        assert answer.status_code == 303, answer.text
        return self

    def see(self, path: str, **parameters: str) -> str:
        """The HTML of a page."""
        answer = self.browser.get(path, params=parameters or None)
        assert answer.status_code == 200, (answer.status_code, answer.headers, answer.text)
        return answer.text

    @property
    def csrf(self) -> str:
        """What forms of this session have in them."""
        found = _CSRF.search(self.browser.get("/nothing").text)
        assert found is not None
        return unescape(found[1])

    def send(self, path: str, **fields: str) -> httpx.Response:
        """Send a form."""
        return self.browser.post(path, data={"csrf": self.csrf, **fields})

    def do(self, path: str, **fields: str) -> str:
        """Send a form of the page with files, and return the page that it leads to."""
        answer = self.send(path, **{"back": "/files", **fields})
        assert answer.status_code == 303, (answer.status_code, answer.text)
        return self.see(answer.headers["location"])

    def upload(self, name: str, content: bytes, **parameters: str) -> httpx.Response:
        """Upload a file."""
        headers = {"x-csrf": self.csrf, "content-type": "application/octet-stream"}
        return self.browser.put("/files/upload", params={"name": name, **parameters}, content=content, headers=headers)


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(scope="session")
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def page(pool: FunctionPool, clock: Clock) -> Iterator[HttpServer]:
    """The page in a thread of this process, over a real pool."""
    app = PageApp(pool.address, names=("page.test",), clock_s=clock)
    server = HttpServer(app, "127.0.0.1:0", on_stop=app.stop)
    thread = threading.Thread(target=server.run, name="page")
    thread.start()
    yield server
    server.stop()
    thread.join(30)
    assert not thread.is_alive(), "the page did not stop"


@pytest.fixture(scope="session")
def url(page: HttpServer) -> str:
    return f"http://{page.address}"


@pytest.fixture(scope="session")
def users(pool: FunctionPool) -> Iterator[UserClient]:
    """The pool's users, as their operator."""
    with UserClient(pool.address) as users:
        yield users


@pytest.fixture
def person(url: str, users: UserClient) -> Iterator[Callable[..., Person]]:
    """Makes new people, who are not signed in yet."""
    made: list[Person] = []

    def make(role: str = "user", **token: Any) -> Person:
        name = f"{role}-{uuid.uuid4().hex[:10]}"
        users.add(name, role)
        one = Person(url, name, users.create_token(name, **token)[0])
        made.append(one)
        return one

    yield make
    for one in made:
        one.browser.close()


@pytest.fixture
def ann(person: Callable[..., Person]) -> Person:
    """A user who is signed in."""
    return person().sign_in()


@pytest.fixture
def olga(person: Callable[..., Person]) -> Person:
    """An operator who is signed in."""
    return person("operator").sign_in()
