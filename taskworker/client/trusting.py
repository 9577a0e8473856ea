"""How a client comes to know a server before it sends anything to it."""

from __future__ import annotations

from cryptography import x509

from storage.errors import InvalidArgument
from taskworker.auth.certificates import certificate_to_pem, fingerprint_of, read_certificates
from taskworker.auth.identity import POOL_DNS_NAME
from taskworker.auth.trust import Trust
from taskworker.errors import ServerNotTrusted, StorageUnavailable
from taskworker.rpc.shown_certificates import certificates_shown_at

_TIMEOUT_S = 10.0
_HASH_PREFIX = "sha256:"
_HASH_DIGITS = 64


def known_by_hash(address: str, text: str) -> Trust:
    """Return how the server is known that shows the certificate of an authority with this SHA-256.

    Whether that authority vouches for the server, the TLS library verifies with every connection.

    Args:
        address: ``host:port``.
        text: ``sha256:`` and 64 hexadecimal digits.

    Raises:
        InvalidArgument: an argument is malformed.
        ServerNotTrusted: the server shows no such certificate.
        StorageUnavailable: nobody answers.
    """
    digits = text.strip().lower().removeprefix(_HASH_PREFIX).replace(":", "")
    if len(digits) != _HASH_DIGITS or set(digits) - set("0123456789abcdef"):
        raise InvalidArgument(f"the hash of an authority is sha256: and {_HASH_DIGITS} hexadecimal digits")
    for name in (POOL_DNS_NAME, ""):
        for certificate in _shown_at(address, name):
            if fingerprint_of(certificate) == digits:
                return Trust(certificate_to_pem(certificate).decode("ascii"), name)
    raise ServerNotTrusted(
        f"the server at {address} shows no certificate with the SHA-256 {digits[:16]}..., so nothing was sent to it: "
        "check the address and the hash; if they are right, somebody is between this machine and the server"
    )


def known_by_authority(address: str, pem: bytes) -> Trust:
    """Return how the server is known for which one of these authorities vouches.

    Raises:
        InvalidArgument: the address or the certificates are malformed.
        StorageUnavailable: nobody answers.
    """
    authorities = read_certificates(pem)
    # A server's own authority vouches for one name, which is the same wherever the server is.
    is_own = not {*map(fingerprint_of, authorities)}.isdisjoint(map(fingerprint_of, _shown_at(address, POOL_DNS_NAME)))
    text = b"".join(map(certificate_to_pem, authorities)).decode("ascii")
    return Trust(text, POOL_DNS_NAME if is_own else "")


def shows_certificates(address: str) -> bool:
    """Whether the server at an address answers with TLS."""
    if address.startswith("unix:"):
        return False
    try:
        return bool(certificates_shown_at(address, _TIMEOUT_S))
    except OSError:
        return False


def _shown_at(address: str, name: str) -> list[x509.Certificate]:
    """The certificates that a server shows to those who ask for a name; empty: who ask for none."""
    try:
        return certificates_shown_at(address, _TIMEOUT_S, name or None)
    except OSError as error:
        raise StorageUnavailable(f"no TaskWorker server answers with TLS at {address} ({error})") from None
