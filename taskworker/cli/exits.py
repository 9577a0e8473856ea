"""Exit codes, and which error leads to which."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """The exit code of a command."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    CONFLICT = 4
    DATA_LOSS = 5
    UNAVAILABLE = 6
    PIPE_CLOSED = 141  # 128 + SIGPIPE, as shells report it


class Failure(Exception):
    """A command cannot do what was asked; the text is shown to the user unchanged."""

    def __init__(self, message: str, code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(message)
        self.code = code


def exit_code_of(error: Exception) -> ExitCode:
    """The exit code for an error of the engine, the client or the operating system."""
    from storage import errors
    from taskworker.errors import (
        AccessKeyInvalid,
        DeadlineExceeded,
        FunctionNotFound,
        NameNotFound,
        SecretDamaged,
        SecretExists,
        SecretNotFound,
        SecretsUnavailable,
        StorageUnavailable,
    )

    if isinstance(error, Failure):
        return error.code
    families: tuple[tuple[type[Exception], ExitCode], ...] = (
        (errors.InvalidArgument, ExitCode.USAGE),
        (errors.FileNotFound, ExitCode.NOT_FOUND),
        (errors.VersionNotFound, ExitCode.NOT_FOUND),
        (FunctionNotFound, ExitCode.NOT_FOUND),
        (AccessKeyInvalid, ExitCode.NOT_FOUND),
        (SecretNotFound, ExitCode.NOT_FOUND),
        (SecretExists, ExitCode.CONFLICT),
        (NameNotFound, ExitCode.NOT_FOUND),
        (errors.ConflictError, ExitCode.CONFLICT),
        (errors.DataLossError, ExitCode.DATA_LOSS),
        (SecretDamaged, ExitCode.DATA_LOSS),
        (SecretsUnavailable, ExitCode.UNAVAILABLE),
        (errors.IncompletePush, ExitCode.UNAVAILABLE),
        (errors.InsufficientWorkers, ExitCode.UNAVAILABLE),
        (errors.StoreLocked, ExitCode.UNAVAILABLE),
        (errors.StoreClosed, ExitCode.UNAVAILABLE),
        (errors.StoreUnavailable, ExitCode.UNAVAILABLE),
        (errors.CatalogBehind, ExitCode.UNAVAILABLE),
        (StorageUnavailable, ExitCode.UNAVAILABLE),
        (DeadlineExceeded, ExitCode.UNAVAILABLE),
    )
    return next((code for family, code in families if isinstance(error, family)), ExitCode.FAILED)
