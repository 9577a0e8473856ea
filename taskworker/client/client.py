"""Client: a store on a server, with the methods and errors of an embedded one."""

from __future__ import annotations

from taskworker.client.file_calls import FileCalls
from taskworker.client.function_calls import FunctionCalls
from taskworker.client.maintenance_calls import MaintenanceCalls
from taskworker.client.revision_calls import RevisionCalls


class Client(FileCalls, RevisionCalls, FunctionCalls, MaintenanceCalls):
    """A store on a server. Thread-safe; connects when first used; a context manager.

    Errors are those of ``storage``, and ``StorageUnavailable``, ``ServerBusy``, ``DeadlineExceeded``
    and ``ServerFault`` of ``taskworker.errors``, which belong to the same family. While a server is
    unavailable, reads are tried again a few times, and so are pushes as long as that cannot store
    anything twice; everything else fails at once. Every method takes ``timeout_s``, the seconds all of
    it may take, retries included.

    Args:
        address: ``host:port``, ``[ipv6]:port`` or ``unix:/path``.
        timeout_s: for calls that name none themselves; None: no limit.

    Raises:
        InvalidArgument: malformed address.
    """
