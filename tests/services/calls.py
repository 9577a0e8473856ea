"""All calls of all services, made as a stranger's client makes them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

import taskworker.protos

CALL_S_MAX = 20.0
_TOGETHER = 16


def services() -> Iterator[ServiceDescriptor]:
    """Every service that a server of TaskWorker may have."""
    names = [one.name for one in pkgutil.iter_modules(taskworker.protos.__path__) if one.name.endswith("_pb2")]
    modules = [importlib.import_module(f"taskworker.protos.{name}") for name in names]
    for module in (*modules, health_pb2, reflection_pb2):
        yield from module.DESCRIPTOR.services_by_name.values()


def methods() -> dict[str, MethodDescriptor]:
    """Every call, by full name."""
    return {method.full_name: method for service in services() for method in service.methods}


def outcome(
    channel: grpc.Channel, method: MethodDescriptor, message: Message | None = None, token: str | None = None
) -> tuple[grpc.StatusCode, str]:
    """Make a call, by default with an empty message; return how it ended, or OK once an answer has come."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    make = getattr(channel, kind)(
        path,
        request_serializer=lambda one: one.SerializeToString(),
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
    sent = message if message is not None else GetMessageClass(method.input_type)()
    metadata = () if token is None else (("authorization", f"Bearer {token}"),)
    try:
        answer = make(iter([sent]) if method.client_streaming else sent, timeout=CALL_S_MAX, metadata=metadata)
        if method.server_streaming:
            next(answer, None)
            answer.cancel()
    except grpc.RpcError as error:
        return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


def outcomes(
    channel: grpc.Channel, called: Iterable[MethodDescriptor], token: str | None = None
) -> dict[str, grpc.StatusCode]:
    """Make calls with empty messages, many at once; return by full name how they ended.

    Those that reach nobody are tried again for a while, so one after another takes long.
    """
    names = {method.full_name: method for method in called}
    with ThreadPoolExecutor(_TOGETHER) as threads:
        codes = threads.map(lambda method: outcome(channel, method, token=token)[0], names.values())
        return dict(zip(names, codes, strict=True))
