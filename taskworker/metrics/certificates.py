"""When the certificates of this process are valid."""

from __future__ import annotations

from collections.abc import Mapping

from taskworker.metrics.families import Families, gauges


def certificates(lifetimes: Mapping[str, tuple[float, float]]) -> Families:
    """From when until when certificates are valid.

    Args:
        lifetimes: both in seconds since 1970, by what a certificate is for: ``users`` is shown to users, ``member`` to
            other members of a pool.
    """
    yield gauges(
        "taskworker_certificate_issued_timestamp_seconds",
        "From when on a certificate of this process is valid.",
        ["certificate"],
        [([name], begin_s) for name, (begin_s, _) in lifetimes.items()],
    )
    yield gauges(
        "taskworker_certificate_expiry_timestamp_seconds",
        "Until when a certificate of this process is valid.",
        ["certificate"],
        [([name], end_s) for name, (_, end_s) in lifetimes.items()],
    )
