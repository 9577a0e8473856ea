"""Binds a servicer's methods to gRPC: parsing, mapping of errors to status codes, logging.

gRPC answers INTERNAL to a request it cannot parse, and UNKNOWN with the exception's text to whatever
a method raises. Neither helps a caller, and the second may tell a stranger too much. So this module makes
the handlers itself, from the service's descriptor: their parsers never raise, and every failure of a
method gets its code and text from ``rpc.status``.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol, cast

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from storage.errors import StorageError
from taskworker.errors import CallAbandoned, MessageTooLarge, ServerFault
from taskworker.rpc import status
from taskworker.rpc.admission import Gate
from taskworker.rpc.authorization import Guard, MethodGuard
from taskworker.rpc.conversion import parsed
from taskworker.rpc.limits import MIB, PART_BYTES_MAX, UNARY_BYTES_MAX

log = logging.getLogger("taskworker.services")


class Caller(Protocol):
    """The caller that waits for the answer. gRPC's ServicerContext implements it."""

    def is_active(self) -> bool:
        """False once the caller has cancelled, gone away or run out of time."""
        ...


class InProcess:
    """The caller of a method called in the same process: it never goes away."""

    def is_active(self) -> bool:
        """Always true."""
        return True


def require_active(caller: Caller) -> None:
    """Raise CallAbandoned if nobody waits for the answer any more."""
    if not caller.is_active():
        raise CallAbandoned("the caller went away or its time ran out; nothing was changed")


def stop_when_abandoned(caller: Caller) -> Callable[[int, int], None]:
    """A progress callback that stops the work of a caller who is gone."""

    def progress(_done: int, _total: int) -> None:
        require_active(caller)

    return progress


@dataclass(frozen=True, slots=True)
class Codec:
    """How to convert one method's messages without protobuf, which would copy their data once more.

    Attributes:
        deserialize: converts the raw request to the method's argument; None: the protobuf message.
        serialize: converts the method's result to the raw response; None: the protobuf message.
        bytes_max: size of the largest request message; None: that of all methods of this kind.
    """

    deserialize: Callable[[bytes], Any] | None = None
    serialize: Callable[[Any], bytes] | None = None
    bytes_max: int | None = None


@dataclass(frozen=True, slots=True)
class _Refused:
    """Stands for a request that could not be parsed; its error is raised instead of calling the method."""

    error: StorageError


def generic_handler(
    service: ServiceDescriptor,
    servicer: object,
    *,
    codecs: Mapping[str, Codec] | None = None,
    hide: Sequence[str] = (),
    gate: Gate | None = None,
    quick: Mapping[str, ThreadPoolExecutor] | None = None,
    guard: Guard | None = None,
) -> grpc.GenericRpcHandler:
    """Handlers of all methods of ``service``, found by name on ``servicer``.

    Args:
        service: the service's descriptor.
        servicer: has a method ``Name(request, caller)`` for each; streams are iterators.
        codecs: by method name, for messages that protobuf does not convert.
        hide: paths that must not appear in texts sent to callers.
        gate: limits how many calls run at once; None: only the server's own limit.
        quick: by method name, threads to use instead of the server's.
        guard: finds out who calls, and refuses what they may not do; None: everybody may do everything.
    """

    def handler(method: MethodDescriptor) -> grpc.RpcMethodHandler[Any, Any]:
        admit = nullcontext if gate is None else gate.place
        codec = (codecs or {}).get(method.name, Codec())
        threads = (quick or {}).get(method.name)
        guarded = None if guard is None else guard.of_method(method)
        return _method_handler(method, getattr(servicer, method.name), codec, hide, admit, threads, guarded)

    handlers = {method.name: handler(method) for method in service.methods}
    return grpc.method_handlers_generic_handler(service.full_name, handlers)


def _method_handler(
    method: MethodDescriptor,
    behave: Callable[..., Any],
    codec: Codec,
    hide: Sequence[str],
    admit: Callable[[], AbstractContextManager[None]],
    threads: ThreadPoolExecutor | None,
    guard: MethodGuard | None,
) -> grpc.RpcMethodHandler[Any, Any]:
    name, streamed = method.full_name, method.client_streaming

    def taken(request: object, context: grpc.ServicerContext) -> tuple[object, Any]:
        """What the method gets: the request, or an iterator of them, and the caller."""
        if guard is None:
            return _readable(request, streamed=streamed), context
        caller, check = guard.admit(context)
        readable = _readable(request, streamed=streamed)
        return (map(check, cast(Iterator[object], readable)) if streamed else check(readable)), caller

    def answer_once(request: object, context: grpc.ServicerContext) -> object:
        try:
            arguments = taken(request, context)
            with admit():
                return behave(*arguments)
        except Exception as error:
            _send_failure(error, context, name, hide)

    def answer_many(request: object, context: grpc.ServicerContext) -> Iterator[object]:
        with _failures_sent(context, name, hide):
            arguments = taken(request, context)
            with admit():
                yield from behave(*arguments)

    behavior = answer_many if method.server_streaming else answer_once
    if threads is not None:
        # gRPC calls this experimental. A release without it would use the server's threads.
        behavior.experimental_thread_pool = threads  # type: ignore[attr-defined]
    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[method.client_streaming, method.server_streaming]
    return make(
        behavior,
        request_deserializer=_reader(method, codec),
        response_serializer=codec.serialize or _serialized,
    )


def _serialized(message: Message) -> bytes:
    return message.SerializeToString()


def _reader(method: MethodDescriptor, codec: Codec) -> Callable[[bytes], Any]:
    parse = codec.deserialize or GetMessageClass(method.input_type).FromString
    bytes_max = codec.bytes_max or (PART_BYTES_MAX if method.client_streaming else UNARY_BYTES_MAX)
    advice = "send less in each" if method.client_streaming else "push it with PushStream, revise it with ReviseStream"

    def read(raw: bytes) -> object:
        try:
            if len(raw) > bytes_max:
                raise MessageTooLarge(
                    f"message of {len(raw) / MIB:.1f} MiB is above the limit of {bytes_max // MIB} MiB "
                    f"for {method.name}; {advice}"
                )
            return parsed(parse, raw, f"{method.name} message")
        except StorageError as error:
            return _Refused(error)

    return read


def _readable(request: object, *, streamed: bool) -> object:
    if streamed:
        return map(_one_readable, cast(Iterator[object], request))
    return _one_readable(request)


def _one_readable(request: object) -> object:
    if isinstance(request, _Refused):
        raise request.error
    return request


@contextmanager
def _failures_sent(context: grpc.ServicerContext, method: str, hide: Sequence[str]) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        _send_failure(error, context, method, hide)


def _send_failure(error: Exception, context: grpc.ServicerContext, method: str, hide: Sequence[str]) -> NoReturn:
    """End a call with the status of an error."""
    if isinstance(error, grpc.RpcError):
        raise error  # gRPC raises this itself to tell a method that the call is already over
    _abort(context, status.encode(foreseen(error, method), hide))


def foreseen(error: Exception, method: str) -> StorageError:
    """Return an error as it may be sent to callers. One that has no status code is logged, and replaced."""
    if isinstance(error, StorageError) and status.is_foreseen(error):
        return error
    reference = secrets.token_hex(4)
    log.error("%s failed (reference %s)", method, reference, exc_info=error)
    return ServerFault(f"the server failed unexpectedly; see reference {reference} in its log")


def _abort(context: grpc.ServicerContext, failure: status.Failure) -> NoReturn:
    context.set_trailing_metadata(failure.metadata)
    context.abort(failure.code, failure.text)
    raise AssertionError("abort raises")
