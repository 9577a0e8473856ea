"""Errors ↔ gRPC status codes: the one place where either is chosen.

A failed call carries a code, a text for people and, in the trailing metadata, an ``ErrorDetail``
from which the client rebuilds the error that the engine raised. Without the detail, the code alone
decides the error's class.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
from google.protobuf.message import DecodeError

from storage.errors import (
    CatalogBehind,
    ConflictError,
    DataLossError,
    FileNotFound,
    FormatError,
    IncompletePush,
    InsufficientWorkers,
    InvalidArgument,
    KeyRequired,
    PermissionDenied,
    QuotaExceeded,
    SealBroken,
    StorageError,
    StoreClosed,
    StoreFull,
    StoreLocked,
    StoreReadOnly,
    StoreUnavailable,
    VersionNotFound,
)
from storage.shards import VolumeFailed, VolumeReadOnly, VolumeUnavailable
from taskworker.errors import (
    AccessKeyInvalid,
    ApiBusy,
    ApiLimitExceeded,
    ApiUnreachable,
    CallAbandoned,
    CallNotOffered,
    CallOverdue,
    CallUncertain,
    DeadlineExceeded,
    FunctionBroken,
    FunctionBusy,
    FunctionCrashed,
    FunctionFailed,
    FunctionLimitExceeded,
    FunctionNotFound,
    FunctionsUnavailable,
    MessageTooLarge,
    NameNotFound,
    NameServersUnavailable,
    NotJoined,
    PoolIsBlind,
    SecretDamaged,
    SecretExists,
    SecretNotFound,
    SecretsUnavailable,
    ServerBusy,
    ServerFault,
    ServerNotTrusted,
    StorageUnavailable,
    TicketRefused,
    Unauthenticated,
    WorkerReadOnly,
    WorkerRefused,
    WorkerRestarted,
)
from taskworker.protos.store_pb2 import ErrorDetail, FileError
from taskworker.rpc.limits import STATUS_TEXT_BYTES_MAX
from taskworker.rpc.tls_problems import tls_problem

DETAIL_KEY = "error-detail-bin"
HEAD_KEY = "head-version"
BASE_KEY = "base-version"
RETRY_KEY = "retry-after"  # seconds
_CUT_OFF = "CANCELLED"
"""The text of a call that the server cancels, or whose channel was closed; one that its caller cancels has another."""
_RETRY_AFTER_S = 1

_CAUSE = re.compile(
    r"last error: .*Failed to connect to remote host: ([^:]+)$|address lookup failed for [^ ]+: ([^:\]]+)\]?$"
)
"""What gRPC says of an address where nobody answers; the groups are the cause."""

_CODES: Mapping[type[StorageError], grpc.StatusCode] = {
    FileNotFound: grpc.StatusCode.NOT_FOUND,
    VersionNotFound: grpc.StatusCode.NOT_FOUND,
    PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    TicketRefused: grpc.StatusCode.PERMISSION_DENIED,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    ConflictError: grpc.StatusCode.ABORTED,
    IncompletePush: grpc.StatusCode.ABORTED,
    InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    PoolIsBlind: grpc.StatusCode.INVALID_ARGUMENT,
    MessageTooLarge: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DataLossError: grpc.StatusCode.DATA_LOSS,
    InsufficientWorkers: grpc.StatusCode.UNAVAILABLE,
    StoreFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    QuotaExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    WorkerReadOnly: grpc.StatusCode.RESOURCE_EXHAUSTED,
    StoreLocked: grpc.StatusCode.UNAVAILABLE,
    FormatError: grpc.StatusCode.FAILED_PRECONDITION,
    KeyRequired: grpc.StatusCode.FAILED_PRECONDITION,
    SealBroken: grpc.StatusCode.FAILED_PRECONDITION,
    CatalogBehind: grpc.StatusCode.FAILED_PRECONDITION,
    StoreClosed: grpc.StatusCode.UNAVAILABLE,
    StoreUnavailable: grpc.StatusCode.UNAVAILABLE,
    StoreReadOnly: grpc.StatusCode.UNAVAILABLE,
    VolumeFailed: grpc.StatusCode.UNAVAILABLE,
    VolumeUnavailable: grpc.StatusCode.UNAVAILABLE,
    VolumeReadOnly: grpc.StatusCode.UNAVAILABLE,
    StorageUnavailable: grpc.StatusCode.UNAVAILABLE,
    ServerNotTrusted: grpc.StatusCode.UNAVAILABLE,
    ServerBusy: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    CallAbandoned: grpc.StatusCode.CANCELLED,
    CallNotOffered: grpc.StatusCode.UNIMPLEMENTED,
    CallOverdue: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ServerFault: grpc.StatusCode.INTERNAL,
    WorkerRefused: grpc.StatusCode.FAILED_PRECONDITION,
    WorkerRestarted: grpc.StatusCode.FAILED_PRECONDITION,
    NotJoined: grpc.StatusCode.FAILED_PRECONDITION,
    FunctionNotFound: grpc.StatusCode.NOT_FOUND,
    FunctionFailed: grpc.StatusCode.UNKNOWN,  # as gRPC itself does for exceptions of a method
    FunctionBroken: grpc.StatusCode.FAILED_PRECONDITION,
    FunctionLimitExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    FunctionCrashed: grpc.StatusCode.INTERNAL,
    FunctionsUnavailable: grpc.StatusCode.UNAVAILABLE,
    FunctionBusy: grpc.StatusCode.RESOURCE_EXHAUSTED,
    NameNotFound: grpc.StatusCode.NOT_FOUND,
    NameServersUnavailable: grpc.StatusCode.UNAVAILABLE,
    CallUncertain: grpc.StatusCode.UNKNOWN,  # not UNAVAILABLE, which callers retry
    AccessKeyInvalid: grpc.StatusCode.NOT_FOUND,
    SecretNotFound: grpc.StatusCode.NOT_FOUND,
    SecretExists: grpc.StatusCode.ALREADY_EXISTS,
    SecretsUnavailable: grpc.StatusCode.FAILED_PRECONDITION,
    SecretDamaged: grpc.StatusCode.DATA_LOSS,
    ApiUnreachable: grpc.StatusCode.UNAVAILABLE,
    ApiLimitExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ApiBusy: grpc.StatusCode.RESOURCE_EXHAUSTED,
}

_BY_NAME: Mapping[str, type[StorageError]] = {cls.__name__: cls for cls in _CODES}

# For a peer that sends no detail. Errors with RESOURCE_EXHAUSTED are distinguished by their text.
_BY_CODE: Mapping[grpc.StatusCode, type[StorageError]] = {
    grpc.StatusCode.NOT_FOUND: FileNotFound,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.ABORTED: ConflictError,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.DATA_LOSS: DataLossError,
    grpc.StatusCode.FAILED_PRECONDITION: FormatError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: CallAbandoned,
    grpc.StatusCode.UNAVAILABLE: StorageUnavailable,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ServerBusy,
}

_BY_NUMBER: Mapping[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}

Metadata = Iterable[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as it travels: status code, text for people, trailing metadata for programs."""

    code: grpc.StatusCode
    text: str
    metadata: tuple[tuple[str, str | bytes], ...]


def is_foreseen(error: BaseException) -> bool:
    """Whether ``error`` has a status code of its own; all others are INTERNAL."""
    return any(cls in _CODES for cls in type(error).__mro__)


def code_name(error: Exception | None) -> str:
    """The name of the status code that a call with this outcome ends with; None: it succeeded."""
    if error is None:
        return grpc.StatusCode.OK.name
    if isinstance(error, grpc.RpcError):  # gRPC raises this itself to tell a method that the call is already over
        return grpc.StatusCode.CANCELLED.name
    if isinstance(error, StorageError) and is_foreseen(error):
        return next(_CODES[cls] for cls in type(error).__mro__ if cls in _CODES).name
    return grpc.StatusCode.INTERNAL.name


def kind_of(error: StorageError) -> str:
    """The name under which an error travels."""
    return next((cls.__name__ for cls in type(error).__mro__ if cls in _CODES), ServerFault.__name__)


def error_of(kind: str, text: str) -> StorageError:
    """The error for a name that :func:`kind_of` returned; ServerFault for any other name."""
    return _rebuilt(_BY_NAME.get(kind, ServerFault), text, ErrorDetail())


def encode(error: StorageError, hide: Iterable[str] = ()) -> Failure:
    """The status to send for a foreseen ``error``; paths in ``hide`` are not shown to callers."""
    kind = next(cls for cls in type(error).__mro__ if cls in _CODES)
    text = str(error)
    for path in hide:
        text = text.replace(path, "<store>")
    detail = ErrorDetail(kind=kind.__name__)
    metadata: list[tuple[str, str | bytes]] = []
    if isinstance(error, ConflictError):
        detail.head, detail.base = error.head, error.base or ""
        metadata += [(HEAD_KEY, detail.head), (BASE_KEY, detail.base)]
        if error.head not in text:
            text += f" (head: {error.head})"
    elif isinstance(error, DataLossError):
        detail.chunk, detail.found, detail.needed = error.chunk, error.found, error.needed
        detail.filename, detail.file_id = error.filename or "", error.file_id or ""
    elif isinstance(error, FunctionBusy | ApiBusy):
        metadata.append((RETRY_KEY, str(_RETRY_AFTER_S)))
    metadata.append((DETAIL_KEY, detail.SerializeToString()))
    return Failure(_CODES[kind], _shortened(text), tuple(metadata))


def file_error(error: StorageError, hide: Iterable[str] = ()) -> FileError:
    """The error of one file of a call on many; it has what :func:`encode` would send for a call of its own."""
    failure = encode(error, hide)
    return FileError(code=failure.code.value[0], text=failure.text, detail=_detail(dict(failure.metadata)))


def file_error_from(message: FileError, address: str) -> StorageError:
    """Inverse of :func:`file_error`, for a message from ``address``."""
    if message.detail.kind in _BY_NAME:
        return _rebuilt(_BY_NAME[message.detail.kind], message.text, message.detail)
    code = _BY_NUMBER.get(message.code, grpc.StatusCode.UNKNOWN)
    return _from_code(code, message.text, {}, address)


def is_unknown_call(error: grpc.RpcError) -> bool:
    """Whether the error says that the server does not offer this call at all."""
    return _code_and_text(error)[0] is grpc.StatusCode.UNIMPLEMENTED


def decode(error: grpc.RpcError, address: str) -> StorageError:
    """The engine's error for a failed call to ``address``."""
    code, text = _code_and_text(error)
    metadata = dict(_trailing(error))
    detail = _detail(metadata)
    if detail is not None and detail.kind in _BY_NAME:
        return _rebuilt(_BY_NAME[detail.kind], text, detail)
    return _from_code(code, text, metadata, address)


@contextmanager
def errors_decoded(address: str) -> Iterator[None]:
    """Within this context, a failed call to ``address`` raises the engine's error for it."""
    try:
        yield
    except grpc.RpcError as error:
        raise decode(error, address) from None


def _rebuilt(cls: type[StorageError], text: str, detail: ErrorDetail) -> StorageError:
    if cls is ConflictError:
        return ConflictError(text, head=detail.head, base=detail.base or None)
    if cls is DataLossError:
        lost = DataLossError(
            detail.chunk,
            detail.found,
            detail.needed,
            filename=detail.filename or None,
            file_id=detail.file_id or None,
        )
        lost.args = (text,)
        return lost
    return cls(text)


def _from_code(code: grpc.StatusCode, text: str, metadata: Mapping[str, str | bytes], address: str) -> StorageError:
    if code is grpc.StatusCode.UNAVAILABLE:
        problem = tls_problem(text, address)
        if problem:
            return ServerNotTrusted(problem)
        return StorageUnavailable(
            f"no TaskWorker server answers at {address} ({_cause(text)}); "
            "check the address, or start one there with `taskworker up`, `taskworker pool` or `taskworker serve`"
        )
    if code is grpc.StatusCode.CANCELLED and text == _CUT_OFF:
        return StorageUnavailable(
            f"the call to {address} was cut off: its connection was closed, or the server was stopped; try again"
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(f"the call to {address} took longer than its time limit; allow more time or try again")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return CallNotOffered(f"the server at {address} does not offer this call ({text}); is it a TaskWorker server?")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in text:
        return MessageTooLarge(f"{text}; send or fetch files this large with PushStream or GetStream")
    head, base = str(metadata.get(HEAD_KEY, "")), str(metadata.get(BASE_KEY, ""))
    return _rebuilt(_BY_CODE.get(code, ServerFault), text, ErrorDetail(head=head, base=base))


def _cause(text: str) -> str:
    """Why a server could not be reached, without how gRPC tried to."""
    found = _CAUSE.search(text)
    return next(filter(None, found.groups())) if found else text


def _code_and_text(error: grpc.RpcError) -> tuple[grpc.StatusCode, str]:
    if not isinstance(error, grpc.Call | grpc.aio.AioRpcError):
        return grpc.StatusCode.UNKNOWN, str(error)
    return error.code(), error.details() or ""


def _trailing(error: grpc.RpcError) -> Metadata:
    if not isinstance(error, grpc.Call | grpc.aio.AioRpcError):
        return ()
    return tuple(error.trailing_metadata() or ())


def _detail(metadata: Mapping[str, str | bytes]) -> ErrorDetail | None:
    raw = metadata.get(DETAIL_KEY)
    if not isinstance(raw, bytes):
        return None
    try:
        return ErrorDetail.FromString(raw)
    except DecodeError:
        return None


def _shortened(text: str) -> str:
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= STATUS_TEXT_BYTES_MAX:
        return encoded.decode()
    return encoded[: STATUS_TEXT_BYTES_MAX - 3].decode("utf-8", "ignore") + "…"
