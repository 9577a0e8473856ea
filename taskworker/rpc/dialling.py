"""Dialling: the one place where channels to servers are made."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence

import grpc
import grpc.aio

from storage.errors import InvalidArgument
from taskworker.auth.contexts import Access, AccessTo
from taskworker.auth.trust import Trust
from taskworker.rpc.limits import ANSWER_BYTES_MAX, CONNECT_TIMEOUT_MS, WINDOW_OPTIONS
from taskworker.rpc.token_channel import TokenChannel, TokenOnAsyncCalls
from taskworker.rpc.traced_channel import traced

STORE_SERVICE = "taskworker.store.StoreService"
_LISTS = ("History", "ListFiles", "ListVersions")
_READS = ("Describe", "MissingChunks", "LocateShards", "GetFile", "GetFiles", "GetManifest", "Stat", *_LISTS, "Stats")

# gRPC itself retries only calls that change nothing, or that may be repeated without harm. For others, it cannot
# know whether a server that went away had already carried them out.
_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [
                {"service": "taskworker.FileService", "method": "Get"},
                *({"service": STORE_SERVICE, "method": method} for method in _READS),
            ],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.2s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        },
        {
            "name": [{"service": "taskworker.functions.InvocationService", "method": "Cancel"}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
            },
        },
    ]
}

Options = Sequence[tuple[str, int | str]]

_OPTIONS: Options = (
    *WINDOW_OPTIONS,
    ("grpc.max_receive_message_length", ANSWER_BYTES_MAX),
    ("grpc.max_send_message_length", ANSWER_BYTES_MAX),
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    # Finds a restarted server within moments, instead of gRPC's usual 1 to 120 s.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", CONNECT_TIMEOUT_MS),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Servers are reached directly: a proxy set in the environment is for the web.
    ("grpc.enable_http_proxy", 0),
)


def dial(
    address: str, options: Options = _OPTIONS, *, access: Access | None = None, as_worker: bool = False
) -> grpc.Channel:
    """Make a channel to a server; nothing is sent before its first call.

    Args:
        address: see :func:`target_of`.
        options: channel options, in place of the defaults for calls of a few messages.
        access: what its calls show, and to whom; None: as this user's context for the address says.
        as_worker: whether a worker calls, which needs no more rights than workers have.

    Raises:
        InvalidArgument: the address is malformed.
    """
    target = target_of(address)

    def make(trust: Trust | None) -> grpc.Channel:
        if trust is None:
            return traced(grpc.insecure_channel(target, options=options), target)
        options_of_name = _name_option(trust.name)
        secure = grpc.secure_channel(target, _credentials(trust), options=(*options, *options_of_name))
        return traced(secure, target)

    if access == Access():
        return make(None)
    return TokenChannel(make, AccessTo(address, as_worker=as_worker) if access is None else lambda: access)


def _credentials(trust: Trust) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(trust.authorities_pem())


def _name_option(name: str) -> Options:
    return (("grpc.ssl_target_name_override", name),) if name else ()


def dial_secure(address: str, credentials: grpc.ChannelCredentials, name: str) -> grpc.Channel:
    """Make a channel with TLS to a server; nothing is sent before its first call.

    Args:
        address: see :func:`target_of`.
        credentials: whom to trust, and what to show.
        name: the DNS name that the server's certificate must have, whatever the address is.

    Raises:
        InvalidArgument: the address is malformed.
    """
    target = target_of(address)
    return traced(grpc.secure_channel(target, credentials, options=(*_OPTIONS, *_name_option(name))), target)


def dial_async(address: str, access: AccessTo | None = None) -> grpc.aio.Channel:
    """Make a channel for the running event loop, as :func:`dial` does for threads.

    It does not follow changes of whom calls must reach; it then sends no token.

    Args:
        address: see :func:`target_of`.
        access: what its calls show, and to whom; None: as this user's context for the address says.

    Raises:
        InvalidArgument: the address is malformed.
    """
    access = access or AccessTo(address)
    trust = access().trust
    return dial_for_loop(address, trust, [TokenOnAsyncCalls(access, trust)])


def dial_for_loop(
    address: str, trust: Trust | None, interceptors: Sequence[grpc.aio.ClientInterceptor] | None = None
) -> grpc.aio.Channel:
    """Make a channel for the running event loop, whose calls show what they bring along.

    Args:
        address: see :func:`target_of`.
        trust: whom it must reach; None: whoever is at the address, without TLS.
        interceptors: of its calls; each takes some 50 µs a call.

    Raises:
        InvalidArgument: the address is malformed.
    """
    if trust is None:
        return grpc.aio.insecure_channel(target_of(address), options=_OPTIONS, interceptors=interceptors)
    options = (*_OPTIONS, *_name_option(trust.name))
    return grpc.aio.secure_channel(target_of(address), _credentials(trust), options=options, interceptors=interceptors)


def target_of(address: str) -> str:
    """Convert ``host:port``, ``[ipv6]:port`` or ``unix:path``, or several separated by commas, to gRPC's form.

    If there are several, the first that answers is used; when it goes away, the next one that answers.

    Raises:
        InvalidArgument: the address is malformed.
    """
    if not isinstance(address, str):
        raise InvalidArgument(f"an address is text, not {type(address).__name__}")
    if "," in address:
        return _target_of_any([one.strip() for one in address.split(",")])
    if address.startswith("unix:") and len(address) > len("unix:"):
        return address
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise InvalidArgument(f"address {address!r} is not host:port, [ipv6]:port or unix:/path")
    return f"dns:{address}" if not address.startswith("[") else f"ipv6:{address}"


def _target_of_any(addresses: list[str]) -> str:
    """A list of addresses in gRPC's form, which needs all of them to be of one family."""
    for one in addresses:
        if one.startswith("unix:"):
            raise InvalidArgument(f"address {one!r}: a socket file cannot be one of several addresses")
        target_of(one)
    if all(one.startswith("[") for one in addresses):
        return f"ipv6:{','.join(addresses)}"
    return f"ipv4:{','.join(_by_number(one) for one in addresses)}"


def _by_number(address: str) -> str:
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(host, int(port), socket.AF_INET, socket.SOCK_STREAM)
    except OSError as error:
        raise InvalidArgument(
            f"address {address!r}: {error.strerror or error}; several addresses are all IPv4, or all IPv6 in brackets"
        ) from error
    return f"{found[0][4][0]}:{port}"
