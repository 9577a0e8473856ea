"""What went wrong, in HTTP's numbers."""

from __future__ import annotations

from storage.errors import (
    ConflictError,
    DataLossError,
    FileNotFound,
    InsufficientWorkers,
    InvalidArgument,
    PermissionDenied,
    StorageError,
    StoreFull,
    StoreUnavailable,
    VersionNotFound,
)
from taskworker.errors import (
    CallAbandoned,
    CallOverdue,
    DeadlineExceeded,
    FunctionBusy,
    FunctionNotFound,
    SecretNotFound,
    StorageUnavailable,
    Unauthenticated,
)

_STATUS: tuple[tuple[tuple[type[StorageError], ...], int], ...] = (
    ((Unauthenticated,), 401),
    ((PermissionDenied,), 403),
    ((FileNotFound, VersionNotFound, FunctionNotFound, SecretNotFound), 404),
    ((ConflictError,), 409),
    ((InvalidArgument, CallAbandoned), 400),
    ((StoreFull,), 507),
    ((FunctionBusy,), 429),
    ((DeadlineExceeded, CallOverdue), 504),
    ((StorageUnavailable, StoreUnavailable, InsufficientWorkers, DataLossError), 503),
)


def status_of(error: StorageError) -> int:
    """The status of a reply that tells of an error."""
    return next((status for kinds, status in _STATUS if isinstance(error, kinds)), 500)
