"""Asks a server by the standard health service whether it serves; strangers may, too."""

from __future__ import annotations

from collections.abc import Callable

import grpc
from grpc_health.v1 import health_pb2

from taskworker.rpc.dialling import dial

_ANSWER_S = 2.0


def unready_of(address: str) -> Callable[[], str]:
    """What tells why a server cannot do its work now; empty: it can.

    Args:
        address: see :func:`~taskworker.rpc.dialling.target_of`.

    Raises:
        InvalidArgument: the address is malformed.
    """
    check = dial(address).unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )

    def unready() -> str:
        try:
            answer = check(health_pb2.HealthCheckRequest(), timeout=_ANSWER_S)
        except grpc.RpcError:
            return f"the pool at {address} does not answer"
        return "" if answer.status == health_pb2.HealthCheckResponse.SERVING else f"the pool at {address} is not ready"

    return unready
