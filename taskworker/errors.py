"""What can go wrong between a client and a server, added to the engine's own error family.

All are ``storage.StorageError``s, so that a program meets one family whether the store is embedded
or remote; everything the engine itself refuses arrives as the engine's own class.
"""

from __future__ import annotations

from storage.errors import InvalidArgument, StorageError


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


class ServerFault(StorageError):
    """The server failed in a way it did not foresee; its log has the details."""


class WorkerRefused(StorageError):
    """A pool does not let a worker in; the text says why and what to do."""


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
