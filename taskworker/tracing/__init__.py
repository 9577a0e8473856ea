"""Traces and logs for OpenTelemetry, if the environment asks for them.

``spans`` is what the code calls, and knows nothing of OpenTelemetry: nothing is imported and nothing is done until
``otlp`` has begun, which only happens if variables such as ``OTEL_EXPORTER_OTLP_ENDPOINT`` say so.
"""
