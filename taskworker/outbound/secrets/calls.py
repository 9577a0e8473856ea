"""The secrets that calls may use; every value that a call gets is reported for redaction."""

from __future__ import annotations

from collections.abc import Callable

from taskworker.calls.call import Call
from taskworker.outbound.secrets.store import Secrets


class CallSecrets:
    """The secrets of one call: those granted to its function, whatever the call says.

    Args:
        secrets: the pool's secrets.
        call: the call.
        given: called with each value that the call gets.
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
    """Fills secrets into requests that the pool makes for functions.

    Args:
        secrets: the pool's secrets.
        given: called with the function and each value filled in, since the response may echo it.
    """

    def __init__(self, secrets: Secrets, given: Callable[[str, str], None]) -> None:
        self._secrets = secrets
        self._given = given

    def fill(self, function: str, host: str, text: str) -> str:
        """Fill in ``{{secret:NAME}}`` in a text of a function's request to a host.

        Raises:
            PermissionDenied: a secret is not granted to the function, or not for this host.
            InvalidArgument: a name is not a secret's name.
            SecretsUnavailable, SecretDamaged: a secret cannot be read now.
        """
        return self._secrets.fill(function, text, host=host, given=lambda value: self._given(function, value))
