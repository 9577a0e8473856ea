"""Users log in with identity tokens of a provider, which this test runs itself."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet, OctKey, OKPKey, RSAKey

from storage.clocks import wall_ms
from storage.errors import InvalidArgument
from taskworker import Client
from taskworker.apps.fetching import fetched
from taskworker.apps.pool_server import PoolServer
from taskworker.auth.contexts import Access
from taskworker.auth.oidc import OidcOptions, OidcProvider
from taskworker.auth.users import LOGINS_MAX
from taskworker.client.users import UserClient
from taskworker.errors import ApiUnreachable, Unauthenticated
from taskworker.pool.options import PoolOptions

AUDIENCE = "the-pool"


class Provider:
    """A provider of identities on loopback."""

    def __init__(self) -> None:
        self.keys: list[OctKey | RSAKey | ECKey | OKPKey] = [
            ECKey.generate_key("P-256", {"kid": "k1", "alg": "ES256", "use": "sig"})
        ]
        self.asked: list[str] = []
        self.replies: dict[str, bytes] = {}
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.asked.append(self.path)
                body = provider.document(self.path)
                self.send_response(200 if body else 404)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_arguments: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.issuer = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def document(self, path: str) -> bytes:
        if path in self.replies:
            return self.replies[path]
        if path == "/.well-known/openid-configuration":
            return json.dumps({"issuer": self.issuer, "jwks_uri": f"{self.issuer}/keys", "more": 1}).encode()
        return json.dumps(KeySet(self.keys).as_dict(private=False)).encode() if path == "/keys" else b""

    def token(self, key: Any = None, algorithm: str = "ES256", **claims: object) -> str:
        """An identity token of ann, valid for a minute."""
        now = wall_ms() // 1000
        told = {"iss": self.issuer, "aud": AUDIENCE, "sub": "17", "iat": now, "exp": now + 60}
        told |= {"email": "ann@example.org", "email_verified": True} | claims
        key = key or self.keys[-1]
        header = {"alg": algorithm} | ({"kid": key.kid} if key.kid else {})
        return jwt.encode(header, {name: one for name, one in told.items() if one is not None}, key)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def provider() -> Iterator[Provider]:
    running = Provider()
    yield running
    running.close()


@pytest.fixture
def known(provider: Provider) -> OidcProvider:
    return OidcProvider(OidcOptions(provider.issuer, AUDIENCE), fetched)


def test_a_user_trades_an_identity_token_for_a_token(provider: Provider, tmp_path: Path) -> None:
    pool = PoolServer(
        tmp_path / "pool",
        options=PoolOptions(allow_fragile=True),
        authenticates=True,
        identities=OidcOptions(provider.issuer, AUDIENCE),
    )
    address = f"127.0.0.1:{pool.start('127.0.0.1:0')}"
    try:
        with UserClient(address, access=Access()) as anybody:
            with pytest.raises(Unauthenticated, match=r"no user .ann@example"):
                anybody.log_in(provider.token())
            pool.users.add("ann@example.org")
            text = anybody.log_in(provider.token())
            for _ in range(LOGINS_MAX + 3):
                anybody.log_in(provider.token())
            with pytest.raises(Unauthenticated) as refused:
                anybody.log_in(provider.token(aud="another-pool"))
            assert provider.token()[:20] not in str(refused.value)
        valid = [one for one in pool.users.tokens("ann@example.org") if not one.ended_ms(wall_ms())]
        assert len(valid) == LOGINS_MAX
        assert all(one.expires_ms - one.created_ms == 12 * 3_600_000 for one in valid)
        with UserClient(address, access=Access(text)) as ann, pytest.raises(Unauthenticated, match="revoked"):
            ann.who_am_i()  # the oldest of so many
    finally:
        pool.stop(0.0)


def test_a_server_without_a_provider_accepts_no_identity_tokens(tmp_path: Path) -> None:
    pool = PoolServer(tmp_path / "pool", options=PoolOptions(allow_fragile=True), authenticates=True)
    address = f"127.0.0.1:{pool.start('127.0.0.1:0')}"
    try:
        with (
            UserClient(address, access=Access()) as anybody,
            pytest.raises(InvalidArgument, match="no identity tokens"),
        ):
            anybody.log_in("x")
        with Client(address) as client, pytest.raises(Unauthenticated):
            client.stats()
    finally:
        pool.stop(0.0)


def test_who_it_is(provider: Provider, known: OidcProvider) -> None:
    assert known.user_of(provider.token()) == "ann@example.org"
    by_subject = OidcProvider(OidcOptions(provider.issuer, AUDIENCE, "sub"), fetched)
    assert by_subject.user_of(provider.token(email=None)) == "17"
    assert known.user_of(provider.token(aud=["x", AUDIENCE])) == "ann@example.org"


def test_tokens_that_are_not_valid_here(provider: Provider, known: OidcProvider) -> None:
    now = wall_ms() // 1000
    stranger = ECKey.generate_key("P-256", {"kid": "k1"})
    public = OctKey.import_key(json.dumps(provider.keys[0].as_dict(private=False)), {"kid": "k1"})
    good = provider.token()
    body = good.split(".")[1]
    wrong = {
        "expired": provider.token(exp=now - 120),
        "from the future": provider.token(nbf=now + 600),
        "without an end": provider.token(exp=None),
        "for another": provider.token(aud="other"),
        "for nobody": provider.token(aud=None),
        "of another issuer": provider.token(iss="https://example.org"),
        "not verified": provider.token(email_verified=False),
        "verified as a text": provider.token(email_verified="true"),
        "without a name": provider.token(email=None),
        "with a name that is no text": provider.token(email=["ann@example.org"]),
        "signed by another key": provider.token(stranger),
        "signed with the public key as a secret": provider.token(public, "HS256"),
        "not signed": f"eyJhbGciOiJub25lIn0.{body}.",
        "changed": good[:-8] + "AAAAAAAA",
        "nothing": "",
        "noise": "a.b.c",
        "large": "a" * 20_000,
    }
    for what, token in wrong.items():
        with pytest.raises(Unauthenticated):
            raise AssertionError(f"{what}: {known.user_of(token)}")
    assert known.user_of(good)


def test_new_keys_are_fetched_and_unknown_ones_do_not_have_the_provider_asked_all_the_time(provider: Provider) -> None:
    now_s = 0.0
    known = OidcProvider(OidcOptions(provider.issuer, AUDIENCE), fetched, lambda: now_s)
    assert known.user_of(provider.token())
    first = len(provider.asked)
    unknown = ECKey.generate_key("P-256", {"kid": "k2"})
    for _ in range(5):
        with pytest.raises(Unauthenticated):
            known.user_of(provider.token(unknown))
    assert len(provider.asked) == first
    provider.keys.append(unknown)
    now_s += 61
    assert known.user_of(provider.token(unknown))
    assert len(provider.asked) == first + 2
    provider.keys = [unknown]
    now_s += 3601
    with pytest.raises(Unauthenticated):
        known.user_of(provider.token(ECKey.import_key(provider.keys[0].as_dict(private=True), {"kid": "k1"})))


@pytest.mark.parametrize(
    "discovery",
    [
        b"",
        b"{}",
        b"nonsense",
        b'{"issuer": "https://another.example.org", "jwks_uri": "https://another.example.org/k"}',
        b'{"issuer": "ISSUER", "jwks_uri": "http://192.0.2.1/keys"}',
        b'{"issuer": "ISSUER", "jwks_uri": "file:///etc/passwd"}',
        b'{"issuer": "ISSUER", "jwks_uri": "ISSUER/none"}',
        b'{"issuer": "ISSUER", "jwks_uri": "ISSUER/broken"}',
        b" " * (2 << 20),
    ],
)
def test_a_provider_that_tells_nonsense(provider: Provider, known: OidcProvider, discovery: bytes) -> None:
    provider.replies["/.well-known/openid-configuration"] = discovery.replace(b"ISSUER", provider.issuer.encode())
    provider.replies["/broken"] = b'{"keys": [{"kty": "EC"}]}'
    with pytest.raises(ApiUnreachable):
        known.user_of(provider.token())


def test_where_a_provider_may_be() -> None:
    for issuer in ("", "example.org", "http://example.org", "ftp://example.org", "file:///x"):
        with pytest.raises(InvalidArgument):
            OidcProvider(OidcOptions(issuer, AUDIENCE), fetched)
    for wrong in (OidcOptions("https://example.org", ""), OidcOptions("https://example.org", "x", "")):
        with pytest.raises(InvalidArgument):
            OidcProvider(wrong, fetched)
    OidcProvider(OidcOptions("https://example.org", AUDIENCE), fetched)
