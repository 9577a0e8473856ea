"""A pool's own certificate authority.

Its keys and certificates are in one private file: the first authority issues certificates, and all of them are trusted.
An authority is replaced in three steps, between which all members renew their certificates: a new one is added, then it
becomes the first, then the former ones are dropped (:meth:`Authority.add_next`, :meth:`Authority.promote`,
:meth:`Authority.drop_former`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from storage.clocks import wall_ms
from storage.errors import FormatError, InvalidArgument
from storage.system.private_files import read_private, write_private
from taskworker.auth.certificates import (
    KeyPair,
    certificate_to_pem,
    fingerprint_of,
    key_to_pem,
    new_key,
    new_request,
    read_certificate,
    read_key,
    read_request,
)
from taskworker.auth.identity import MemberIdentity

LIFETIME_S = 24 * 3600
"""How long a member's certificate is valid, in seconds."""
_AUTHORITY_LIFETIME = timedelta(days=10 * 365)
_BACKDATED = timedelta(minutes=5)  # clocks of machines differ by so much
_MARK = b"-----BEGIN PRIVATE KEY-----"
_CERTIFICATE_MARK = b"-----BEGIN CERTIFICATE-----"
_HEADER = (
    b"# The certificate authority of this pool: whoever has this file can join the pool as anybody. Keep it secret.\n"
)


class _Issuer(NamedTuple):
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


class Authority:
    """Issues certificates to the members of one pool. Thread-safe.

    Args:
        path: the private file; made, with a new authority, if absent.
        pool_id: id of the pool.
        now_ms: milliseconds since 1970.

    Raises:
        FormatError: the file is not that of an authority of this pool.
        NotPrivate: others may read the file.
        OSError: it cannot be read or written.
    """

    def __init__(self, path: Path, pool_id: str, now_ms: Callable[[], int] = wall_ms) -> None:
        self._path = path
        self._pool_id = pool_id
        self._now_ms = now_ms
        self._lock = threading.Lock()
        raw = read_private(path)
        if raw is None:
            self._issuers = [self._new_issuer(())]
            self._keep(self._issuers)
        else:
            self._issuers = _parse(raw, path, pool_id)

    @property
    def pool_id(self) -> str:
        """Id of the pool."""
        return self._pool_id

    @property
    def certificates_pem(self) -> bytes:
        """The certificates of all authorities that members trust."""
        return b"".join(certificate_to_pem(each.certificate) for each in self._issuers)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the issuing authority's certificate, 64 hexadecimal digits."""
        return fingerprint_of(self._issuers[0].certificate)

    @property
    def oldest_fingerprint(self) -> str:
        """SHA-256 of the certificate of the oldest authority that is trusted."""
        return fingerprint_of(self._oldest.certificate)

    @property
    def state(self) -> str:
        """Differs whenever the trusted authorities, or which of them issues certificates, have changed."""
        return sha256(self.certificates_pem).hexdigest()

    def issuers(self) -> list[x509.Certificate]:
        """The certificates of the trusted authorities; the first one issues certificates to members."""
        return [each.certificate for each in self._issuers]

    @property
    def _oldest(self) -> _Issuer:
        return min(self._issuers, key=lambda one: one.certificate.not_valid_before_utc)

    def issue(
        self,
        request_pem: bytes,
        identity: MemberIdentity,
        *,
        names: Sequence[x509.GeneralName] = (),
        lifetime_s: float = LIFETIME_S,
        by_oldest: bool = False,
    ) -> bytes:
        """Issue a certificate.

        Args:
            request_pem: proves that its sender has the key, see :func:`~taskworker.auth.certificates.new_request`;
                whatever names it contains are ignored.
            identity: whom the certificate names.
            names: further names, such as the host names of a server.
            lifetime_s: how long it is valid.
            by_oldest: whether the oldest of the trusted authorities issues it, while one replaces another.

        Returns:
            The certificate, in PEM.

        Raises:
            InvalidArgument: the request is malformed, or the identity is of another pool.
        """
        if identity.pool != self._pool_id:
            raise InvalidArgument(f"certificates are issued to members of pool {self._pool_id} only")
        request = read_request(request_pem)
        issuer, now = self._oldest if by_oldest else self._issuers[0], self._now()
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(issuer.certificate.subject)
            .public_key(request.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _BACKDATED)
            .not_valid_after(now + timedelta(seconds=lifetime_s))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(
                x509.SubjectAlternativeName(
                    [x509.UniformResourceIdentifier(identity.uri), x509.DNSName(identity.dns_name), *names]
                ),
                critical=True,  # as the subject is empty, RFC 5280, 4.2.1.6
            )
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False)
            .sign(issuer.key, hashes.SHA256())
        )
        return certificate_to_pem(certificate)

    def issue_own(
        self,
        identity: MemberIdentity,
        *,
        names: Sequence[x509.GeneralName] = (),
        lifetime_s: float = LIFETIME_S,
        by_oldest: bool = False,
    ) -> KeyPair:
        """Make a key and issue a certificate for it, for a member that runs in this process; see :meth:`issue`."""
        key = new_key()
        request = new_request(key)
        certificate = self.issue(request, identity, names=names, lifetime_s=lifetime_s, by_oldest=by_oldest)
        return KeyPair(key_to_pem(key), certificate, self.certificates_pem)

    # -- replacing the authority -----------------------------------------------------------------

    @property
    def count(self) -> int:
        """How many authorities are trusted; more than one while one replaces another."""
        return len(self._issuers)

    def add_next(self) -> None:
        """Make a further authority. Members trust it once they have renewed their certificates.

        Raises:
            InvalidArgument: the authority is being replaced already.
        """
        with self._lock:
            if len(self._issuers) > 1:
                raise InvalidArgument("the pool's certificate authority is being replaced already")
            self._change([*self._issuers, self._new_issuer(self._issuers)])

    def promote(self) -> None:
        """Let the further authority issue all certificates from now on; the former one stays trusted.

        Raises:
            InvalidArgument: there is no further authority.
        """
        with self._lock:
            if len(self._issuers) < 2:
                raise InvalidArgument("the pool has no further certificate authority to use")
            self._change([self._issuers[-1], *self._issuers[:-1]])

    def drop_former(self) -> None:
        """Trust only the authority that issues certificates now.

        Raises:
            InvalidArgument: no other one is trusted, or the further one does not issue certificates yet.
        """
        with self._lock:
            if len(self._issuers) < 2:
                raise InvalidArgument("the pool trusts no former certificate authority")
            if self._issuers[0] is self._oldest:
                raise InvalidArgument("the further certificate authority issues nothing yet: promote it first")
            self._change(self._issuers[:1])

    def _change(self, issuers: list[_Issuer]) -> None:
        self._keep(issuers)
        self._issuers = issuers

    # -- the file --------------------------------------------------------------------------------

    def _keep(self, issuers: Sequence[_Issuer]) -> None:
        parts = [key_to_pem(each.key) + certificate_to_pem(each.certificate) for each in issuers]
        write_private(self._path, _HEADER + b"".join(parts))

    def _new_issuer(self, former: Sequence[_Issuer]) -> _Issuer:
        key, now = new_key(), self._now()
        begins = [one.certificate.not_valid_before_utc + timedelta(seconds=1) for one in former]  # their order
        name = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "TaskWorker"),
                x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, self._pool_id),
                x509.NameAttribute(NameOID.COMMON_NAME, f"authority {now:%Y-%m-%d %H:%M:%S}"),
            ]
        )
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(max([now - _BACKDATED, *begins]))
            .not_valid_after(now + _AUTHORITY_LIFETIME)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return _Issuer(key, certificate)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._now_ms() // 1000, UTC)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _parse(raw: bytes, path: Path, pool_id: str) -> list[_Issuer]:
    issuers: list[_Issuer] = []
    for part in raw.split(_MARK)[1:]:
        key_pem, mark, certificate_pem = part.partition(_CERTIFICATE_MARK)
        try:
            issuer = _Issuer(read_key(_MARK + key_pem), read_certificate(mark + certificate_pem))
        except InvalidArgument as error:
            raise FormatError(f"{path} is damaged: {error}") from error
        units = issuer.certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
        if [unit.value for unit in units] != [pool_id]:
            raise FormatError(f"{path} is the certificate authority of another pool")
        if issuer.certificate.public_key() != issuer.key.public_key():
            raise FormatError(f"{path} is damaged: a certificate does not belong to the key before it")
        issuers.append(issuer)
    if not issuers:
        raise FormatError(f"{path} holds no certificate authority")
    return issuers
