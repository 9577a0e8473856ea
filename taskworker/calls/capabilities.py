"""What a function may ask of the world outside, through its pool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from storage.errors import InvalidArgument, PermissionDenied

REQUEST_BYTES_MAX = 1 << 20
RESPONSE_BYTES_MAX = 6 << 20


@dataclass(frozen=True, slots=True)
class ApiRequest:
    """A request to an outside API; ``{{secret:NAME}}`` in url, header values and body stands for a granted secret.

    Attributes:
        method: of HTTP.
        url: http or https.
        headers: name and value, in order.
        body: at most 1 MiB.
        timeout_s: of all of it, redirects included; None: as long as is allowed.
        cache: whether an answer may come from the cache by HTTP's rules.
        follow_redirects: each is checked like the first request.

    Raises:
        InvalidArgument: a timeout of no time, or of less.
    """

    method: str
    url: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    timeout_s: float | None = None
    cache: bool = False
    follow_redirects: bool = True

    def __post_init__(self) -> None:
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise InvalidArgument(f"a timeout of {self.timeout_s:g} s: it must be more than 0, or None")


@dataclass(frozen=True, slots=True)
class ApiResponse:
    """What came back: a body of at most 6 MiB, decoded; ``url`` is where redirects led."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    url: str
    from_cache: bool = False


class Capabilities(Protocol):
    """The world outside, as one call may use it. Methods raise the engine's error family."""

    def secret(self, name: str) -> str:
        """A secret granted to the call's function.

        Raises:
            PermissionDenied: it is not, whether or not it exists.
        """

    def request(self, request: ApiRequest) -> ApiResponse:
        """Call an outside API that the call's function may call.

        Raises:
            PermissionDenied: it may not.
        """

    def resolve(self, name: str, kind: str) -> list[str]:
        """Records of a name, as texts; ``kind`` is A, AAAA, TXT, ..."""


class NoCapabilities:
    """There is none for a worker without a pool; ``Capabilities``."""

    def secret(self, name: str) -> str:
        """See ``Capabilities``."""
        raise PermissionDenied("secrets are had from a pool, and this worker has none")

    def request(self, request: ApiRequest) -> ApiResponse:
        """See ``Capabilities``."""
        raise PermissionDenied("outside APIs are called through a pool, and this worker has none")

    def resolve(self, name: str, kind: str) -> list[str]:
        """See ``Capabilities``."""
        raise PermissionDenied("names are resolved by a pool, and this worker has none")
