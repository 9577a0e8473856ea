"""What the commands pool, worker and serve share about metrics: their options, and the endpoint."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from taskworker.cli.exits import ExitCode, Failure
from taskworker.cli.text import one_line

if TYPE_CHECKING:
    from taskworker.metrics.endpoint import Endpoint
    from taskworker.metrics.families import Parts
    from taskworker.metrics.requests import RequestMetrics

    Shown = tuple[Callable[[], str], Parts]
    """Gives the reason why a process cannot do its work now; and what to read of it, by name."""

MetricsAddress = Annotated[
    str,
    typer.Option(
        "--metrics",
        help="Address at which Prometheus fetches metrics over HTTP (/metrics, /healthz, /readyz): HOST:PORT (port 0: "
        "any free one). Beyond this machine, it needs the three options below (default: none).",
        metavar="ADDR",
    ),
]
MetricsCert = Annotated[
    Path | None,
    typer.Option(
        help="File with the certificate of --metrics, PEM; read again whenever it changes.",
        metavar="FILE",
        dir_okay=False,
    ),
]
MetricsKey = Annotated[
    Path | None, typer.Option(help="File with the private key of --metrics-cert, PEM.", metavar="FILE", dir_okay=False)
]
MetricsToken = Annotated[
    Path | None,
    typer.Option(
        help="File (mode 0600) with a token that callers of /metrics have to show.", metavar="FILE", dir_okay=False
    ),
]

_TOKEN_CHARACTERS_MIN = 16


class Metrics:
    """The metrics of this process, which are served from now on if they are wanted.

    Make this before the servers that they are about: those are observed only from then on.

    Args:
        address: where to serve them; empty: they are not wanted.
        cert: file with the certificate; None: without TLS.
        key: file with its key.
        token: file with a token that callers have to show; None: they need none.

    Attributes:
        url: where they are; empty: nowhere.

    Raises:
        Failure: the options do not belong together, or the address is taken, or not of this machine.
    """

    def __init__(self, address: str, cert: Path | None, key: Path | None, token: Path | None) -> None:
        self.url = ""
        self._endpoint: Endpoint | None = None
        if not address:
            if cert or key or token:
                raise Failure("--metrics-cert, --metrics-key and --metrics-token need --metrics", ExitCode.USAGE)
            return
        host, port = _checked(address, cert, key, token)
        tls = None if cert is None or key is None else _tls_of(cert, key)
        secret = "" if token is None else _token_in(token)
        from taskworker import __version__
        from taskworker.metrics.endpoint import Endpoint
        from taskworker.metrics.observers import OBSERVERS
        from taskworker.metrics.registry import new_registry, observed_calls

        registry = new_registry(__version__)
        OBSERVERS.begin(observed_calls(registry))
        self._endpoint = Endpoint(registry, lambda: "it is starting", token=secret, tls=tls)
        try:
            bound = self._endpoint.start(host, port)
        except OSError as error:
            raise Failure(
                f"cannot listen on {one_line(address)} ({error.strerror or error}): is another server running there? "
                "Stop it, or choose another address for --metrics",
                ExitCode.UNAVAILABLE,
            ) from None
        shown = f"[{host}]" if ":" in host else host
        self.url = f"{'http' if tls is None else 'https'}://{shown}:{bound}/metrics"

    def show(self, load: Callable[[], Shown]) -> None:
        """Also show figures that are read on each scrape, if metrics are wanted.

        Args:
            load: gives them. It is called only if they are wanted, so it may load Prometheus's library.
        """
        if self._endpoint is not None:
            from taskworker.metrics.figures import Figures

            self._endpoint.unready = Figures(self._endpoint.registry, *load()).unready

    def requests(self, gateway: str) -> RequestMetrics | None:
        """Where a gateway counts its requests, under the name of its protocol; None: metrics are not wanted."""
        if self._endpoint is None:
            return None
        from taskworker.metrics.requests import RequestMetrics

        return RequestMetrics(self._endpoint.registry, gateway)

    def stop(self) -> None:
        """Serve them no longer."""
        if self._endpoint is not None:
            self._endpoint.stop()

    def document(self) -> dict[str, Any]:
        """What ``--json`` says about them."""
        return {"metrics": self.url} if self.url else {}

    def lines(self) -> list[str]:
        """What people are told about them."""
        return [f"metrics for Prometheus at {one_line(self.url)}"] if self.url else []


def _checked(address: str, cert: Path | None, key: Path | None, token: Path | None) -> tuple[str, int]:
    """The host and the port of an address at which metrics may be shown."""
    from taskworker.auth.contexts import is_on_this_machine

    host, separator, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not separator or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise Failure(f"--metrics {one_line(address)} is not HOST:PORT", ExitCode.USAGE)
    if (cert is None) != (key is None):
        raise Failure("--metrics-cert and --metrics-key belong together: give both, or none", ExitCode.USAGE)
    if not is_on_this_machine(address) and (cert is None or token is None):
        raise Failure(
            f"refusing to show metrics at {one_line(address)}, which other machines can reach: they name workers and "
            "functions. Give --metrics-cert, --metrics-key and --metrics-token, or listen on 127.0.0.1",
            ExitCode.USAGE,
        )
    with suppress(OSError):  # which is told when it listens there
        host = str(socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0][4][0])
    return host, int(port)


def _tls_of(cert: Path, key: Path) -> Callable[[], ssl.SSLContext]:
    """Gives the TLS context for the present certificate in these files."""
    from taskworker.auth.server_certificates import CertificateFiles, TlsOptions

    files = CertificateFiles(TlsOptions(cert, key))
    seen, context = None, _context(cert, key)

    def present() -> ssl.SSLContext:
        nonlocal seen, context
        pair = files.pair()
        if pair is not seen:
            with suppress(OSError):  # they are being replaced; the next connection finds them
                context = _context(cert, key)
                seen = pair
        return context

    return present


def _context(cert: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(cert, key)
    return context


def _token_in(path: Path) -> str:
    from storage.system.private_files import read_private

    raw = read_private(path)
    token = "" if raw is None else raw.decode("ascii", "replace").strip()
    if len(token) < _TOKEN_CHARACTERS_MIN or not token.isascii() or not token.isprintable() or " " in token:
        raise Failure(
            f"{one_line(str(path))} has no token of at least {_TOKEN_CHARACTERS_MIN} letters and digits; make one with "
            "`openssl rand -hex 32`",
            ExitCode.USAGE,
        )
    return token
