"""What can go wrong between a client and a server, added to the engine's own error family.

All are ``storage.StorageError``s, so that a program meets one family whether the store is embedded
or remote; everything the engine itself refuses arrives as the engine's own class.
"""

from __future__ import annotations

from storage.errors import InvalidArgument, StorageError, StoreFull


class StorageUnavailable(StorageError):
    """No server answers at the address, or it is shutting down. Trying again later may help."""


class ServerBusy(StorageUnavailable):
    """The server has as many calls of this kind under way as it allows; try again in a moment."""


class DeadlineExceeded(StorageError):
    """The time limit of the call ran out. A push cut by it is resumed by pushing again."""


class CallAbandoned(StorageError):
    """The caller cancelled, or went away, before the server was done; nothing was committed."""


class MessageTooLarge(InvalidArgument):
    """A message is above the limit; the text names the streaming call to use instead."""


class PackagesNotFound(InvalidArgument):
    """pip found no wheels for a function's requirements; the text has its errors, one a line."""


class ServerFault(StorageError):
    """The server failed in a way it did not foresee; its log has the details."""


class WorkerRefused(StorageError):
    """A pool does not let a worker in; the text says why and what to do."""


class WorkerRestarted(StorageError):
    """A write meant for an earlier process of a worker; what that one had not synced may be gone."""


class WorkerReadOnly(StoreFull):
    """A worker's disk is read-only. It still serves what it holds, and new shards go to others, as if it were full."""


class NotJoined(StorageError):
    """A heartbeat of a worker that the pool does not know, or whose lease ran out; it joins again."""


class FunctionNotFound(StorageError):
    """No function has this name, in the pool or on the worker."""


class FunctionFailed(StorageError):
    """A function raised an exception; the text is its type, what it says, and the function's own frames."""


class FunctionBroken(StorageError):
    """A function cannot be loaded: its module fails when it is imported, or does not hold the function."""


class FunctionLimitExceeded(StorageError):
    """A call used more than it may; the text says of what, and how much is allowed."""


class FunctionCrashed(StorageError):
    """A function's process ended without an answer, or spoke garbage."""


class FunctionsUnavailable(StorageUnavailable):
    """No worker that is alive can run the function now; trying again later may help."""


class FunctionBusy(ServerBusy):
    """As many calls of the function run and wait as are allowed; try again after a while."""


class NameNotFound(StorageError):
    """A domain name does not exist, or has no records of the type asked for; the text says which."""


class NameServersUnavailable(StorageUnavailable):
    """No name server gives an answer; the text says what each did. Trying again later may help."""


class CallUncertain(StorageError):
    """A worker was lost amid a call that must not run twice: it may have run, or not."""


class SecretNotFound(StorageError):
    """The pool has no secret of this name. Told to operators only."""


class SecretExists(StorageError):
    """The pool has a secret of this name already."""


class SecretsUnavailable(StorageError):
    """The master key is missing, another one, or kept where others may read it; the text says what to do."""


class SecretDamaged(StorageError):
    """A sealed secret, or the list of them, was changed since it was sealed; it is not used."""


class ApiUnreachable(StorageError):
    """An outside API gave no answer that can be used; the text says which host, and what was wrong."""


class ApiLimitExceeded(StorageError):
    """An outside API answered with more than a function gets: bytes, headers, redirects."""


class ApiBusy(ServerBusy):
    """A function calls outside APIs too often, or too many at once; try again after a while."""
