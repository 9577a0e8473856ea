"""SecretService of ``secrets.proto``: the pool's secrets."""

from __future__ import annotations

from storage.errors import InvalidArgument
from taskworker.outbound.secrets.store import Secrets, SecretView
from taskworker.pool.key_copies import KeyCopies
from taskworker.protos import secrets_pb2
from taskworker.rpc.binding import Caller


class SecretService:
    """Manages the secrets of a pool for its operators; thread-safe.

    Args:
        secrets: the secrets.
        copies: what the pool knows of copies of the master key.
    """

    def __init__(self, secrets: Secrets, copies: KeyCopies) -> None:
        self._secrets = secrets
        self._copies = copies

    def SetSecret(  # noqa: N802 - the names are the contract's
        self, request: secrets_pb2.SetSecretRequest, _caller: Caller
    ) -> secrets_pb2.Secret:
        """Store a new secret."""
        return _secret(self._secrets.set(request.name, request.value))

    def RotateSecret(  # noqa: N802
        self, request: secrets_pb2.RotateSecretRequest, _caller: Caller
    ) -> secrets_pb2.Secret:
        """Give a secret a new value."""
        return _secret(self._secrets.rotate(request.name, request.value))

    def RemoveSecret(  # noqa: N802
        self, request: secrets_pb2.RemoveSecretRequest, _caller: Caller
    ) -> secrets_pb2.RemoveSecretResponse:
        """Remove a secret."""
        self._secrets.remove(request.name)
        return secrets_pb2.RemoveSecretResponse()

    def RemoveAllSecrets(  # noqa: N802
        self, _request: secrets_pb2.RemoveAllSecretsRequest, _caller: Caller
    ) -> secrets_pb2.RemoveSecretResponse:
        """Remove all secrets."""
        self._secrets.remove_all()
        return secrets_pb2.RemoveSecretResponse()

    def ListSecrets(  # noqa: N802
        self, _request: secrets_pb2.ListSecretsRequest, _caller: Caller
    ) -> secrets_pb2.ListSecretsResponse:
        """All secrets, without their values."""
        return secrets_pb2.ListSecretsResponse(secrets=[_secret(one) for one in self._secrets.list()])

    def GrantSecret(  # noqa: N802
        self, request: secrets_pb2.GrantSecretRequest, _caller: Caller
    ) -> secrets_pb2.Secret:
        """Let a function use a secret."""
        return _secret(self._secrets.grant(request.name, request.function_name, list(request.hosts)))

    def RevokeSecret(  # noqa: N802
        self, request: secrets_pb2.RevokeSecretRequest, _caller: Caller
    ) -> secrets_pb2.Secret:
        """Revoke a grant."""
        return _secret(self._secrets.revoke(request.name, request.function_name))

    def RotateMasterKey(  # noqa: N802
        self, _request: secrets_pb2.RotateMasterKeyRequest, _caller: Caller
    ) -> secrets_pb2.RotateMasterKeyResponse:
        """Replace the master key with a new one."""
        done = self._secrets.rotate_master()
        return secrets_pb2.RotateMasterKeyResponse(key_id=done.key_id, secrets=done.secrets)

    def GetMasterKey(  # noqa: N802
        self, _request: secrets_pb2.GetMasterKeyRequest, _caller: Caller
    ) -> secrets_pb2.MasterKey:
        """Where the master key is."""
        key_id, file = self._secrets.master_key()
        place = "" if file is None else str(file.absolute())
        return secrets_pb2.MasterKey(key_id=key_id, file=place, copied_ms=self._copies.copied_ms(key_id))

    def NoteMasterKeyCopied(  # noqa: N802
        self, request: secrets_pb2.NoteMasterKeyCopiedRequest, _caller: Caller
    ) -> secrets_pb2.NoteMasterKeyCopiedResponse:
        """Note that the operator has a copy of the master key."""
        key_id, _ = self._secrets.master_key()
        if request.key_id != key_id:
            raise InvalidArgument(f"the pool's master key is {key_id}, so a copy of another one does not help")
        self._copies.note(key_id)
        return secrets_pb2.NoteMasterKeyCopiedResponse()


def _secret(view: SecretView) -> secrets_pb2.Secret:
    return secrets_pb2.Secret(
        name=view.name,
        version=view.version,
        created_ms=view.created_ms,
        changed_ms=view.changed_ms,
        last_used_ms=view.last_used_ms or 0,
        grants=[secrets_pb2.SecretGrant(function_name=one.function, hosts=one.hosts) for one in view.grants],
        damaged=view.damaged,
    )
