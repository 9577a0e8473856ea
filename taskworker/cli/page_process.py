"""What the command pool does to serve the page: its options, and a process beside its own.

The page is what browsers of strangers talk to. In a process of its own it cannot delay the pool, nor see its memory.
"""

from __future__ import annotations

import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from taskworker.cli.children import PROGRAM, announcement, end_all, environment
from taskworker.cli.exits import ExitCode, Failure
from taskworker.cli.gateways import check_tls
from taskworker.cli.text import one_line

PageAddress = Annotated[
    str,
    typer.Option(
        "--page",
        help="Address at which to serve the page for browsers (see `taskworker gateway page`): HOST:PORT (port 0: any "
        "free one). Beyond this machine, it needs --page-cert and --page-key (default: none).",
        metavar="ADDR",
    ),
]
PageCert = Annotated[
    Path | None, typer.Option(help="File with the certificate of --page, PEM.", metavar="FILE", dir_okay=False)
]
PageKey = Annotated[
    Path | None, typer.Option(help="File with the private key of --page-cert, PEM.", metavar="FILE", dir_okay=False)
]

_NEEDED = ("uvicorn", "httptools", "starlette", "jinja2")
_STOP_S = 15.0


class PageProcess:
    """The page of a pool, if it is wanted.

    Args:
        listen: where to serve it; empty: it is not wanted.
        cert: file with the certificate; None: without TLS.
        key: file with its key.
        no_auth: whether the pool asks nobody for a token, so that nobody could sign in.

    Raises:
        Failure: the options do not belong together, or what the page needs is not installed.
    """

    def __init__(self, listen: str, cert: Path | None, key: Path | None, *, no_auth: bool) -> None:
        self._listen = listen
        self._options: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._url = ""
        if not listen:
            if cert or key:
                raise Failure("--page-cert and --page-key need --page", ExitCode.USAGE)
            return
        check_tls(listen, cert, key, "--page-cert and --page-key")
        if no_auth:
            raise Failure("--page needs tokens to sign in with, which --no-auth leaves out", ExitCode.USAGE)
        missing = next((name for name in _NEEDED if find_spec(name) is None), None)
        if missing is not None:
            raise Failure(f"--page needs {missing}: pip install 'taskworker[gateways]'")
        if cert is not None and key is not None:
            self._options = ["--tls-cert", str(cert), "--tls-key", str(key)]

    def start(self, pool: str) -> None:
        """Serve the page of the pool at an address, if that is wanted.

        Raises:
            Failure: it does not start; its own message says why.
        """
        if not self._listen:
            return
        command = [*PROGRAM, "--json", "--pool", pool, "gateway", "page", "--listen", self._listen, "--supervised"]
        self._process = subprocess.Popen(
            [*command, *self._options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()
        )
        told = announcement(self._process)
        if told is None:
            raise Failure(f"the page could not be started at {one_line(self._listen)}")
        self._url = str(told["url"])

    def stop(self) -> None:
        """Serve it no more."""
        if self._process is not None:
            end_all([self._process], _STOP_S)

    def document(self) -> dict[str, Any]:
        """Where it is, for programs."""
        return {"page": self._url} if self._url else {}

    def lines(self) -> list[str]:
        """Where it is, for people."""
        return [f"page at {self._url}; `taskworker ui --at {self._url}` signs you in"] if self._url else []
