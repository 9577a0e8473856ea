"""A receiver of OTLP over HTTP: it parses what comes by the protocol's own messages, and keeps it."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

WAIT_S = 60


@dataclass(frozen=True, slots=True)
class Span:
    """A span that came."""

    service: str
    name: str
    kind: int
    trace: str
    id: str
    parent: str
    is_error: bool
    attributes: dict[str, Any] = field(hash=False)


class Receiver:
    """Listens on a free port of the loopback; a context manager."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.logs: list[tuple[str, str, str]] = []
        """(service, text, trace)"""
        self.raw = b""
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                receiver.take(self.path, body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self._server.server_port}",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "OTEL_BLRP_SCHEDULE_DELAY": "100",
        }
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self) -> Receiver:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def take(self, path: str, body: bytes) -> None:
        self.raw += body
        if path == "/v1/traces":
            for part in ExportTraceServiceRequest.FromString(body).resource_spans:
                service = _values(part.resource.attributes)["service.name"]
                for scope in part.scope_spans:
                    self.spans += [
                        Span(
                            service,
                            span.name,
                            span.kind,
                            span.trace_id.hex(),
                            span.span_id.hex(),
                            span.parent_span_id.hex(),
                            span.status.code == 2,
                            _values(span.attributes),
                        )
                        for span in scope.spans
                    ]
        elif path == "/v1/logs":
            for told in ExportLogsServiceRequest.FromString(body).resource_logs:
                service = _values(told.resource.attributes)["service.name"]
                for records in told.scope_logs:
                    self.logs += [
                        (service, record.body.string_value, record.trace_id.hex()) for record in records.log_records
                    ]

    def await_span(self, wanted: Callable[[Span], bool]) -> Span:
        """The first span that is as wanted, once it has come."""
        give_up_s = time.monotonic() + WAIT_S
        while True:
            found = next(filter(wanted, list(self.spans)), None)
            if found is not None:
                return found
            assert time.monotonic() < give_up_s, sorted({(span.service, span.name) for span in self.spans})
            time.sleep(0.05)

    def await_log(self, service: str, text: str) -> None:
        """Return once a record that begins with a text has come."""
        give_up_s = time.monotonic() + WAIT_S
        while not any(found == service and said.startswith(text) for found, said, _ in list(self.logs)):
            assert time.monotonic() < give_up_s, self.logs
            time.sleep(0.05)


def _values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}
