"""``Client``: a store on a server, with the methods and errors of an embedded store."""

from __future__ import annotations

from taskworker.client.concatenating_calls import ConcatenatingCalls
from taskworker.client.deleting_calls import DeletingCalls
from taskworker.client.file_calls import FileCalls
from taskworker.client.folder_calls import FolderCalls
from taskworker.client.function_calls import FunctionCalls
from taskworker.client.listing_calls import ListingCalls
from taskworker.client.maintenance_calls import MaintenanceCalls
from taskworker.client.many_calls import ManyCalls
from taskworker.client.revision_calls import RevisionCalls
from taskworker.client.sharing_calls import SharingCalls


class Client(
    FileCalls,
    DeletingCalls,
    ListingCalls,
    ConcatenatingCalls,
    ManyCalls,
    FolderCalls,
    RevisionCalls,
    SharingCalls,
    FunctionCalls,
    MaintenanceCalls,
):
    """A store on a server. Thread-safe; connects when first used; a context manager.

    Errors are those of ``storage``, and ``StorageUnavailable``, ``ServerBusy``, ``DeadlineExceeded``
    and ``ServerFault`` of ``taskworker.errors``, which belong to the same family. While a server is
    unavailable, the client retries reads a few times, and pushes as well unless a retry could store
    something twice; all other calls fail at once. Every method takes ``timeout_s``, the seconds that the
    whole operation may take, retries included.

    Args:
        address: ``host:port``, ``[ipv6]:port`` or ``unix:/path``.
        timeout_s: seconds for calls that are given no timeout of their own; None: no limit.
        channel: a gRPC channel to the server to use in place of one of its own; it stays open.
        token: the token to show, or a link to a file; None: that of this user's context for the address.
        key: a key of the user's own, with which names, notes and contents of files are sealed before they are sent: its
            32 bytes, or a key file, which may have former keys below the one for new files. The server cannot read
            them, and whatever needs that raises ``PoolIsBlind``. None: files are not sealed.
        direct: whether to read large files from a pool's workers themselves, and write them there, where that is
            possible, and not through the pool. None: unless ``TASKWORKER_DIRECT=0`` is in the environment.

    Raises:
        InvalidArgument: the address is malformed, or the key.
        KeyRequired: there is no such key file.
        NotPrivate: others may read the key file.
    """
