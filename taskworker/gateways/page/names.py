"""The host names that a certificate is for."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509

from storage.errors import InvalidArgument


def names_in(path: Path) -> list[str]:
    """The host names in a certificate; those with a wildcard, which may stand for any name, are left out.

    Raises:
        InvalidArgument: it is no certificate.
        OSError: it cannot be read.
    """
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    except ValueError:
        raise InvalidArgument(f"{path} is no certificate in PEM; give another file") from None
    return [name for name in found.get_values_for_type(x509.DNSName) if not name.startswith("*")]
