"""The page by TLS, and uploads that break off."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trustme

from taskworker.client import Client
from taskworker.client.users import UserClient
from taskworker.gateways.http_server import HttpServer
from taskworker.gateways.page.app import PageApp
from taskworker.gateways.page.names import names_in
from tests.functions.processes import FunctionPool
from tests.gateways.page.conftest import Person


@pytest.fixture
def by_tls(pool: FunctionPool, tmp_path: Path) -> Iterator[tuple[str, ssl.SSLContext]]:
    """The page by TLS: its URL, and what trusts its certificate."""
    authority = trustme.CA()
    issued = authority.issue_cert("page.example", "*.wild.example", "127.0.0.1")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(key)
    assert names_in(certificate) == ["page.example"]
    app = PageApp(pool.address, names=names_in(certificate), is_secure=True)
    server = HttpServer(app, "127.0.0.1:0", certificate=certificate, key=key, on_stop=app.stop)
    thread = threading.Thread(target=server.run, name="page-tls")
    thread.start()
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    yield f"https://{server.address}", trust
    server.stop()
    thread.join(30)
    assert not thread.is_alive()


def test_by_tls_the_cookie_never_travels_in_clear(
    by_tls: tuple[str, ssl.SSLContext], users: UserClient, user: str
) -> None:
    url, trust = by_tls
    users.add(user)
    token = users.create_token(user)[0]
    with httpx.Client(base_url=url, verify=trust, timeout=30, headers={"origin": url}) as browser:
        answer = browser.post("/sign-in", data={"token": token})
        cookie = answer.headers["set-cookie"]
        assert cookie.startswith("__Host-taskworker=")
        assert {"Secure", "HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
        assert "Domain" not in cookie
        answer = browser.get("/files")
        assert answer.status_code == 200
        assert "strict-transport-security" in answer.headers
        for host, status in (("page.example", 200), ("a.wild.example", 421), ("other.example", 421)):
            assert browser.get("/sign-in", headers={"host": host}).status_code == status
        in_clear = url.replace("https", "http")
        assert browser.post("/sign-in", data={"token": token}, headers={"origin": in_clear}).status_code == 403


def test_an_upload_that_breaks_off_stores_nothing(url: str, ann: Person, pool: FunctionPool) -> None:
    [(name, value)] = ann.browser.cookies.items()
    head = (
        f"PUT /files/upload?name=broken.bin HTTP/1.1\r\nHost: {httpx.URL(url).netloc.decode()}\r\nOrigin: {url}\r\n"
        f"Cookie: {name}={value}\r\nX-CSRF: {ann.csrf}\r\nContent-Length: 1000000\r\n\r\n"
    )
    for _ in range(8):  # more than may be under way at once: each gives its place back
        with socket.create_connection((httpx.URL(url).host, httpx.URL(url).port or 80)) as connection:
            connection.sendall(head.encode() + b"x" * 400_000)
    with Client(pool.address, token=ann.token) as files:
        answer = ann.upload("whole.bin", b"x" * 1000)
        while answer.status_code == 503:  # they are only just ending
            answer = ann.upload("whole.bin", b"x" * 1000)
        assert answer.status_code == 200
        assert [one.filename for one in files.list_files(user_id=ann.name)] == ["whole.bin"]
