"""The certificates that a server shows to its users: one of its own authority, and perhaps one that was given to it.

Which one is shown, the client's greeting decides: whoever knows the server by its own authority asks for the name that
only its certificate has. Everybody else is shown the given one.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed448, ed25519

from storage.clocks import wall_ms
from storage.errors import InvalidArgument
from taskworker.auth.authority import Authority
from taskworker.auth.certificates import Lifetime, lifetime_of, lifetime_text, read_certificates
from taskworker.auth.identity import POOL_DNS_NAME, MemberIdentity, MemberKind
from taskworker.auth.server_credentials import following
from taskworker.auth.trust import Trust

log = logging.getLogger(__name__)

_LIFETIME_S = 30 * 86_400.0
_WILDCARDS = ("", "0.0.0.0", "::")  # to compare with, not to listen on
_FILE_BYTES_MAX = 1 << 20

Pair = tuple[bytes, bytes]
"""A private key, and a chain of certificates, both in PEM."""


class TlsOptions(NamedTuple):
    """How a server shows its users who it is.

    Attributes:
        certificate: file with a certificate, and those between it and its authority, PEM; None: there is only the one
            of the server's own authority.
        key: file with its private key, PEM.
        names: further host names and addresses for the certificate of the server's own authority.
    """

    certificate: Path | None = None
    key: Path | None = None
    names: tuple[str, ...] = ()


class OwnCertificate:
    """A certificate of the server's own authority, which is renewed in time. Thread-safe.

    Args:
        authority: issues it.
        hosts: what the server is called.
        now_ms: milliseconds since 1970.
    """

    def __init__(self, authority: Authority, hosts: Iterable[str], now_ms: Callable[[], int] = wall_ms) -> None:
        self._authority = authority
        self._identity = MemberIdentity(authority.pool_id, MemberKind.POOL, "pool")
        self._names = [x509.DNSName(POOL_DNS_NAME), *map(_general_name, dict.fromkeys(hosts))]
        self._now_ms = now_ms
        self._lock = threading.Lock()
        self._trusted = b""
        self._renew_ms = 0
        self._pair: Pair = (b"", b"")

    def pair(self) -> Pair:
        """The present key and certificate; the same object until they are renewed."""
        with self._lock:
            trusted = self._authority.certificates_pem
            if trusted != self._trusted or self._now_ms() >= self._renew_ms:
                # Users learn of a new authority later than members do, so the former one vouches for this to the end.
                made = self._authority.issue_own(
                    self._identity, names=self._names, lifetime_s=_LIFETIME_S, by_oldest=True
                )
                # Whoever logs in may know the authority only by its hash, so it is shown as well.
                self._pair = made.key_pem, made.certificate_pem + trusted
                self._trusted, self._renew_ms = trusted, self._now_ms() + int(_LIFETIME_S * 500)
            return self._pair


class CertificateFiles:
    """A certificate and its key in files, which are read again when they change. Thread-safe.

    Args:
        options: where they are.
        now_ms: milliseconds since 1970.

    Raises:
        InvalidArgument: they cannot be used; the text says why.
        OSError: they cannot be read.
    """

    def __init__(self, options: TlsOptions, now_ms: Callable[[], int] = wall_ms) -> None:
        if options.certificate is None or options.key is None:
            raise InvalidArgument("a certificate and its key belong together: give both files, or none")
        self._files = (options.certificate, options.key)
        self._now_ms = now_ms
        self._lock = threading.Lock()
        self._seen = self._states()
        self._pair = self._read()

    def pair(self) -> Pair:
        """The present key and certificate; if new ones cannot be used, the former ones, and the log says why."""
        with self._lock:
            try:
                states = self._states()
                if states != self._seen:
                    self._seen = states
                    self._pair = self._read()
                    log.info("the certificate in %s is used from now on", self._files[0])
            except (OSError, InvalidArgument) as error:
                log.error("the former certificate stays in use, as the new one cannot be used: %s", error)
            return self._pair

    def _states(self) -> tuple[object, ...]:
        found = [path.stat() for path in self._files]
        return tuple((one.st_mtime_ns, one.st_ino, one.st_size) for one in found)

    def _read(self) -> Pair:
        chain, key = (path.read_bytes()[:_FILE_BYTES_MAX] for path in self._files)
        try:
            leaf = read_certificates(chain)[0]
        except InvalidArgument as error:
            raise InvalidArgument(f"{self._files[0]}: {error}") from None
        if isinstance(leaf.public_key(), ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
            raise InvalidArgument(f"{self._files[0]} has an Ed25519 key, which gRPC does not accept: use ECDSA or RSA")
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*self._files, password=_no_password)
        except ssl.SSLError as error:
            raise InvalidArgument(
                f"the key in {self._files[1]} does not belong to the certificate in {self._files[0]}, or is encrypted "
                f"({error.reason or error})"
            ) from None
        problem = lifetime_text(leaf, self._now_ms())
        if problem:
            log.warning("%s: %s", self._files[0], problem)
        return key, chain


def _no_password() -> str:
    return ""


class ServerTls:
    """TLS for the users of a server.

    Args:
        authority: the server's own authority.
        address: where the server will listen, ``host:port``.
        options: how it shows who it is.
        now_ms: milliseconds since 1970.

    Raises:
        InvalidArgument: given files cannot be used.
        OSError: they cannot be read.
    """

    def __init__(
        self,
        authority: Authority,
        address: str,
        options: TlsOptions | None = None,
        now_ms: Callable[[], int] = wall_ms,
    ) -> None:
        options = options or TlsOptions()
        self._authority = authority
        own = OwnCertificate(authority, (*_hosts_of(address), *options.names), now_ms)
        is_given = options.certificate is not None or options.key is not None
        self._sources: list[CertificateFiles | OwnCertificate] = [own]
        if is_given:
            self._sources.insert(0, CertificateFiles(options, now_ms))  # the first is shown if no name is asked for

    @property
    def trust(self) -> Trust:
        """How those know the server who know its own authority."""
        return Trust(self._authority.certificates_pem.decode("ascii"), POOL_DNS_NAME)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the authority that vouches for the server to its users, 64 hexadecimal digits."""
        return self._authority.oldest_fingerprint

    @property
    def lifetime(self) -> Lifetime:
        """When the certificate is valid that is shown first."""
        _key, chain = self._sources[0].pair()
        return lifetime_of(read_certificates(chain)[0])

    def credentials(self) -> grpc.ServerCredentials:
        """Credentials of one port of a gRPC server; they follow the certificates."""
        return following(self._pairs, grpc.ssl_server_certificate_configuration, of_members=False)

    def _pairs(self) -> list[Pair]:
        return [source.pair() for source in self._sources]


def _hosts_of(address: str) -> list[str]:
    """What a server is called that listens at an address."""
    host = address.rpartition(":")[0].removeprefix("[").removesuffix("]")
    found = ["localhost", "127.0.0.1", "::1"]
    return [*found, socket.gethostname()] if host in _WILDCARDS else [*found, host]


def _general_name(host: str) -> x509.GeneralName:
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(host))
    try:
        return x509.DNSName(host)
    except ValueError:
        raise InvalidArgument(f"{host[:80]!r} is no host name: use ASCII, with `xn--` for other letters") from None
