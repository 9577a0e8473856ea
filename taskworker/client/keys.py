"""The client for users' keys."""

from __future__ import annotations

from taskworker.client.operators import OperatorClient
from taskworker.protos import store_pb2
from taskworker.protos.store_pb2_grpc import StoreServiceStub


class KeyClient(OperatorClient):
    """The keys of a pool's or server's users. Thread-safe; a context manager.

    Args:
        address: address of the pool or server.
    """

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self._stub = StoreServiceStub(self.channel)

    def rotate(self, user_id: str) -> int:
        """Give a user a new key, which encrypts what is stored from now on; return its number.

        Raises:
            KeyRequired: nothing is encrypted there.
            PermissionDenied: the caller is another user, and no operator.
            InsufficientWorkers: the key could not be stored so that it survives losses.
        """
        request = store_pb2.RotateKeyRequest(user_id=user_id)
        return self._call(self._stub.RotateKey, request).epoch
