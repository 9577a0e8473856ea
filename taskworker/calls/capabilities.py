"""Capabilities: what a function may reach outside its sandbox, through its pool."""

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
        method: HTTP method.
        url: an http or https URL.
        headers: names and values, in order.
        body: at most 1 MiB.
        timeout_s: seconds for the whole request, redirects included; None: as long as is allowed.
        cache: whether the response may come from the cache, by HTTP's rules.
        follow_redirects: whether to follow redirects; each is checked like the first request.

    Raises:
        InvalidArgument: the timeout is zero or negative.
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
    """A response, with a decoded body of at most 6 MiB; ``url`` is the final one, after redirects."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    url: str
    from_cache: bool = False


class Capabilities(Protocol):
    """What one call may reach outside its sandbox. Methods raise errors of the engine's family."""

    def secret(self, name: str) -> str:
        """A secret granted to the call's function.

        Raises:
            PermissionDenied: the function has no grant for it; the same if there is no such secret.
        """

    def request(self, request: ApiRequest) -> ApiResponse:
        """Call an outside API that the call's function may call.

        Raises:
            PermissionDenied: the function may not call this API.
        """

    def resolve(self, name: str, kind: str) -> list[str]:
        """Records of a name, as texts; ``kind`` is A, AAAA, TXT, ..."""


class NoCapabilities:
    """The ``Capabilities`` of calls on a worker without a pool: none."""

    def secret(self, name: str) -> str:
        """See ``Capabilities``."""
        raise PermissionDenied("secrets come from a pool, and this worker has none")

    def request(self, request: ApiRequest) -> ApiResponse:
        """See ``Capabilities``."""
        raise PermissionDenied("outside APIs are called through a pool, and this worker has none")

    def resolve(self, name: str, kind: str) -> list[str]:
        """See ``Capabilities``."""
        raise PermissionDenied("names are resolved by a pool, and this worker has none")
