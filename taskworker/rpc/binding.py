"""Binds a servicer's methods to gRPC: parsing, mapping of errors to status codes, logging.

gRPC answers INTERNAL to a request it cannot parse, and UNKNOWN with the exception's text to whatever
a method raises. Neither helps a caller, and the second may tell a stranger too much. So this module makes
the handlers itself, from the service's descriptor: their parsers never raise, and every failure of a
method gets its code and text from ``rpc.status``.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, NoReturn, Protocol

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from storage.errors import InvalidArgument, StorageError
from taskworker.errors import CallAbandoned, MessageTooLarge, ServerFault
from taskworker.metrics.observers import OBSERVERS, CallObserver
from taskworker.rpc import status
from taskworker.rpc.admission import DEFAULT_LIMITS, Entry, Gate, Place, ServerLimits
from taskworker.rpc.authorization import Audit, AuditOfMethod, Check, Guard, MethodGuard, user_of
from taskworker.rpc.conversion import parsed
from taskworker.rpc.early_messages import EarlyMessages, FirstMessage
from taskworker.rpc.limits import MIB, PART_BYTES_MAX
from taskworker.rpc.quick_threads import QuickThreads
from taskworker.rpc.refusals import DELAYED, Refusals
from taskworker.rpc.waits import WAITS
from taskworker.tracing.spans import SPANS, Served, Tracer

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
    quick: Mapping[str, QuickThreads] | None = None,
    guard: Guard | None = None,
    limits: ServerLimits = DEFAULT_LIMITS,
    audit: Audit | None = None,
    entry: Entry | None = None,
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
        limits: how long the server waits for messages, and how large they may be.
        audit: is told of calls; None: that of ``guard``, if it has one.
        entry: gives calls their places as they begin; None: that of ``guard``, if it has one.
    """
    told = audit if audit is not None or guard is None else guard.audit

    def bound(method: MethodDescriptor) -> _Method:
        return _Method(
            method,
            getattr(servicer, method.name),
            (codecs or {}).get(method.name, Codec()),
            hide,
            gate,
            (quick or {}).get(method.name),
            None if guard is None else guard.of_method(method),
            limits,
            None if told is None else told.of_method(method),
            entry if entry is not None or guard is None else guard.entry,
        )

    return _Service({f"/{service.full_name}/{method.name}": bound(method) for method in service.methods})


class _Service(grpc.GenericRpcHandler):
    """Finds the handlers of calls. gRPC asks for them in its only thread that receives calls."""

    def __init__(self, methods: Mapping[str, _Method]) -> None:
        self._methods = methods

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """See ``grpc.GenericRpcHandler``."""
        method = self._methods.get(handler_call_details.method)
        return None if method is None else method.handler(handler_call_details.invocation_metadata)


_MAKE = {False: grpc.stream_unary_rpc_method_handler, True: grpc.stream_stream_rpc_method_handler}
"""By whether there are many answers. All methods take a stream, which on the wire is the same: gRPC would wait for the
one message of a call before it says who calls, and for ever.
"""


@dataclass(slots=True)
class _Call:
    """A call under way: gRPC's context, what is known of the caller, its message, whose it is, and the answer."""

    context: grpc.ServicerContext
    caller: Any
    request: object = None
    whose: str = ""
    response: object = None


@dataclass(frozen=True, slots=True)
class _Taken:
    """What a call takes of what users share: its place among all calls; and how its refusal is delayed."""

    place: Place
    refusals: Refusals
    user: str
    may_wait: bool

    def delay(self, context: grpc.ServicerContext) -> None:
        """Wait until the refusal of the call may be sent."""
        delay_s = self.refusals.delay_s(self.user)
        if self.may_wait:
            self.refusals.wait(delay_s, context)


class _Told(AbstractContextManager[_Call]):
    """Gives a call its place, sends its failure, and tells the audit, the observer and the trace how it ended.

    It is a class, as a generator would take twice the time.
    """

    __slots__ = ("_began_s", "_call", "_method", "_place", "_span", "_taken")

    def __init__(
        self, method: _Method, context: grpc.ServicerContext, taken: _Taken | None, span: Served | None
    ) -> None:
        self._method = method
        self._taken = taken
        self._span = span
        self._call = _Call(context, context)
        self._place: Place | None = None
        self._began_s = time.perf_counter()

    def __enter__(self) -> _Call:
        try:
            self._place = self._method.enter(self._call)
        except Exception as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self._call

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        outcome: Exception | None = None
        try:
            if error is None:
                try:
                    self._method.tell_audit(self._call, None)
                except Exception as problem:
                    outcome = problem
                    self._method.fail(self._call, self._taken, problem)
            elif isinstance(error, GeneratorExit):  # the caller took no more of the answers
                outcome = CallAbandoned("the caller went away")
                self._method.tell_audit(self._call, outcome)
            elif isinstance(error, Exception):
                outcome = error
                self._method.fail(self._call, self._taken, error)
        finally:
            if self._place is not None:
                self._place.leave()
            self._method.tell(time.perf_counter() - self._began_s, outcome, self._span)


class _Method:
    """A method of a service."""

    def __init__(
        self,
        method: MethodDescriptor,
        behave: Callable[..., Any],
        codec: Codec,
        hide: Sequence[str],
        gate: Gate | None,
        threads: QuickThreads | None,
        guard: MethodGuard | None,
        limits: ServerLimits,
        audit: AuditOfMethod | None,
        entry: Entry | None,
    ) -> None:
        self._audit = audit
        self._entry = entry
        self._name, self._streamed, self._streams = method.full_name, method.client_streaming, method.server_streaming
        self._span = f"{method.containing_service.full_name}/{method.name}"
        self._behave = behave
        self._hide = hide
        self._gate = gate
        self._threads = threads
        self._early = None if threads is None else EarlyMessages(threads)
        self._guard = guard
        self._patience = limits.patience
        self._observer = OBSERVERS.of_rpc(method.containing_service.name, method.name)
        self._read = _reader(method, codec, limits.message_bytes, self._observer)
        self._write = _writer(codec, self._observer)
        # Only for known users, messages take memory before it is found out who calls.
        usual = self._early if guard is None else threads
        self._usual = self._handler_of(self._answer_many if self._streams else self._answer_once, usual)

    def handler(self, metadata: object) -> grpc.RpcMethodHandler[Any, Any]:
        """The handler of a call that begins."""
        sharing = None if self._guard is None else self._guard.sharing()
        if sharing is None:
            return self._usual
        user = sharing.user_of(metadata)
        try:
            place = sharing.place(user)
        except StorageError as error:
            return self._handler_of(partial(self._refuse, error), sharing.refusals.threads(user))
        # In the few threads for quick calls, none may wait.
        quick = self._early if user else self._threads
        threads = None if sharing.refusals.are_delayed(user) else quick
        taken = _Taken(place, sharing.refusals, user, may_wait=threads is None)
        return self._handler_of(
            partial(self._answer_many_in if self._streams else self._answer_once_in, taken), threads
        )

    def _handler_of(
        self, behavior: Callable[..., Any], threads: ThreadPoolExecutor | None
    ) -> grpc.RpcMethodHandler[Any, Any]:
        behavior = partial(behavior)
        if threads is not None:
            # gRPC calls this experimental. A release without it would use the server's threads.
            behavior.experimental_thread_pool = threads  # type: ignore[attr-defined]
        return _MAKE[self._streams](behavior, request_deserializer=self._read, response_serializer=self._write)

    def _refuse(self, error: StorageError, _messages: object, context: grpc.ServicerContext) -> NoReturn:
        if self._observer is not None:
            self._observer.ended(0.0, status.code_name(error))
        _send_failure(error, context, self._name, self._hide)

    def _answer_once_in(self, taken: _Taken, messages: Iterator[object], context: grpc.ServicerContext) -> object:
        try:
            return self._answer_once(messages, context, taken)
        finally:
            taken.place.leave()

    def _answer_many_in(
        self, taken: _Taken, messages: Iterator[object], context: grpc.ServicerContext
    ) -> Iterator[object]:
        try:
            yield from self._answer_many(messages, context, taken)
        finally:
            taken.place.leave()

    def _answer_once(
        self, messages: Iterator[object], context: grpc.ServicerContext, taken: _Taken | None = None
    ) -> object:
        with self._calling(context, taken) as call:
            argument = self._taken(messages, call)
            with self._admitted(call.caller):
                call.response = self._behave(argument, call.caller)
        return call.response

    def _answer_many(
        self, messages: Iterator[object], context: grpc.ServicerContext, taken: _Taken | None = None
    ) -> Iterator[object]:
        with self._calling(context, taken) as call:
            argument = self._taken(messages, call)
            with self._admitted(call.caller):
                yield from WAITS.answers(self._behave(argument, call.caller), context, call.whose, self._patience)

    def _calling(self, context: grpc.ServicerContext, taken: _Taken | None) -> AbstractContextManager[_Call]:
        tracer = SPANS.tracer
        return _Told(self, context, taken, None) if tracer is None else self._traced(tracer, context, taken)

    @contextmanager
    def _traced(self, tracer: Tracer, context: grpc.ServicerContext, taken: _Taken | None) -> Iterator[_Call]:
        with (
            tracer.server(self._span, context.invocation_metadata() or ()) as span,
            _Told(self, context, taken, span) as call,
        ):
            yield call

    def enter(self, call: _Call) -> Place | None:
        """Give a call its place; None: it needs none."""
        if self._entry is None:
            return None
        whose, place = self._entry.enter(call.context)
        call.whose = whose or ""
        return place

    def tell_audit(self, call: _Call, error: Exception | None) -> None:
        """Tell the audit how a call ended."""
        if self._audit is not None:
            response = call.response if error is None else None
            self._audit.ended(call.context, call.caller, call.request, response, error)

    def fail(self, call: _Call, taken: _Taken | None, error: Exception) -> NoReturn:
        """Tell the audit of a call's failure, and send it."""
        self.tell_audit(call, error)
        if taken is not None and isinstance(error, DELAYED):
            taken.delay(call.context)
        _send_failure(error, call.context, self._name, self._hide)

    def tell(self, seconds: float, outcome: Exception | None, span: Served | None) -> None:
        """Tell the observer and the trace how a call ended."""
        if self._observer is not None:
            self._observer.ended(seconds, status.code_name(outcome))
        if span is not None:
            span.ended(status.code_name(outcome))

    def _admitted(self, caller: object) -> AbstractContextManager[None]:
        return nullcontext() if self._gate is None else self._gate.place(user_of(caller))

    def _taken(self, messages: Iterator[object], call: _Call) -> Any:
        """What the method gets: the message, or an iterator of them."""
        check: Check | None = None
        if self._guard is not None:
            call.caller = self._guard.identified(call.context)
            check = self._guard.admit(call.caller)
        if not isinstance(messages, FirstMessage) or not messages.has_come:
            call.whose = user_of(call.caller) or call.whose or call.context.peer()
            messages = WAITS.messages(messages, call.context, call.whose, self._patience)
        if self._streamed:
            readable = map(_readable, messages)
            return readable if check is None else map(check, readable)
        for message in messages:
            call.request = _readable(message)
            return call.request if check is None else check(call.request)
        raise InvalidArgument(f"{self._name} got no message; send exactly one")


def _serialized(message: Message) -> bytes:
    return message.SerializeToString()


def _writer(codec: Codec, observer: CallObserver | None) -> Callable[[Any], bytes]:
    serialize = codec.serialize or _serialized
    if observer is None:
        return serialize

    def write(message: Any) -> bytes:
        raw = serialize(message)
        observer.sent(len(raw))
        return raw

    return write


def _reader(
    method: MethodDescriptor, codec: Codec, unary_bytes_max: int, observer: CallObserver | None
) -> Callable[[bytes], Any]:
    parse = codec.deserialize or GetMessageClass(method.input_type).FromString
    bytes_max = codec.bytes_max or (PART_BYTES_MAX if method.client_streaming else unary_bytes_max)
    instead = {"Push": "push it with PushStream", "Revise": "revise it with ReviseStream"}
    advice = instead.get(method.name, "send less in each" if method.client_streaming else "send less")

    def read(raw: bytes) -> object:
        if observer is not None:
            observer.received(len(raw))
        try:
            if len(raw) > bytes_max:
                raise MessageTooLarge(
                    f"message of {len(raw) / MIB:.1f} MiB is above the limit of {bytes_max / MIB:.4g} MiB "
                    f"for {method.name}; {advice}"
                )
            return parsed(parse, raw, f"{method.name} message")
        except StorageError as error:
            return _Refused(error)

    return read


def _readable(request: object) -> object:
    if isinstance(request, _Refused):
        raise request.error
    return request


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
