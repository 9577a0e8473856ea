"""An embedded store that is served to the users it knows."""

from __future__ import annotations

from storage import FileStorage
from taskworker.auth.users import Users
from taskworker.protos import auth_pb2
from taskworker.rpc.admission import DEFAULT_LIMITS
from taskworker.rpc.binding import generic_handler
from taskworker.services.auth import AuthService
from taskworker.services.file_server import FileServer, guard_of

_AUTH = auth_pb2.DESCRIPTOR.services_by_name["AuthService"]


class StoreServer(FileServer):
    """Serves a store to its users, who show tokens. It does not close the store.

    Args:
        store: the store to serve.

    Attributes:
        users: the store's users.
    """

    def __init__(self, store: FileStorage) -> None:
        self.users = Users(store.upkeep.documents)
        guard = guard_of(store, self.users)
        service = generic_handler(_AUTH, AuthService(self.users), guard=guard)
        super().__init__(store, added={_AUTH.full_name: service}, added_calls=DEFAULT_LIMITS.reserved, guard=guard)

    def stop(self, grace_s: float = 5.0) -> None:
        """See :meth:`Server.stop`."""
        super().stop(grace_s)
        if self._home.is_here:
            self.users.save_uses()
