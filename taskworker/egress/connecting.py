"""Connections to outside hosts: the name is resolved and judged here, and what was judged is connected to."""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections.abc import Iterable
from concurrent.futures import Executor
from typing import Any

import httpcore
import httpx

from storage.errors import PermissionDenied
from taskworker.egress.addresses import Address, Resolve, is_neighbour, is_public
from taskworker.egress.urls import place_of
from taskworker.errors import ApiUnreachable

_LOOKUPS = 8
_ADDRESSES_TRIED = 4
_KEPT_IDLE = 16
_KEPT_S = 30.0


class PinnedBackend(httpcore.AsyncNetworkBackend):
    """Connects to the very address that was checked, so that a name cannot change its meaning in between.

    Args:
        resolve: name → addresses; blocking.
        threads: where it is called.
        private: whether loopback and private networks may be reached.
        connect_s: for resolving, and for each connection.
    """

    def __init__(self, resolve: Resolve, threads: Executor, *, private: bool, connect_s: float) -> None:
        self._resolve = resolve
        self._threads = threads
        self._private = private
        self._connect_s = connect_s
        self._lookups = asyncio.Semaphore(_LOOKUPS)  # one function's slow names leave threads to others
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the port's
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to a name or an address.

        Raises:
            PermissionDenied: it is not of the world outside.
            ApiUnreachable: the name has no address.
            httpcore.ConnectError, httpcore.ConnectTimeout: nobody answers there.
        """
        addresses = await self._checked(host, port)
        seconds = self._connect_s if timeout is None else min(timeout, self._connect_s)
        for number, address in enumerate(addresses, start=1):
            try:
                return await self._network.connect_tcp(str(address), port, seconds, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if number == len(addresses):
                    raise
        raise ApiUnreachable(f"{place_of(host, port)} cannot be reached: the name has no address")

    async def connect_unix_socket(self, *_args: Any, **_options: Any) -> httpcore.AsyncNetworkStream:
        """Sockets of this machine are none of the outside."""
        raise PermissionDenied("a socket file is not of the world outside")

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)

    async def _checked(self, host: str, port: int) -> list[Address]:
        try:
            literal = ipaddress.ip_address(host)
        except ValueError:
            addresses = await self._addresses(host, port)
        else:
            addresses = [literal]
        # All must do: a name that leads to a neighbour as well is not to be trusted with either.
        if not all(self._may_be_reached(address) for address in addresses):
            raise PermissionDenied(
                f"{place_of(host, port)} is a private, local or reserved address; a rule opens it to a function with "
                "--private"
            )
        return addresses[:_ADDRESSES_TRIED]

    async def _addresses(self, name: str, port: int) -> list[Address]:
        try:
            async with asyncio.timeout(self._connect_s), self._lookups:
                found = await asyncio.get_running_loop().run_in_executor(self._threads, self._resolve, name)
        except TimeoutError:
            raise ApiUnreachable(
                f"{place_of(name, port)} cannot be reached: its name was not resolved within {self._connect_s:g} s"
            ) from None
        except (OSError, UnicodeError):
            raise ApiUnreachable(f"{place_of(name, port)} cannot be reached: its name is not known") from None
        return found

    def _may_be_reached(self, address: Address) -> bool:
        return is_public(address) or (self._private and is_neighbour(address))


class PinnedTransport(httpx.AsyncHTTPTransport):
    """HTTP/1.1 and HTTP/2 over pooled connections of one backend, and by no other way."""

    def __init__(self, backend: PinnedBackend, tls: ssl.SSLContext, connections: int) -> None:
        super().__init__(verify=tls, trust_env=False)
        # httpx has no argument for the backend; without a pool of ours, it would resolve names itself.
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls,
            max_connections=connections,
            max_keepalive_connections=_KEPT_IDLE,
            keepalive_expiry=_KEPT_S,
            http1=True,
            http2=True,
            network_backend=backend,
        )
