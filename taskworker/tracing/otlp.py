"""Sends spans and logs over OTLP, as OpenTelemetry's own variables of the environment say."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from storage.clocks import monotonic_s
from taskworker.tracing.spans import SPANS

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

log = logging.getLogger(__name__)

_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_FLUSH_S = 3.0  # the exporters try again and again, for longer than a user should wait for a command to end
_begun: list[Callable[[], object]] = []


def is_wanted(environment: Mapping[str, str], signal: str) -> bool:
    """Whether the environment asks for a signal over OTLP.

    Args:
        environment: its variables.
        signal: TRACES or LOGS.
    """
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = environment.get(f"OTEL_{signal}_EXPORTER", "").strip()
    if exporter:
        return "otlp" in [each.strip() for each in exporter.split(",")]
    return bool(environment.get(_ENDPOINT) or environment.get(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT"))


def begin(service: str, version: str, instance: str = "") -> None:
    """Send spans and logs from now on, if the environment asks for it. Otherwise nothing is imported.

    What a process cannot send, as nobody answers, is dropped, and the process goes on.

    Args:
        service: name of this kind of process, unless OTEL_SERVICE_NAME gives another one.
        version: of this program.
        instance: name of this process among those of its kind; empty: none.
    """
    traces, logs = is_wanted(os.environ, "TRACES"), is_wanted(os.environ, "LOGS")
    if _begun or not (traces or logs):
        return
    try:
        from opentelemetry.sdk.resources import Resource
    except ModuleNotFoundError:
        log.warning("the environment asks for OpenTelemetry, which needs: pip install 'taskworker[otel]'")
        return
    told = {"service.name": os.environ.get("OTEL_SERVICE_NAME") or service, "service.version": version}
    resource = Resource.create(told | ({"service.instance.id": instance} if instance else {}))
    try:
        if traces:
            _begun.append(_send_spans(resource, version))
        if logs:
            _begun.append(_send_logs(resource))
    except (ImportError, ValueError) as error:
        log.warning("nothing is sent by OpenTelemetry: %s", error)


def end(clock_s: Callable[[], float] = monotonic_s) -> None:
    """Send what waits to be sent, for a few seconds at most, and send no more. Call it before the process ends."""
    senders = [threading.Thread(target=each, name="last-traces", daemon=True) for each in _begun]
    _begun.clear()
    for sender in senders:
        sender.start()
    give_up_s = clock_s() + _FLUSH_S
    for sender in senders:
        sender.join(max(0.0, give_up_s - clock_s()))


def _send_spans(resource: Resource, version: str) -> Callable[[], object]:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from taskworker.tracing.opentelemetry import OpenTelemetryTracer

    processor = BatchSpanProcessor(_exporter("TRACES", "trace_exporter", "OTLPSpanExporter"))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(processor)
    trace.set_tracer_provider(provider)
    SPANS.begin(OpenTelemetryTracer(provider.get_tracer("taskworker", version)))

    def stop() -> None:
        processor.force_flush()

    return stop


def _send_logs(resource: Resource) -> Callable[[], object]:
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import BatchLogRecordProcessor

    from taskworker.tracing.records import Records

    processor = BatchLogRecordProcessor(_exporter("LOGS", "_log_exporter", "OTLPLogExporter"))
    provider = LoggerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_log_record_processor(processor)
    handler = Records(provider)
    logging.getLogger().addHandler(handler)

    def stop() -> None:
        logging.getLogger().removeHandler(handler)
        processor.force_flush()

    return stop


def _exporter(signal: str, module: str, name: str) -> Any:
    """An exporter for the protocol that the environment names; HTTP if it names none.

    Raises:
        ImportError: it is not installed.
        ValueError: there is none for this protocol.
    """
    from importlib import import_module

    general = os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "")
    protocol = os.environ.get(f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "") or general or "http/protobuf"
    packages = {
        "http/protobuf": "opentelemetry.exporter.otlp.proto.http",
        "grpc": "opentelemetry.exporter.otlp.proto.grpc",
    }
    if protocol not in packages:
        raise ValueError(f"protocol {protocol!r} is neither http/protobuf nor grpc")
    return getattr(import_module(f"{packages[protocol]}.{module}"), name)()
