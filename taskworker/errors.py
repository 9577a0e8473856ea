"""Errors of the network, added to the engine's own error family.

All are subclasses of ``storage.StorageError``, so that a program deals with one family whether the store is
embedded or remote. Errors of the engine itself arrive as the engine's own classes.
"""

from __future__ import annotations

import os

from storage.errors import InvalidArgument, PermissionDenied, StorageError, StoreFull


class StorageUnavailable(StorageError):
    """No server answers at the address, or it is shutting down. Trying again later may help."""


def cannot_listen(address: str, error: OSError | None = None) -> StorageUnavailable:
    """The error of a server that cannot listen on an address; ``error``: why, if the system says so."""
    cause = ""
    if error is not None:
        number = error.errno or 0  # negative if a name could not be looked up
        cause = f" ({os.strerror(number) if number > 0 else error.strerror or error})"
    return StorageUnavailable(
        f"cannot listen on {address}{cause}: is another server running there? Stop it, or choose another address"
    )


class ServerNotTrusted(StorageUnavailable):
    """What answers at the address does not prove to be the server that is expected there; nothing was sent to it.

    Its certificate is expired, or of another authority or host, or only one of both ends uses TLS. The text says which.
    """


class ServerBusy(StorageUnavailable):
    """The server runs as many calls of this kind as it allows; try again in a moment."""


class CallOverdue(StorageError):
    """The server did not get a message of the call in time, or too many calls of the caller wait for theirs."""


class DeadlineExceeded(StorageError):
    """The time limit of the call ran out. To resume a push that was cut off, push again."""


class CallAbandoned(StorageError):
    """The caller cancelled or disconnected before the server was done; nothing was committed."""


class CallNotOffered(StorageError):
    """The server does not offer this call. It is older than the caller, or no TaskWorker server."""


class MessageTooLarge(InvalidArgument):
    """A message exceeds the limit; the text names the streaming call to use instead."""


class PoolIsBlind(InvalidArgument):
    """A file is sealed with a key of its user's, and what was asked for needs its content in clear, or plain names."""


class PackagesNotFound(InvalidArgument):
    """pip found no wheels for a function's requirements; the text has its errors, one a line."""


class ServerFault(StorageError):
    """The server failed unexpectedly; its log has the details."""


class Unauthenticated(StorageError):
    """The server does not know who is calling: the token is missing, unknown, expired or revoked."""


class TicketRefused(PermissionDenied):
    """A worker does not accept a ticket for what is asked with it; the text says why. Clients ask the pool instead."""


class WorkerRefused(StorageError):
    """A pool refuses a worker; the text says why and what to do."""


class WorkerRestarted(StorageError):
    """A write was meant for an earlier process of a worker; shards which that process had not synced may be lost."""


class WorkerReadOnly(StoreFull):
    """A worker's disk is read-only. It still serves its shards; new shards go to others, as if it were full."""


class NotJoined(StorageError):
    """The pool does not know the worker that sent a heartbeat, or its lease expired; the worker joins again."""


class FunctionNotFound(StorageError):
    """No function has this name, in the pool or on the worker."""


class FunctionFailed(StorageError):
    """A function raised an exception; the text has its type, its message, and the function's own frames."""


class FunctionBroken(StorageError):
    """A function cannot be loaded: its module fails when it is imported, or does not hold the function."""


class FunctionLimitExceeded(StorageError):
    """A call exceeded a limit; the text names the limit and its value."""


class FunctionCrashed(StorageError):
    """A function's process ended without an answer, or violated the protocol."""


class FunctionsUnavailable(StorageUnavailable):
    """No live worker can run the function now; trying again later may help."""


class FunctionBusy(ServerBusy):
    """As many calls of the function are running and waiting as are allowed; try again after a while."""


class NameNotFound(StorageError):
    """A domain name does not exist, or has no records of the type asked for; the text says which."""


class NameServersUnavailable(StorageUnavailable):
    """No name server answered; the text says what each of them did. Trying again later may help."""


class CallUncertain(StorageError):
    """A worker was lost during a call that must not run twice: the call may or may not have run."""


class AccessKeyInvalid(StorageError):
    """There is no access key of this id, or it has expired or was revoked."""


class SecretNotFound(StorageError):
    """The pool has no secret of this name. Only operators get this error."""


class SecretExists(StorageError):
    """The pool already has a secret of this name."""


class SecretsUnavailable(StorageError):
    """The master key is missing, is the wrong one, or can be read by others; the text says what to do."""


class SecretDamaged(StorageError):
    """A sealed secret, or the list of secrets, was changed after it was sealed; it is not used."""


class ApiUnreachable(StorageError):
    """An outside API gave no usable response; the text names the host and the problem."""


class ApiLimitExceeded(StorageError):
    """A response of an outside API exceeds a limit on bytes, headers or redirects."""


class ApiBusy(ServerBusy):
    """A function calls outside APIs too often, or makes too many such calls at once; try again after a while."""
