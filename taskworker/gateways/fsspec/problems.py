"""Errors of the store as the errors that Python's own files raise; the store's error is their cause."""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from storage import Version
from storage.errors import (
    ConflictError,
    FileNotFound,
    InvalidArgument,
    PermissionDenied,
    QuotaExceeded,
    StorageError,
    StoreFull,
    StoreLocked,
    StoreReadOnly,
    VersionNotFound,
)
from taskworker.errors import DeadlineExceeded, StorageUnavailable, Unauthenticated

_NUMBERS: tuple[tuple[type[StorageError], int], ...] = (
    (FileNotFound, errno.ENOENT),
    (VersionNotFound, errno.ENOENT),
    (PermissionDenied, errno.EACCES),
    (Unauthenticated, errno.EACCES),
    (InvalidArgument, errno.EINVAL),
    (QuotaExceeded, errno.EDQUOT),
    (StoreFull, errno.ENOSPC),
    (StoreReadOnly, errno.EROFS),
    (StoreLocked, errno.EBUSY),
    (ConflictError, errno.ESTALE),
    (DeadlineExceeded, errno.ETIMEDOUT),
    (StorageUnavailable, errno.ECONNREFUSED),
)
"""The more special classes come first."""

P = ParamSpec("P")
ResultT = TypeVar("ResultT")


def as_os_error(error: Exception, path: str | None = None) -> Exception:
    """The error that Python's own files would raise, caused by ``error``; other errors as they are."""
    if not isinstance(error, StorageError):
        return error
    number = next((number for kind, number in _NUMBERS if isinstance(error, kind)), errno.EIO)
    made = OSError(number, str(error), path) if path is not None else OSError(number, str(error))
    made.__cause__ = error
    return made


def with_os_errors(function: Callable[P, ResultT]) -> Callable[P, ResultT]:
    """Have a method raise errors of the operating system in place of the store's.

    The path that they tell is the first argument, if that is a name or a version.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> ResultT:
        try:
            return function(*args, **kwargs)
        except StorageError as error:
            raise as_os_error(error, _path_in(args[1:])) from error

    return run


def _path_in(args: tuple[object, ...]) -> str | None:
    first = args[0] if args else None
    if isinstance(first, Version):
        return first.filename
    return first if isinstance(first, str) else None
