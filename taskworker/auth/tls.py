"""TLS between the members of a pool: both ends show certificates of the pool's authority.

TLS 1.3 only. A server accepts any member; whom it serves, it decides by the identity in the certificate. A client
expects one member, by the DNS name that belongs to its identity.
"""

from __future__ import annotations

import functools
import os
import ssl
import threading
from collections.abc import Callable, Iterable, Mapping

import grpc

from storage.clocks import wall_ms
from taskworker.auth.certificates import (
    KeyPair,
    Lifetime,
    identity_of,
    lifetime_of,
    lifetime_text,
    read_certificate,
)
from taskworker.auth.identity import MemberIdentity
from taskworker.auth.server_credentials import following


def server_context(pair: KeyPair) -> ssl.SSLContext:
    """Make a context for a server whose clients are members."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0  # connections are few and last long
    return _with(context, pair)


def strangers_context(pair: KeyPair) -> ssl.SSLContext:
    """Make a context for a server that asks its clients for no certificates."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0  # connections are few and last long
    return _with(context, pair)


def trusting_context(authorities_pem: bytes) -> ssl.SSLContext:
    """Make a context for a client that shows nothing; the server must have the name that the context is used with.

    Raises:
        ssl.SSLError: the certificates are malformed.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=authorities_pem.decode("ascii"))
    return context


def client_context(pair: KeyPair, *, expects_name: bool = True) -> ssl.SSLContext:
    """Make a context for a client.

    Args:
        pair: what to show, and whom to trust.
        expects_name: whether the server must have the name that the context is used with; otherwise it is any member.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = expects_name
    return _with(context, pair)


def _with(context: ssl.SSLContext, pair: KeyPair) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=pair.authorities_pem.decode("ascii"))
    # The ssl module reads keys from files only. This one is in memory, and never on a disk.
    descriptor = os.memfd_create("key", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, pair.key_pem + pair.certificate_pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    return context


class MemberCredentials:
    """The key and certificate with which this process takes part in a pool; renewed while it runs. Thread-safe.

    Args:
        pair: the present ones.
        now_ms: milliseconds since 1970.
    """

    def __init__(self, pair: KeyPair, now_ms: Callable[[], int] = wall_ms) -> None:
        self._now_ms = now_ms
        self._lock = threading.Lock()
        self._take(pair)

    def _take(self, pair: KeyPair) -> None:
        self._pair = pair
        self._certificate = pair.certificate
        self._identity = identity_of(self._certificate)
        self._server, self._client = server_context(pair), client_context(pair)
        self._server_of_strangers = strangers_context(pair)
        self._client_of_any = client_context(pair, expects_name=False)

    @property
    def identity(self) -> MemberIdentity:
        """Whom the certificate names."""
        return self._identity

    @property
    def pair(self) -> KeyPair:
        """The present key and certificate."""
        return self._pair

    @property
    def server(self) -> ssl.SSLContext:
        """The context for connections that this process accepts."""
        return self._server

    @property
    def server_of_strangers(self) -> ssl.SSLContext:
        """The context for connections of clients that are no members."""
        return self._server_of_strangers

    @property
    def client(self) -> ssl.SSLContext:
        """The context for connections that this process makes."""
        return self._client

    @property
    def client_of_any(self) -> ssl.SSLContext:
        """The context for connections to any member, whose identity is looked at afterwards."""
        return self._client_of_any

    def renew(self, pair: KeyPair) -> None:
        """Use another key and certificate for new connections."""
        with self._lock:
            self._take(pair)

    @property
    def lifetime(self) -> Lifetime:
        """When the certificate is valid."""
        return lifetime_of(self._certificate)

    @property
    def is_due(self) -> bool:
        """Whether the certificate should be renewed: half of its lifetime has passed."""
        return self._now_ms() / 1000 > sum(self.lifetime) / 2

    @property
    def problem(self) -> str:
        """Why the certificate is not valid now; empty if it is."""
        return lifetime_text(self._certificate, self._now_ms())

    # -- for gRPC --------------------------------------------------------------------------------

    def for_grpc_server(self) -> grpc.ServerCredentials:
        """Credentials of one port of a gRPC server whose clients are members; they follow :meth:`renew`."""
        return following(lambda: self._pair, _configuration, of_members=True)

    def for_grpc_channel(self) -> grpc.ChannelCredentials:
        """Credentials of a gRPC channel; a channel made later has later ones."""
        pair = self._pair
        return grpc.ssl_channel_credentials(pair.authorities_pem, pair.key_pem, pair.certificate_pem)


def _configuration(pair: KeyPair) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pair.key_pem, pair.certificate_pem)], pair.authorities_pem)


def peer_of_call(auth_context: Mapping[str, Iterable[bytes]]) -> MemberIdentity:
    """Return the member that makes a gRPC call, from ``ServicerContext.auth_context()``.

    Raises:
        NotTrusted: the caller showed no certificate, or one that names no member.
    """
    (pem, *_) = [*auth_context.get("x509_pem_cert", []), b""]
    return _identity_in(pem)


@functools.lru_cache(maxsize=1024)
def _identity_in(pem: bytes) -> MemberIdentity:
    return identity_of(read_certificate(pem))
