"""The HTTP endpoint: ``/metrics`` for Prometheus, ``/healthz`` and ``/readyz`` for whoever restarts processes.

Callers are taken as hostile: a request is at most 16 KiB, has to be here within seconds, and there are few at a time.
Each connection is closed after its answer, so nothing that follows a request is read.
"""

from __future__ import annotations

import hmac
import logging
import socket
import socketserver
import ssl
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from typing import Any, ClassVar

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from taskworker.hosts import host_of

log = logging.getLogger(__name__)

HEAD_BYTES_MAX = 16 << 10
HEAD_S = 5.0
_ANSWER_S = 10.0  # for each piece of an answer that the caller takes
_PLACES = 16
_POLL_S = 0.1


class Endpoint:
    """Serves a registry over HTTP, from :meth:`start` until :meth:`stop`, which may be called once each.

    Args:
        registry: what ``/metrics`` shows.
        unready: gives the reason why this process cannot do its work now; empty: it can. It may be replaced.
        token: what callers have to show as ``Authorization: Bearer`` for metrics and reasons; empty: nothing.
        tls: gives the present TLS; None: plain HTTP.
        clock_s: monotonic seconds.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        unready: Callable[[], str],
        *,
        token: str = "",
        tls: Callable[[], ssl.SSLContext] | None = None,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.registry = registry
        self.unready = unready
        self.token = token
        self.tls = tls
        self.clock_s = clock_s
        self.scraping = threading.Lock()  # one at a time, so that many scrapes take no more memory than one
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def start(self, host: str, port: int) -> int:
        """Listen, and return the port; 0 asks for any free one.

        Raises:
            OSError: the address is taken, or not of this machine.
        """
        server = self._server = _Server(self, host, port)
        self._thread = threading.Thread(target=server.serve_forever, args=(_POLL_S,), name="metrics", daemon=True)
        self._thread.start()
        return int(server.server_address[1])

    def stop(self) -> None:
        """Accept no more requests."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()


class _Server(socketserver.ThreadingMixIn, HTTPServer):
    """A thread for each connection, and few connections: a host may have as many as are free, half at most."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, endpoint: Endpoint, host: str, port: int) -> None:
        self.endpoint = endpoint
        self._taken: Counter[str] = Counter()  # by host
        self._taking = threading.Lock()
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Bind without looking the host's name up, as the standard library would."""
        socketserver.TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread, or close it if too many are open."""
        host = host_of(client_address)
        if not self._take(host):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # such as no more threads
            self._give_back(host)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._give_back(host_of(client_address))

    def _take(self, host: str) -> bool:
        with self._taking:
            if self._taken[host] >= _PLACES - self._taken.total():
                return False
            self._taken[host] += 1
            return True

    def _give_back(self, host: str) -> None:
        with self._taking:
            self._taken[host] -= 1
            if not self._taken[host]:
                del self._taken[host]

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Answer a request; TLS has bounded time to begin."""
        request.settimeout(HEAD_S)
        if self.endpoint.tls is None:
            super().finish_request(request, client_address)
            return
        context = self.endpoint.tls()
        with context.wrap_socket(request, server_side=True, do_handshake_on_connect=False) as secured:
            secured.do_handshake()
            super().finish_request(secured, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what went wrong; that a caller went away, or sent no HTTP, is not worth a line."""
        error = sys.exc_info()[1]
        level = logging.DEBUG if isinstance(error, OSError) else logging.ERROR
        log.log(level, "a request for metrics failed", exc_info=error)


class _Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: _Server
    error_message_format = "%(code)d %(message)s\n"
    error_content_type = "text/plain; charset=utf-8"

    def version_string(self) -> str:
        """What answers say about the server."""
        return "taskworker"

    def setup(self) -> None:
        """Read the request's head in bounded time."""
        super().setup()
        head = _head_of(self.connection, self.server.endpoint.clock_s)
        self._is_too_large = len(head) > HEAD_BYTES_MAX
        self.rfile = BytesIO(head)
        self.connection.settimeout(_ANSWER_S)

    def handle(self) -> None:
        """Answer the request, and read no other."""
        self.close_connection = True
        if self._is_too_large:
            self.requestline, self.request_version, self.command = "", self.protocol_version, "GET"
            self.send_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        else:
            self.handle_one_request()

    def do_GET(self) -> None:
        """Answer ``GET``."""
        path = self.path.partition("?")[0]
        answer = self._ANSWERS.get(path)
        if answer is None:
            self._say(HTTPStatus.NOT_FOUND, "there are /metrics, /healthz and /readyz\n")
        else:
            answer(self)

    do_HEAD = do_GET  # noqa: N815

    def _metrics(self) -> None:
        if not self._is_known():
            self._say(
                HTTPStatus.UNAUTHORIZED,
                "show the token of --metrics-token: Authorization: Bearer TOKEN\n",
                **{"WWW-Authenticate": "Bearer"},
            )
            return
        encode, content_type = choose_encoder(self.headers.get("Accept", ""))
        with self.server.endpoint.scraping:
            body = encode(self.server.endpoint.registry)
        self._send(HTTPStatus.OK, body, content_type)

    def _health(self) -> None:
        self._say(HTTPStatus.OK, "ok\n")

    def _readiness(self) -> None:
        why = self.server.endpoint.unready()
        if not why:
            self._say(HTTPStatus.OK, "ready\n")
            return
        self._say(HTTPStatus.SERVICE_UNAVAILABLE, f"not ready: {why}\n" if self._is_known() else "not ready\n")

    _ANSWERS: ClassVar[dict[str, Callable[[_Handler], None]]] = {
        "/metrics": _metrics,
        "/healthz": _health,
        "/readyz": _readiness,
    }

    def _is_known(self) -> bool:
        token = self.server.endpoint.token
        if not token:
            return True
        scheme, _, shown = self.headers.get("Authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(
            shown.strip().encode("utf-8", "surrogateescape"), token.encode()
        )

    def _say(self, code: HTTPStatus, text: str, **headers: str) -> None:
        self._send(code, text.encode("utf-8", "backslashreplace"), "text/plain; charset=utf-8", **headers)

    def _send(self, code: HTTPStatus, body: bytes, content_type: str, **headers: str) -> None:
        self.send_response(code)
        headers |= {
            "Content-Type": content_type,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the library's
        """Keep requests out of the log, unless details are wanted."""
        log.debug(format, *args)


def _head_of(connection: socket.socket, clock_s: Callable[[], float]) -> bytes:
    """What arrives up to the empty line after a request's headers; one byte more than allowed at most.

    Raises:
        TimeoutError: it takes too long.
    """
    head = bytearray()
    until_s = clock_s() + HEAD_S
    while b"\n\r\n" not in head and b"\n\n" not in head and len(head) <= HEAD_BYTES_MAX:
        left_s = until_s - clock_s()
        if left_s <= 0:
            raise TimeoutError("the request did not arrive in time")
        connection.settimeout(left_s)
        piece = connection.recv(HEAD_BYTES_MAX + 1 - len(head))
        if not piece:
            break
        head += piece
    return bytes(head)
