"""A gRPC server for a store."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import grpc

from storage import FileStorage, StorageError, StoreUnavailable, Version
from taskworker.pool.direct_pushes import DirectPushes
from taskworker.pool.direct_reads import DirectReads
from taskworker.protos import store_pb2, taskworker_pb2
from taskworker.rpc.admission import DEFAULT_LIMITS, Entry, Gate, ServerLimits
from taskworker.rpc.authorization import Audit, Guard, Identify
from taskworker.rpc.binding import generic_handler
from taskworker.rpc.guests import Grants
from taskworker.rpc.quick_threads import OftenMadeCalls
from taskworker.rpc.serving import Server
from taskworker.services import store as store_service
from taskworker.services.files import FileService
from taskworker.services.revision import Revisions
from taskworker.services.store import StoreService

log = logging.getLogger("taskworker.services")

_FILE_SERVICE = taskworker_pb2.DESCRIPTOR.services_by_name["FileService"]
_STORE_SERVICE = store_pb2.DESCRIPTOR.services_by_name["StoreService"]

# Calls that usually take less than a millisecond, and are made often.
_QUICK = ("GetFile", "GetFiles", "Stat", "Describe")
# Calls that are made often, and wait for disks and workers: each gets a thread, but only when its message has come.
_WAITING = ("PushFile",)
_WAITING_OF_FILES = ("Push", "Get")

# Clients retry for about a minute; people take longer to look at what happened.
_RESUME_S = 300.0


class FileServer(Server):
    """Serves a store on one address. It does not close the store; that is up to whoever opened it.

    Args:
        store: the store to serve.
        limits: limits on concurrent calls.
        added: further services, by full name.
        added_calls: how many calls of these may run at once, in addition to those in ``limits``.
        ready: returns once the store can serve; earlier calls wait for it.
        guard: refuses calls that a caller may not make; ``added`` services have their own. None: all may make all.
        direct: answers clients that read from workers themselves; None: they read from here.
        pushes: answers clients that write to workers themselves; None: they push to here.
    """

    def __init__(
        self,
        store: FileStorage,
        *,
        limits: ServerLimits = DEFAULT_LIMITS,
        added: Mapping[str, grpc.GenericRpcHandler] | None = None,
        added_calls: int = 0,
        ready: Callable[[], None] = lambda: None,
        guard: Guard | None = None,
        direct: DirectReads | None = None,
        pushes: DirectPushes | None = None,
    ) -> None:
        self._often = OftenMadeCalls(limits.calls)
        super().__init__(
            {**services_of(store, limits, ready, self._often, guard, direct, pushes), **(added or {})},
            calls=limits.calls + added_calls + (limits.reserved if added else 0),
            trouble=store.trouble,
            unusable=lambda: _unusable(store),
            guard=guard,
            limits=limits,
        )

    def stop(self, grace_s: float = 5.0) -> None:
        """See :meth:`Server.stop`."""
        super().stop(grace_s)
        if self._home.is_here:
            self._often.shutdown()


def services_of(
    store: FileStorage,
    limits: ServerLimits,
    ready: Callable[[], None],
    often: OftenMadeCalls,
    guard: Guard | None,
    direct: DirectReads | None = None,
    pushes: DirectPushes | None = None,
) -> dict[str, grpc.GenericRpcHandler]:
    """The services for the files of a store; see :class:`FileServer`."""
    store.upkeep.keep_interrupted(_RESUME_S)
    hide = _paths_of(store)
    gate = Gate(limits.calls, f"{limits.calls} calls are under way, as many as this server allows", ready, "calls")
    revisions = Revisions(limits.checks, gate.has_others)
    return {
        _FILE_SERVICE.full_name: generic_handler(
            _FILE_SERVICE,
            FileService(store, limits.message_bytes, revisions),
            hide=hide,
            gate=gate,
            quick=dict.fromkeys(_WAITING_OF_FILES, often.waiting),
            guard=guard,
            limits=limits,
        ),
        _STORE_SERVICE.full_name: generic_handler(
            _STORE_SERVICE,
            StoreService(store, limits, hide, revisions, direct, pushes),
            codecs=store_service.CODECS,
            hide=hide,
            gate=gate,
            quick={**dict.fromkeys(_QUICK, often.quick), **dict.fromkeys(_WAITING, often.waiting)},
            guard=guard,
            limits=limits,
        ),
    }


def guard_of(
    store: FileStorage,
    identify: Identify,
    user_of_token: Callable[[str], str] | None = None,
    audit: Audit | None = None,
    grants: Grants | None = None,
    entry: Entry | None = None,
) -> Guard:
    """Return a guard for a server of this store; see :class:`Guard`."""

    def head_of(file_id: str, user_id: str) -> Version:
        return store.stat(file_id, user_id=user_id)

    return Guard(identify, head_of, user_of_token, audit, grants, entry)


def _paths_of(store: FileStorage) -> list[str]:
    """Paths that reveal where on this machine the store is, longest first, as volumes may lie inside it."""
    paths = {path for each in (store.path, *store.volume_paths) for path in (each, each.absolute())}
    # A relative path may be any word, even a dot: it reveals nothing, and hiding it would garble texts.
    return sorted((str(path) for path in paths if path.is_absolute() and path.parts[1:]), key=len, reverse=True)


def _unusable(store: FileStorage) -> str:
    """Check again whether anything in the store can be read; return why not, or an empty text."""
    try:
        store.counts()
    except StoreUnavailable as error:
        return str(error)
    except StorageError as error:
        log.info("the counters cannot be read, but files may be readable: %s", error)
    return ""
