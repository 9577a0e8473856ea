"""What gRPC's errors say about TLS, in words that help: it reports all of them as a server that cannot be reached."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from storage.clocks import wall_ms
from taskworker.errors import ServerNotTrusted, StorageUnavailable

if TYPE_CHECKING:
    from cryptography import x509

_LOG_IN = "`taskworker login {address} --ca-hash sha256:...` with what its operator tells you"
_CLOSED = ("Socket closed", "Connection reset", "recvmsg", "Broken pipe", "GOAWAY")
_PROBE_S = 2.0


def tls_problem(text: str, address: str) -> str:
    """Return what is wrong with the connection to ``address``, if gRPC's error says so; otherwise an empty text."""
    if "WRONG_VERSION_NUMBER" in text or "HTTP_REQUEST" in text:
        return (
            f"the server at {address} does not use TLS, and this client does, so nothing was sent: check the address; "
            f"if the server was started without --tls, `taskworker context rm {address}`"
        )
    if "certificate has expired" in text:
        return (
            f"the certificate of the server at {address} has expired, or this machine's clock is fast; nothing was sent"
        )
    if "not yet valid" in text:
        return (
            f"the certificate of the server at {address} is not valid yet: is this machine's clock slow? Nothing was "
            "sent"
        )
    if "Hostname Verification" in text or "is not in peer certificate" in text:
        return (
            f"the certificate of the server at {address} is for other hosts, so nothing was sent: use the name that it "
            f"is for, or {_LOG_IN.format(address=address)}"
        )
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return (
            f"the certificate of the server at {address} is from an authority that is not trusted, so nothing was "
            f"sent: {_LOG_IN.format(address=address)}. If you did that before, its authority was replaced, or this is "
            "another server"
        )
    if "handshake failed" in text.lower():
        return f"the TLS handshake with the server at {address} failed, and nothing was sent: {text[-200:]}"
    return ""


def refined(error: Exception, address: str, *, is_encrypted: bool, now_ms: Callable[[], int] = wall_ms) -> Exception:
    """Return a better error for a failed call, if a look at the server shows what is wrong with the connection.

    Args:
        error: the error.
        address: the server.
        is_encrypted: whether the call would have been.
        now_ms: milliseconds since 1970.
    """
    if isinstance(error, ServerNotTrusted):
        problem = _problem_of_certificate(_shown_by(address), now_ms()) if is_encrypted else ""
        if problem:
            return ServerNotTrusted(f"the server at {address} is not trusted, and nothing was sent: {problem}")
    elif _may_expect_tls(error, is_encrypted=is_encrypted) and _shown_by(address):
        return ServerNotTrusted(
            f"the server at {address} uses TLS, and this client does not know it, so nothing was sent: "
            f"{_LOG_IN.format(address=address)}"
        )
    return error


def _may_expect_tls(error: Exception, *, is_encrypted: bool) -> bool:
    return type(error) is StorageUnavailable and not is_encrypted and any(sign in str(error) for sign in _CLOSED)


def _problem_of_certificate(shown: list[x509.Certificate], now_ms: int) -> str:
    from taskworker.auth.certificates import lifetime_text

    return lifetime_text(shown[0], now_ms) if shown else ""


def _shown_by(address: str) -> list[x509.Certificate]:
    """The certificates that a server shows; none if it does not answer with TLS."""
    from storage.errors import InvalidArgument
    from taskworker.rpc.shown_certificates import certificates_shown_at

    try:
        return certificates_shown_at(address.partition(",")[0].strip(), _PROBE_S)
    except (OSError, InvalidArgument):
        return []
