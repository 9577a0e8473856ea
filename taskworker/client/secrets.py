"""The operator's client for a pool's secrets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from taskworker.auth.contexts import Access
from taskworker.client.operators import OperatorClient
from taskworker.protos import secrets_pb2
from taskworker.protos.secrets_pb2_grpc import SecretServiceStub


@dataclass(frozen=True, slots=True)
class SecretGrant:
    """A function's grant for a secret; with ``hosts``, only in requests to these hosts, without seeing the value."""

    function: str
    hosts: list[str]


@dataclass(frozen=True, slots=True)
class SecretStatus:
    """A secret, without its value; times in ms since 1970, ``last_used_ms`` None if it was never used.

    A ``damaged`` secret was changed in the pool's catalog and is not used.
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
    """The id of a new master key, and how many secrets it wraps."""

    key_id: str
    secrets: int


@dataclass(frozen=True, slots=True)
class MasterKeyPlace:
    """The id of a pool's master key, and the file on the pool's machine that it is in; empty: the pool keeps none.

    ``copied_ms`` is when a copy of this key was noted, ms since 1970; 0: never.
    """

    key_id: str
    file: str
    copied_ms: int


class SecretClient(OperatorClient):
    """The secrets of a pool. Thread-safe; a context manager.

    Raises errors of the engine's family: ``SecretNotFound``, ``SecretExists``, ``SecretsUnavailable`` (the pool's
    master key cannot be used), ``SecretDamaged``, ``InvalidArgument``, ``StorageUnavailable``.

    Args:
        address: address of the pool.
        access: what to show, and to whom; None: as the context for the address says.
    """

    timeout_s = 30.0

    def __init__(self, address: str, *, access: Access | None = None) -> None:
        super().__init__(address, access=access)
        self._stub = SecretServiceStub(self.channel)

    def set(self, name: str, value: str) -> SecretStatus:
        """Store a new secret."""
        request = secrets_pb2.SetSecretRequest(name=name, value=value)
        return _status(self._call(self._stub.SetSecret, request))

    def rotate(self, name: str, value: str) -> SecretStatus:
        """Give a secret a new value, as a new version; the old value is deleted."""
        request = secrets_pb2.RotateSecretRequest(name=name, value=value)
        return _status(self._call(self._stub.RotateSecret, request))

    def remove(self, name: str) -> None:
        """Remove a secret and its grants."""
        request = secrets_pb2.RemoveSecretRequest(name=name)
        self._call(self._stub.RemoveSecret, request)

    def remove_all(self) -> None:
        """Remove all secrets, even those that can no longer be read."""
        request = secrets_pb2.RemoveAllSecretsRequest()
        self._call(self._stub.RemoveAllSecrets, request)

    def secrets(self) -> list[SecretStatus]:
        """All secrets, by name."""
        request = secrets_pb2.ListSecretsRequest()
        answer = self._call(self._stub.ListSecrets, request)
        return [_status(one) for one in answer.secrets]

    def grant(self, name: str, function: str, hosts: Sequence[str] = ()) -> SecretStatus:
        """Let a function use a secret: read it, or with ``hosts``, only have it filled into requests to these hosts."""
        request = secrets_pb2.GrantSecretRequest(name=name, function_name=function, hosts=hosts)
        return _status(self._call(self._stub.GrantSecret, request))

    def revoke(self, name: str, function: str) -> SecretStatus:
        """Revoke a grant."""
        request = secrets_pb2.RevokeSecretRequest(name=name, function_name=function)
        return _status(self._call(self._stub.RevokeSecret, request))

    def rotate_master_key(self) -> MasterKeyRotation:
        """Replace the master key with a new one."""
        request = secrets_pb2.RotateMasterKeyRequest()
        answer = self._call(self._stub.RotateMasterKey, request)
        return MasterKeyRotation(answer.key_id, answer.secrets)

    def master_key(self) -> MasterKeyPlace:
        """Where the pool's master key is."""
        answer = self._call(self._stub.GetMasterKey, secrets_pb2.GetMasterKeyRequest())
        return MasterKeyPlace(answer.key_id, answer.file, answer.copied_ms)

    def note_master_key_copied(self, key_id: str) -> None:
        """Note that there is a copy of the key with this id outside the pool."""
        self._call(self._stub.NoteMasterKeyCopied, secrets_pb2.NoteMasterKeyCopiedRequest(key_id=key_id))


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
