"""Keys and certificates of a pool's members, and requests for certificates.

Keys are ECDSA keys on the curve P-256: gRPC accepts no certificates with Ed25519 keys.
"""

from __future__ import annotations

from datetime import UTC, datetime
from hashlib import sha256
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from storage.errors import InvalidArgument
from taskworker.auth.identity import MemberIdentity

CURVE = ec.SECP256R1()
PEM_BYTES_MAX = 64 * 1024
_NOBODY = x509.Name([])


class NotTrusted(InvalidArgument):
    """A certificate is not one that can be accepted."""


class KeyPair(NamedTuple):
    """A member's key, its certificate, and the certificates of the authorities that it trusts.

    Attributes:
        key_pem: private key, PKCS #8.
        certificate_pem: the certificate.
        authorities_pem: certificates of authorities, at least one.
    """

    key_pem: bytes
    certificate_pem: bytes
    authorities_pem: bytes

    @property
    def certificate(self) -> x509.Certificate:
        """The certificate, parsed."""
        return read_certificate(self.certificate_pem)

    @property
    def identity(self) -> MemberIdentity:
        """Whom the certificate names."""
        return identity_of(self.certificate)


class Lifetime(NamedTuple):
    """From when until when a certificate is valid, in seconds since 1970."""

    begin_s: float
    end_s: float


def lifetime_of(certificate: x509.Certificate) -> Lifetime:
    """When a certificate is valid."""
    return Lifetime(certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp())


def new_key() -> ec.EllipticCurvePrivateKey:
    """Make a private key."""
    return ec.generate_private_key(CURVE)


def key_to_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key in PKCS #8, not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def read_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """Inverse of :func:`key_to_pem`.

    Raises:
        InvalidArgument: it is no such key.
    """
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError) as error:
        raise InvalidArgument("the private key cannot be read: it is not in PEM, or is encrypted") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != CURVE.name:
        raise InvalidArgument("the private key is not an ECDSA key on the curve P-256")
    return key


def certificate_to_pem(certificate: x509.Certificate) -> bytes:
    """Return a certificate in PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def read_certificate(pem: bytes) -> x509.Certificate:
    """Read one certificate in PEM.

    Raises:
        NotTrusted: it is none.
    """
    (certificate, *others) = read_certificates(pem)
    if others:
        raise NotTrusted(f"one certificate was expected, not {1 + len(others)}")
    return certificate


def read_certificates(pem: bytes) -> list[x509.Certificate]:
    """Read one or more certificates in PEM.

    Raises:
        NotTrusted: there are none, or one is malformed.
    """
    if len(pem) > PEM_BYTES_MAX:
        raise NotTrusted(f"certificates of {len(pem):,} bytes; there are at most {PEM_BYTES_MAX:,}")
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise NotTrusted(f"a certificate is malformed: {error}") from error


def fingerprint_of(certificate: x509.Certificate) -> str:
    """Return the SHA-256 of a certificate (of its DER), as 64 hexadecimal digits."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def public_key_hash(request: x509.CertificateSigningRequest | x509.Certificate) -> bytes:
    """Return the SHA-256 of the public key in a request or a certificate, 32 bytes."""
    return sha256(
        request.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    ).digest()


def identity_of(certificate: x509.Certificate) -> MemberIdentity:
    """Return whom a certificate names; who issued it must have been verified already.

    Raises:
        NotTrusted: it does not name exactly one member.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError) as error:
        raise NotTrusted("a certificate names nobody") from error
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise NotTrusted(f"a certificate names {len(uris)} members instead of one")
    try:
        return MemberIdentity.parse(uris[0])
    except InvalidArgument as error:
        raise NotTrusted(str(error)) from None


def new_request(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Make a request for a certificate (PKCS #10, PEM). It proves that the sender has the key, and names nobody.

    Whom the certificate names is decided by the authority, from what the sender proves otherwise.
    """
    request = x509.CertificateSigningRequestBuilder().subject_name(_NOBODY).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


def read_request(pem: bytes) -> x509.CertificateSigningRequest:
    """Read a request for a certificate, and check its signature.

    Raises:
        InvalidArgument: it is malformed, is not signed with its own key, or has a key of another kind.
    """
    if len(pem) > PEM_BYTES_MAX:
        raise InvalidArgument(f"a request for a certificate of {len(pem):,} bytes; there are {PEM_BYTES_MAX:,} at most")
    try:
        request = x509.load_pem_x509_csr(pem)
        valid = request.is_signature_valid
        key = request.public_key()
    except (ValueError, TypeError, InvalidSignature, x509.InvalidVersion) as error:
        raise InvalidArgument(f"a request for a certificate is malformed: {error}") from None
    if not valid:
        raise InvalidArgument("a request for a certificate is not signed with its own key")
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != CURVE.name:
        raise InvalidArgument("a certificate is requested for a key that is not an ECDSA key on the curve P-256")
    return request


def lifetime_text(certificate: x509.Certificate, now_ms: int) -> str:
    """Return why a certificate is not valid now, in words that name the clock as a cause; empty if it is."""
    now = datetime.fromtimestamp(now_ms / 1000, UTC)
    if now < certificate.not_valid_before_utc:
        early = certificate.not_valid_before_utc - now
        return (
            f"the certificate is valid only from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC, and this "
            f"machine's clock says {now:%Y-%m-%d %H:%M}: is that clock {early.days} days and {early.seconds // 3600} "
            "hours slow?"
        )
    if now > certificate.not_valid_after_utc:
        late = now - certificate.not_valid_after_utc
        return (
            f"the certificate was valid until {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC, and this machine's "
            f"clock says {now:%Y-%m-%d %H:%M}: it expired, or that clock is {late.days} days and "
            f"{late.seconds // 3600} hours fast"
        )
    return ""
