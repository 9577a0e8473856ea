"""The pool's secrets as one call may use them."""

from __future__ import annotations

from collections.abc import Callable

from taskworker.functions.calls import Call
from taskworker.secrets.store import Secrets


class CallSecrets:
    """Answers for the function of a call, and for no other, whatever the call says.

    Args:
        secrets: of the pool.
        call: who asks.
        given: told of each value that the call gets, or has filled in.
    """

    def __init__(self, secrets: Secrets, call: Call, given: Callable[[str], None]) -> None:
        self._secrets = secrets
        self._call = call
        self._given = given

    def secret(self, name: str) -> str:
        """See ``taskworker.functions.outside.Outside``."""
        value = self._secrets.get(self._call.function, name)
        self._given(value)
        return value

    def fill(self, text: str, host: str | None) -> str:
        """Text of a request to a host with the secrets in it; see ``Secrets.fill``."""
        return self._secrets.fill(self._call.function, text, host=host, given=self._given)
