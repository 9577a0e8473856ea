"""What the commands pool and serve share about TLS: their options, and what they say about it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from taskworker.cli.exits import ExitCode, Failure
from taskworker.cli.text import one_line

if TYPE_CHECKING:
    from taskworker.auth.server_certificates import ServerTls, TlsOptions

_NO_CIPHERS_OF_TLS_1_2 = "ECDHE-PSK-AES128-CBC-SHA"  # one that needs a shared key, which no caller has

Tls = Annotated[
    bool,
    typer.Option(
        "--tls",
        help="Use TLS on this machine, too. Addresses that other machines can reach always do.",
        show_default=False,
    ),
]
TlsCert = Annotated[
    Path | None,
    typer.Option(
        help="File with a certificate for users, PEM, in place of one of the server's own authority; read again "
        "whenever it changes.",
        metavar="FILE",
        dir_okay=False,
    ),
]
TlsKey = Annotated[
    Path | None, typer.Option(help="File with the private key of --tls-cert, PEM.", metavar="FILE", dir_okay=False)
]
TlsName = Annotated[
    list[str] | None,
    typer.Option(
        help="A further host name or address for the server's own certificate, for clients that check it; repeatable.",
        metavar="HOST",
    ),
]


def tls_options(
    listen: str, cert: Path | None, key: Path | None, names: list[str] | None, *, wanted: bool, no_auth: bool
) -> TlsOptions | None:
    """The TLS that options ask for; None: there is none, as only this machine can reach the server."""
    from taskworker.auth.contexts import is_on_this_machine
    from taskworker.auth.server_certificates import TlsOptions

    if (cert is None) != (key is None):
        raise Failure("--tls-cert and --tls-key belong together: give both, or none", ExitCode.USAGE)
    if no_auth and not is_on_this_machine(listen):
        raise Failure(
            f"refusing to listen on {one_line(listen)} with --no-auth: whoever reaches it could do everything",
            ExitCode.USAGE,
        )
    if not wanted and cert is None and not names and is_on_this_machine(listen):
        return None
    if no_auth:
        raise Failure("TLS is for servers that ask for tokens: leave out --no-auth", ExitCode.USAGE)
    if listen.startswith("unix:"):
        raise Failure("TLS is not used on socket files: only their owner can open them", ExitCode.USAGE)
    return TlsOptions(cert, key, tuple(names or ()))


def accept_tls_1_3_only() -> None:
    """Let the servers of this process accept no older version; to be called before gRPC is loaded, which has no option.

    gRPC then offers TLS 1.2 with a cipher that nobody can use.
    """
    os.environ.setdefault("GRPC_SSL_CIPHER_SUITES", _NO_CIPHERS_OF_TLS_1_2)


def tls_document(tls: ServerTls | None) -> dict[str, Any]:
    """What ``--json`` says about TLS."""
    return {} if tls is None else {"ca": f"sha256:{tls.fingerprint}"}


def tls_lines(tls: ServerTls | None, address: str) -> list[str]:
    """How users log in to a server with TLS."""
    if tls is None:
        return []
    return [f"users connect with TLS: taskworker login {one_line(address)} --ca-hash sha256:{tls.fingerprint}"]
