"""Looks at the certificates that a server shows, before anything is sent to it."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator

from cryptography import x509

from storage.errors import InvalidArgument
from taskworker.auth.certificates import read_certificates


def certificates_shown_at(address: str, within_s: float, name: str | None = None) -> list[x509.Certificate]:
    """Return the certificates that a server shows, its own first. They are not verified; only a greeting is sent.

    Args:
        address: ``host:port``.
        within_s: for how many seconds to wait.
        name: the name to ask for, as servers may have several certificates.

    Raises:
        InvalidArgument: the address is malformed, or a certificate cannot be read.
        OSError: nobody answers there with TLS.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isascii() or not port.isdigit():
        raise InvalidArgument(f"address {address!r} is not host:port")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # gRPC's servers
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((host.removeprefix("[").removesuffix("]"), int(port)), within_s) as connected,
        context.wrap_socket(connected, server_hostname=name) as shaken,
    ):
        return list(_shown(shaken))


def _shown(shaken: ssl.SSLSocket) -> Iterator[x509.Certificate]:
    """What a server has shown. Before Python 3.13, this has no public name, see also truststore."""
    public = getattr(shaken, "get_unverified_chain", None)
    found = public() if public is not None else shaken._sslobj.get_unverified_chain()  # type: ignore[attr-defined]
    for one in found or ():
        pem = ssl.DER_cert_to_PEM_cert(one) if isinstance(one, bytes) else one.public_bytes()
        yield from read_certificates(pem.encode())
