"""The operator's side of a pool's secrets, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from taskworker.client.operators import OperatorClient
from taskworker.protos import secrets_pb2
from taskworker.protos.secrets_pb2_grpc import SecretServiceStub


@dataclass(frozen=True, slots=True)
class SecretGrant:
    """A function that may use a secret; with ``hosts``, in requests to these alone, and without seeing it."""

    function: str
    hosts: list[str]


@dataclass(frozen=True, slots=True)
class SecretStatus:
    """A secret, without its value; times in ms since 1970, ``last_used_ms`` None if it never was.

    A ``damaged`` one was changed in the pool's catalog, and is not used.
    """

    name: str
    version: int
    created_ms: int
    changed_ms: int
    last_used_ms: int | None
    grants: list[SecretGrant]
    damaged: bool


@dataclass(frozen=True, slots=True)
class MasterKeyRotation:
    """A new master key: its id, and how many secrets it wraps."""

    key_id: str
    secrets: int


class SecretClient(OperatorClient):
    """The secrets of a pool. Thread-safe; a context manager.

    Errors are of the engine's family: ``SecretNotFound``, ``SecretExists``, ``SecretsUnavailable`` (the pool's master
    key), ``SecretDamaged``, ``InvalidArgument``, ``StorageUnavailable``.

    Args:
        address: of the pool.
    """

    timeout_s = 30.0

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self._stub = SecretServiceStub(self.channel)

    def set(self, name: str, value: str) -> SecretStatus:
        """Keep a new secret."""
        request = secrets_pb2.SetSecretRequest(name=name, value=value)
        return _status(self._call(self._stub.SetSecret, request))

    def rotate(self, name: str, value: str) -> SecretStatus:
        """Give a secret a new value, as a new version; the old one is gone."""
        request = secrets_pb2.RotateSecretRequest(name=name, value=value)
        return _status(self._call(self._stub.RotateSecret, request))

    def remove(self, name: str) -> None:
        """End a secret and its grants."""
        request = secrets_pb2.RemoveSecretRequest(name=name)
        self._call(self._stub.RemoveSecret, request)

    def remove_all(self) -> None:
        """Give up all secrets, even those that cannot be read any more."""
        request = secrets_pb2.RemoveAllSecretsRequest()
        self._call(self._stub.RemoveAllSecrets, request)

    def secrets(self) -> list[SecretStatus]:
        """All, by name."""
        request = secrets_pb2.ListSecretsRequest()
        answer = self._call(self._stub.ListSecrets, request)
        return [_status(one) for one in answer.secrets]

    def grant(self, name: str, function: str, hosts: Sequence[str] = ()) -> SecretStatus:
        """Let a function use a secret: see it, or with ``hosts``, have it filled into requests to these alone."""
        request = secrets_pb2.GrantSecretRequest(name=name, function_name=function, hosts=hosts)
        return _status(self._call(self._stub.GrantSecret, request))

    def revoke(self, name: str, function: str) -> SecretStatus:
        """Take a grant back."""
        request = secrets_pb2.RevokeSecretRequest(name=name, function_name=function)
        return _status(self._call(self._stub.RevokeSecret, request))

    def rotate_master_key(self) -> MasterKeyRotation:
        """Put a new master key in place of the one there."""
        request = secrets_pb2.RotateMasterKeyRequest()
        answer = self._call(self._stub.RotateMasterKey, request)
        return MasterKeyRotation(answer.key_id, answer.secrets)


def _status(one: secrets_pb2.Secret) -> SecretStatus:
    return SecretStatus(
        name=one.name,
        version=one.version,
        created_ms=one.created_ms,
        changed_ms=one.changed_ms,
        last_used_ms=one.last_used_ms or None,
        grants=[SecretGrant(grant.function_name, list(grant.hosts)) for grant in one.grants],
        damaged=one.damaged,
    )
