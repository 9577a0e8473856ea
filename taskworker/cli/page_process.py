"""What the command pool does to serve the page: its options, and a process beside its own.

The page is what browsers of strangers talk to. In a process of its own it cannot delay the pool, nor see its memory.
"""

from __future__ import annotations

import logging
import subprocess
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

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

log = logging.getLogger(__name__)

_NEEDED = ("uvicorn", "httptools", "starlette", "jinja2")
_STOP_S = 15.0
_PAUSE_S = 1.0
_PAUSE_S_MAX = 60.0


class PageProcess:
    """The page of a pool, if it is wanted. If its process ends by itself, another one is started.

    Args:
        listen: where to serve it; empty: it is not wanted.
        cert: file with the certificate; None: without TLS.
        key: file with its key.
        no_auth: whether the pool asks nobody for a token, so that nobody could sign in.
        clock_s: monotonic seconds.

    Raises:
        Failure: the options do not belong together, or what the page needs is not installed.
    """

    def __init__(
        self,
        listen: str,
        cert: Path | None,
        key: Path | None,
        *,
        no_auth: bool,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._listen = listen
        self._clock_s = clock_s
        self._options: list[str] = []
        self._command: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._watch: threading.Thread | None = None
        self._stopping = threading.Event()
        self._changing = threading.Lock()
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
        command = [*PROGRAM, "--json", "--pool", pool, "gateway", "page", "--supervised", *self._options, "--listen"]
        process = _started([*command, self._listen])
        told = announcement(process)
        if told is None:
            raise Failure(f"the page could not be started at {one_line(self._listen)}")
        self._url = str(told["url"])
        self._process, self._command = process, [*command, urlsplit(self._url).netloc]
        self._watch = threading.Thread(target=self._start_again, name="page", daemon=True)
        self._watch.start()

    def stop(self) -> None:
        """Serve it no more."""
        self._stopping.set()
        with self._changing:
            process = self._process
        if process is not None:
            end_all([process], _STOP_S)
        if self._watch is not None:
            self._watch.join(_STOP_S)

    def _start_again(self) -> None:
        """Wait for the process to end, and start another one at the same address, until :meth:`stop`."""
        pause_s, process = _PAUSE_S, self._process
        while process is not None:
            began_s = self._clock_s()
            code = process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
            if self._clock_s() - began_s > _PAUSE_S_MAX:
                pause_s = _PAUSE_S
            if self._stopping.is_set():
                return
            log.warning("the page's process has ended with code %d; another one is started in %.0f s", code, pause_s)
            if self._stopping.wait(pause_s):
                return
            pause_s = min(2 * pause_s, _PAUSE_S_MAX)
            with self._changing:
                if self._stopping.is_set():
                    return
                try:
                    self._process = _started(self._command)
                except OSError as error:  # no memory, or no more processes; `process` has ended, so this is tried again
                    log.warning("the page's process cannot be started: %s", error)
                    continue
                process = self._process
            announcement(process)

    def document(self) -> dict[str, Any]:
        """Where it is, for programs."""
        return {"page": self._url} if self._url else {}

    def lines(self) -> list[str]:
        """Where it is, for people."""
        return [f"page at {self._url}; `taskworker ui --at {self._url}` signs you in"] if self._url else []


def _started(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment())
