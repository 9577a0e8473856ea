"""Traces of commands, if variables of OpenTelemetry ask for them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

_SERVICES = {
    "pool": "taskworker-pool",
    "worker": "taskworker-worker",
    "serve": "taskworker-serve",
    "s3": "taskworker-gateway",
    "mount": "taskworker-mount",
}
"""Commands that serve others until they are stopped, so that a span of theirs would never end."""
_WITHOUT = frozenset(("up", "demo"))
"""Commands that start others, which tell of themselves."""


@contextmanager
def traced_command(name: str, instance: str) -> Iterator[None]:
    """Within this context, a command is told about; nothing is imported unless the environment asks for it.

    Args:
        name: of the command.
        instance: name of this process among those of its kind; empty: none.
    """
    if not any(each.startswith("OTEL_") for each in os.environ) or name in _WITHOUT:
        yield
        return
    from taskworker import __version__
    from taskworker.tracing.otlp import begin, end
    from taskworker.tracing.spans import SPANS

    begin(_SERVICES.get(name, "taskworker-cli"), __version__, instance)
    try:
        with nullcontext() if name in _SERVICES else SPANS.internal(f"taskworker {name}"):
            yield
    finally:
        end()
