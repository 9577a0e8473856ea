"""An embedded store that is served to the users it knows."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import grpc

from storage import FileStorage
from taskworker.auth.authority import Authority
from taskworker.auth.bearers import Bearers
from taskworker.auth.rotation import Rotation
from taskworker.auth.server_certificates import ServerTls, TlsOptions
from taskworker.auth.sharing import Sharing
from taskworker.auth.users import Users
from taskworker.protos import auth_pb2, sharing_pb2
from taskworker.rpc.admission import DEFAULT_LIMITS, ServerLimits
from taskworker.rpc.authorization import Guard, by_token
from taskworker.rpc.binding import generic_handler
from taskworker.services.auth import AuthService
from taskworker.services.file_server import FileServer, guard_of
from taskworker.services.sharing import SharingService
from taskworker.services.storage_policy import STORAGE_POLICY, StoragePolicy

_ID_DOCUMENT = "server-id"
_SHARING = sharing_pb2.DESCRIPTOR.services_by_name["SharingService"]
_AUTH = auth_pb2.DESCRIPTOR.services_by_name["AuthService"]


class StoreServer(FileServer):
    """Serves a store to its users, who show tokens. It does not close the store.

    Args:
        store: the store to serve.
        added: makes further services, by full name, with the guard for them.
        added_calls: how many calls of these may run at once.
        limits: limits on calls.
        storage: what users may store.

    Attributes:
        users: the store's users.
        tls: how it shows them who serves them; None: it does not use TLS, or has not started.
        on_authority_change: called after each step of replacing the store's certificate authority.
    """

    def __init__(
        self,
        store: FileStorage,
        added: Callable[[Guard], Mapping[str, grpc.GenericRpcHandler]] = lambda _guard: {},
        added_calls: int = 0,
        limits: ServerLimits = DEFAULT_LIMITS,
        storage: StoragePolicy = STORAGE_POLICY,
    ) -> None:
        self._store = store
        self.users = Users(store.upkeep.documents, default_quota=storage.quota)
        storage.apply(store, self.users)
        sharing = Sharing(store.upkeep.documents)
        self.tls: ServerTls | None = None
        self._authority: Authority | None = None
        self.on_authority_change: Callable[[], None] = lambda: None
        bearers = Bearers(self.users, sharing)
        guard = guard_of(store, by_token(bearers), bearers.user_of, grants=sharing)
        handler = partial(generic_handler, guard=guard, limits=limits)
        auth = AuthService(self.users, sharing, self._rotation, storage=store.upkeep)
        services = {
            _AUTH.full_name: handler(_AUTH, auth),
            _SHARING.full_name: handler(_SHARING, SharingService(sharing, store)),
        }
        super().__init__(
            store,
            limits=limits,
            added={**services, **added(guard)},
            added_calls=limits.reserved + added_calls,
            guard=guard,
        )

    def start_tls(self, address: str, options: TlsOptions, *, bound: Callable[[str], None]) -> int:
        """Listen with TLS; see :meth:`Server.start`.

        Raises:
            InvalidArgument: the address is malformed, or given certificates cannot be used.
            FormatError: the file of the store's certificate authority is damaged.
            NotPrivate: others may read that.
            OSError: a file cannot be read or written.
        """
        documents = self._store.upkeep.documents
        server_id = (documents.document(_ID_DOCUMENT) or b"").decode("ascii")
        if not server_id:
            server_id = secrets.token_hex(16)
            documents.save_document(_ID_DOCUMENT, server_id.encode("ascii"))
        self._authority = Authority(Path(self._store.path) / "authority.pem", server_id)
        self.tls = ServerTls(self._authority, address, options)
        return self.start(address, self.tls.credentials(), bound=bound)

    def _rotation(self) -> Rotation | None:
        return None if self._authority is None else Rotation(self._authority, changed=self._authority_changed)

    def _authority_changed(self) -> None:
        self.on_authority_change()

    def stop(self, grace_s: float = 5.0) -> None:
        """See :meth:`Server.stop`."""
        super().stop(grace_s)
        if self._home.is_here:
            self.users.save_uses()
