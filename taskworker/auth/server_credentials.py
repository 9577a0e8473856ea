"""Credentials of gRPC servers whose certificates change while they run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import grpc

T = TypeVar("T")


def following(
    present: Callable[[], T], configured: Callable[[T], grpc.ServerCertificateConfiguration], *, of_members: bool
) -> grpc.ServerCredentials:
    """Credentials of one port of a server, which shows the present keys and certificates to each new connection.

    gRPC asks for them with each connection, and is told of changes only. With whatever it is told, it replaces what
    connections that other threads are just accepting may be about to use. If it was told each time, 16 callers that
    connected at once crashed a server after some hundred connections (gRPC 1.85).

    Args:
        present: returns the present keys and certificates, which are compared with the former ones.
        configured: returns what gRPC makes of them.
        of_members: whether clients have to show certificates as well.
    """
    served = present()

    def change() -> grpc.ServerCertificateConfiguration | None:
        nonlocal served
        now = present()
        if now == served:
            return None
        configuration = configured(now)
        served = now
        return configuration

    return grpc.dynamic_ssl_server_credentials(
        configured(served),
        change,  # type: ignore[arg-type]  # gRPC documents None as "no change"
        require_client_authentication=of_members,
    )
