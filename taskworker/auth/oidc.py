"""Identity tokens of an OpenID Connect provider, which users trade for tokens of this server.

Such a token is a JWT that the provider has signed. It says for whom it is (``aud``), until when it is valid, and who
the user is. The provider's keys are fetched from where its discovery document says, and again when a token has another
key.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec
from joserfc import jwt
from joserfc.errors import ClaimError, InvalidKeyIdError, JoseError
from joserfc.jwk import KeySet

from storage.clocks import wall_ms
from storage.errors import InvalidArgument
from taskworker.auth.contexts import is_on_this_machine
from taskworker.errors import ApiUnreachable, Unauthenticated

TOKEN_CHARACTERS_MAX = 16_384
_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
_DISCOVERY = "/.well-known/openid-configuration"
_FETCHED_ANEW_S = 3600.0
_FETCHED_AGAIN_S = 60.0  # for an unknown key; otherwise, made-up tokens could have the provider asked all the time
_LEEWAY_S = 60

Fetch = Callable[[str], bytes]
"""Returns what is at a URL; raises ApiUnreachable."""


class OidcOptions(NamedTuple):
    """Whose identity tokens are accepted.

    Attributes:
        issuer: URL of the provider, as its tokens have it.
        audience: what they must be for: the id under which the provider knows this server.
        claim: which claim is the user's name; of ``email``, only verified ones count.
    """

    issuer: str
    audience: str
    claim: str = "email"


class _Discovery(msgspec.Struct, frozen=True):
    issuer: str
    jwks_uri: str


_discovery_decoder = msgspec.json.Decoder(_Discovery)


class OidcProvider:
    """Knows users by their identity tokens. Thread-safe.

    Args:
        options: whose tokens are accepted.
        fetch: fetches the provider's documents.
        clock_s: monotonic seconds.
        now_ms: milliseconds since 1970.

    Raises:
        InvalidArgument: the issuer is not a URL with https, or something is empty.
    """

    def __init__(
        self,
        options: OidcOptions,
        fetch: Fetch,
        clock_s: Callable[[], float] = time.monotonic,
        now_ms: Callable[[], int] = wall_ms,
    ) -> None:
        _require_safe(options.issuer, "the issuer of identity tokens")
        if not options.audience or not options.claim:
            raise InvalidArgument("identity tokens need an audience and a claim with the user's name")
        self._options = options
        self._fetch = fetch
        self._clock_s = clock_s
        self._now_ms = now_ms
        self._lock = threading.Lock()
        self._keys: KeySet | None = None
        self._fetched_s = 0.0

    def user_of(self, token: str) -> str:
        """Return the name of the user whose identity token this is.

        Raises:
            Unauthenticated: it is not valid here; the text says why, and does not contain it.
            ApiUnreachable: the provider's keys cannot be fetched.
        """
        if not token or len(token) > TOKEN_CHARACTERS_MAX:
            raise Unauthenticated("this is no identity token")
        try:
            claims = self._verified(token)
            self._require_claims(claims)
        except ClaimError as error:
            raise Unauthenticated(f"the identity token is not for this server, or not valid now: {error}") from None
        except (JoseError, ValueError, TypeError, KeyError) as error:
            raise Unauthenticated(f"the identity token cannot be verified ({type(error).__name__})") from None
        name = claims.get(self._options.claim)
        if self._options.claim == "email" and claims.get("email_verified") is not True:
            raise Unauthenticated("the provider has not verified the email address of this user")
        if not isinstance(name, str) or not name:
            raise Unauthenticated(f"the identity token has no {self._options.claim}")
        return name

    def _verified(self, token: str) -> dict[str, object]:
        """The claims of a token that one of the provider's keys has signed."""
        try:
            return jwt.decode(token, self._current_keys(), algorithms=_ALGORITHMS).claims
        except InvalidKeyIdError:
            return jwt.decode(token, self._current_keys(older_than_s=_FETCHED_AGAIN_S), algorithms=_ALGORITHMS).claims

    def _require_claims(self, claims: dict[str, object]) -> None:
        registry = jwt.JWTClaimsRegistry(
            now=self._now_ms() // 1000,
            leeway=_LEEWAY_S,
            iss={"essential": True, "value": self._options.issuer},
            aud={"essential": True, "value": self._options.audience},
            exp={"essential": True},
            sub={"essential": True},
        )
        registry.validate(claims)

    def _current_keys(self, older_than_s: float = _FETCHED_ANEW_S) -> KeySet:
        with self._lock:
            if self._keys is None or self._clock_s() - self._fetched_s > older_than_s:
                self._keys = self._fetched()
                self._fetched_s = self._clock_s()
            return self._keys

    def _fetched(self) -> KeySet:
        try:
            found = _discovery_decoder.decode(self._fetch(self._options.issuer.rstrip("/") + _DISCOVERY))
            if found.issuer != self._options.issuer:
                raise ApiUnreachable(f"{self._options.issuer} calls itself {found.issuer[:200]}")
            _require_safe(found.jwks_uri, "the address of the provider's keys")
            return KeySet.import_key_set(msgspec.json.decode(self._fetch(found.jwks_uri)))
        except (msgspec.DecodeError, JoseError, InvalidArgument, ValueError, TypeError, KeyError) as error:
            raise ApiUnreachable(f"{self._options.issuer} shows no usable keys: {error}") from None


def _require_safe(url: str, what: str) -> None:
    parts = urlsplit(url)
    if not parts.hostname or parts.scheme not in ("https", "http"):
        raise InvalidArgument(f"{what} is no URL: {url[:200]!r}")
    if parts.scheme == "http" and not is_on_this_machine(f"{parts.hostname}:1"):
        raise InvalidArgument(f"{what} must begin with https: {url[:200]!r}")
