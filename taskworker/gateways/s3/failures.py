"""Errors of the store as those of S3."""

from __future__ import annotations

from storage.errors import (
    ConflictError,
    FileNotFound,
    InsufficientWorkers,
    InvalidArgument,
    KeyRequired,
    PermissionDenied,
    QuotaExceeded,
    StorageError,
    StoreFull,
    StoreUnavailable,
    VersionNotFound,
)
from taskworker.errors import DeadlineExceeded, ServerBusy, StorageUnavailable, Unauthenticated
from taskworker.gateways.s3.errors import S3Error

_CODES: tuple[tuple[type[StorageError], str], ...] = (
    (FileNotFound, "NoSuchKey"),
    (VersionNotFound, "NoSuchVersion"),
    (PermissionDenied, "AccessDenied"),
    (KeyRequired, "AccessDenied"),
    (Unauthenticated, "InvalidAccessKeyId"),
    (ConflictError, "PreconditionFailed"),
    (QuotaExceeded, "QuotaExceeded"),
    (InvalidArgument, "InvalidArgument"),
    (ServerBusy, "SlowDown"),
    (StoreFull, "ServiceUnavailable"),
    (StoreUnavailable, "ServiceUnavailable"),
    (StorageUnavailable, "ServiceUnavailable"),
    (InsufficientWorkers, "ServiceUnavailable"),
    (DeadlineExceeded, "ServiceUnavailable"),
)


def as_s3_error(error: StorageError) -> S3Error:
    """The error of S3 that says the same; the first class that fits counts."""
    code = next((code for kind, code in _CODES if isinstance(error, kind)), "InternalError")
    return S3Error(code, str(error))
