"""Connects to outside hosts: resolves the name, checks the addresses, and connects to a checked one."""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections.abc import Iterable
from typing import Any

import httpcore
import httpx

from storage.errors import PermissionDenied
from taskworker.errors import ApiUnreachable
from taskworker.outbound.egress.addresses import Address, Resolve, is_neighbour, is_public
from taskworker.outbound.egress.sharing import FunctionShare, SharedStream
from taskworker.outbound.egress.urls import place_of

_ADDRESSES_TRIED = 4
_FRAME_HEAD_BYTES = 9
_FRAME_BYTES_MAX = 16_384
"""Largest payload of a frame: HTTP/2's default, which is never raised here."""
_KEPT_IDLE = 16
_KEPT_S = 30.0


class FrameGuard(httpcore.AsyncNetworkStream):
    """A connection that ends when the header of an HTTP/2 frame announces more than the allowed size.

    The HTTP/2 library refuses such a frame only after receiving all of it, and buffers up to 16 MiB until then.
    """

    def __init__(self, stream: httpcore.AsyncNetworkStream, *, http2: bool = False) -> None:
        self._stream = stream
        self._http2 = http2
        self._head = bytearray()
        self._payload_left = 0

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - the port's
        """See ``AsyncNetworkStream``.

        Raises:
            httpcore.RemoteProtocolError: a frame is too large.
        """
        data = await self._stream.read(max_bytes, timeout)
        if self._http2:
            self._follow(data)
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """See ``AsyncNetworkStream``."""
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        """See ``AsyncNetworkStream``."""
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        """See ``AsyncNetworkStream``; the negotiated protocol decides whether frames follow."""
        stream = await self._stream.start_tls(ssl_context, server_hostname, timeout)
        agreed = stream.get_extra_info("ssl_object")
        return FrameGuard(stream, http2=agreed is not None and agreed.selected_alpn_protocol() == "h2")

    def get_extra_info(self, info: str) -> Any:
        """See ``AsyncNetworkStream``."""
        return self._stream.get_extra_info(info)

    def _follow(self, data: bytes) -> None:
        """Step from frame to frame: three bytes of length, six more bytes of header, the payload."""
        at = 0
        while at < len(data):
            if self._payload_left:
                taken = min(self._payload_left, len(data) - at)
                self._payload_left -= taken
            else:
                taken = min(_FRAME_HEAD_BYTES - len(self._head), len(data) - at)
                self._head += data[at : at + taken]
                if len(self._head) == _FRAME_HEAD_BYTES:
                    self._payload_left = int.from_bytes(self._head[:3], "big")
                    self._head.clear()
                    if self._payload_left > _FRAME_BYTES_MAX:
                        raise httpcore.RemoteProtocolError("a frame larger than was agreed")
            at += taken


class PinnedBackend(httpcore.AsyncNetworkBackend):
    """Connects to the address that was checked, so that a name cannot resolve differently in between.

    Args:
        resolve: returns the addresses of a name; blocking.
        share: the share of the function that connects.
        private: whether loopback and private networks are allowed.
        connect_s: seconds for resolving, and for each connection.
    """

    def __init__(self, resolve: Resolve, share: FunctionShare, *, private: bool, connect_s: float) -> None:
        self._resolve = resolve
        self._share = share
        self._private = private
        self._connect_s = connect_s
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
            PermissionDenied: the address is not allowed.
            ApiUnreachable: the name has no address.
            httpcore.ConnectError, httpcore.ConnectTimeout: the host does not answer.
        """
        addresses = await self._checked(host, port)
        seconds = self._connect_s if timeout is None else min(timeout, self._connect_s)
        for number, address in enumerate(addresses, start=1):
            try:
                stream = await self._network.connect_tcp(str(address), port, seconds, local_address, socket_options)
                return SharedStream(FrameGuard(stream), self._share)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if number == len(addresses):
                    raise
        raise ApiUnreachable(f"{place_of(host, port)} cannot be reached: the name has no address")

    async def connect_unix_socket(self, *_args: Any, **_options: Any) -> httpcore.AsyncNetworkStream:
        """Refuse: sockets of this machine are not outside."""
        raise PermissionDenied("a socket file is not an outside host")

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
        # All addresses must be allowed: a name that also resolves to a private address is not trusted at all.
        if not all(self._may_be_reached(address) for address in addresses):
            raise PermissionDenied(
                f"{place_of(host, port)} is a private, local or reserved address; a rule opens it to a function with "
                "--private"
            )
        return addresses[:_ADDRESSES_TRIED]

    async def _addresses(self, name: str, port: int) -> list[Address]:
        try:
            async with asyncio.timeout(self._connect_s):
                found = await self._share.in_thread(lambda: self._resolve(name))
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
    """HTTP/1.1 and HTTP/2 over pooled connections that only this backend makes."""

    def __init__(self, backend: PinnedBackend, tls: ssl.SSLContext, connections: int) -> None:
        super().__init__(verify=tls, trust_env=False)
        # httpx has no argument for the backend; with its own connection pool, it would resolve names itself.
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls,
            max_connections=connections,
            max_keepalive_connections=_KEPT_IDLE,
            keepalive_expiry=_KEPT_S,
            http1=True,
            http2=True,
            network_backend=backend,
        )
