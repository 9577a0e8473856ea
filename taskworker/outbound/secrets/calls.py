"""The pool's secrets as calls may use them; what they were given is told to those who redact."""

from __future__ import annotations

from collections.abc import Callable

from taskworker.calls.call import Call
from taskworker.outbound.secrets.store import Secrets


class CallSecrets:
    """Answers for the function of a call, and for no other, whatever the call says.

    Args:
        secrets: of the pool.
        call: who asks.
        given: told of each value that the call gets.
    """

    def __init__(self, secrets: Secrets, call: Call, given: Callable[[str], None]) -> None:
        self._secrets = secrets
        self._call = call
        self._given = given

    def secret(self, name: str) -> str:
        """See ``taskworker.calls.capabilities.Capabilities``."""
        value = self._secrets.get(self._call.function, name)
        self._given(value)
        return value


class RequestSecrets:
    """Puts secrets into requests that the pool makes for functions.

    Args:
        secrets: of the pool.
        given: told of the function and of each value that was put in: the answer may echo it.
    """

    def __init__(self, secrets: Secrets, given: Callable[[str, str], None]) -> None:
        self._secrets = secrets
        self._given = given

    def fill(self, function: str, host: str, text: str) -> str:
        """Text of a function's request to a host, with values in the place of ``{{secret:NAME}}``.

        Raises:
            PermissionDenied: one is not granted to the function, or not for this host.
            InvalidArgument: not a secret's name.
            SecretsUnavailable, SecretDamaged: one cannot be read now.
        """
        return self._secrets.fill(function, text, host=host, given=lambda value: self._given(function, value))
