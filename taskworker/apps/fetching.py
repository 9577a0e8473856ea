"""Fetches small documents over HTTP for the server itself, such as the keys of a provider of identities."""

from __future__ import annotations

import ssl

import httpx

from taskworker.errors import ApiUnreachable

_TIMEOUT_S = 10.0
_BYTES_MAX = 1 << 20


def fetched(url: str) -> bytes:
    """Return what is at a URL. Redirects are not followed, and proxies of the environment are not used.

    Raises:
        ApiUnreachable: nothing usable is there.
    """
    try:
        with (
            httpx.Client(timeout=_TIMEOUT_S, verify=ssl.create_default_context(), trust_env=False) as client,
            client.stream("GET", url) as answer,
        ):
            answer.raise_for_status()
            content = b""
            for piece in answer.iter_bytes():
                content += piece
                if len(content) > _BYTES_MAX:
                    raise ApiUnreachable(f"{url} has more than {_BYTES_MAX:,} bytes")
    except httpx.HTTPError as error:
        raise ApiUnreachable(f"{url} cannot be fetched: {error}") from None
    return content
