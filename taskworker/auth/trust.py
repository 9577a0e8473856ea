"""Whom a client expects at the other end of a TLS connection."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

SYSTEM = "system"
"""Stands for the authorities that this machine trusts, where contexts are kept."""
_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Alpine, Arch
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # openSUSE
    "/etc/ssl/cert.pem",  # Alpine, BSDs
)


class Trust(NamedTuple):
    """Whom a client expects.

    Attributes:
        authorities: certificates of authorities, of which one must have vouched for the server, PEM; empty: those that
            this machine trusts.
        name: the DNS name that the server's certificate must have; empty: the host of the address.
    """

    authorities: str = ""
    name: str = ""

    def authorities_pem(self) -> bytes | None:
        """The certificates to give to a TLS library; None: let it use its own."""
        return self.authorities.encode("ascii") if self.authorities else system_authorities()


def system_authorities() -> bytes | None:
    """Read the certificates of the authorities that this machine trusts, PEM; None: they are not found.

    ``SSL_CERT_FILE`` names another file, as it does for OpenSSL.
    """
    import ssl  # takes a while, and most programs need none of it

    for name in (ssl.get_default_verify_paths().cafile, *_BUNDLES):
        if name and Path(name).is_file():
            return Path(name).read_bytes()
    return None
