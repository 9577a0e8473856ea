"""The clients of a server that show one person's token."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol, TypeVar, cast

from taskworker.auth.contexts import Access, AccessTo
from taskworker.auth.rights import Principal, Right, Role, Scope
from taskworker.client import Client
from taskworker.client.audit import AuditClient
from taskworker.client.egress import EgressClient
from taskworker.client.functions import FunctionClient
from taskworker.client.pool import PoolClient
from taskworker.client.secrets import SecretClient
from taskworker.client.users import UserClient

TIMEOUT_S = 30.0
"""How long a call for a view may take."""


class _Closable(Protocol):
    def close(self) -> None: ...


_ClientT = TypeVar("_ClientT", bound=_Closable)


class Acting:
    """What the page does for a person, all of it by calls that show this person's token. Thread-safe.

    Clients are made when they are first used.

    Args:
        address: where the server is.
        token: the person's token.
    """

    def __init__(self, address: str, token: str) -> None:
        self._address = address
        self._token = token
        self._access: Access = AccessTo(address)()._replace(token=token)
        self._lock = threading.Lock()
        self._made: dict[str, _Closable] = {}
        self._closed = False

    def files(self) -> Client:
        """Files, and calls of functions."""
        return self._client("files", lambda: Client(self._address, token=self._token, timeout_s=TIMEOUT_S))

    def pool(self) -> PoolClient:
        """Workers and background work."""
        return self._client("pool", lambda: PoolClient(self._address, access=self._access))

    def functions(self) -> FunctionClient:
        """Functions and their logs."""
        return self._client("functions", lambda: FunctionClient(self._address, access=self._access))

    def users(self) -> UserClient:
        """Users and tokens."""
        return self._client("users", lambda: UserClient(self._address, access=self._access))

    def secrets(self) -> SecretClient:
        """Secrets, without their values."""
        return self._client("secrets", lambda: SecretClient(self._address, access=self._access))

    def egress(self) -> EgressClient:
        """Which outside hosts functions may call."""
        return self._client("egress", lambda: EgressClient(self._address, access=self._access))

    def trail(self) -> AuditClient:
        """The audit trail."""
        return self._client("trail", lambda: AuditClient(self._address, access=self._access))

    def principal(self) -> Principal:
        """Who the person is, as the server says now.

        Raises:
            Unauthenticated: the token is not valid, or no more.
            InvalidArgument: the server does not ask who is calling.
        """
        told = self.users().who_am_i()
        return Principal(told.user, Role(told.role), tuple(map(Scope.parse, told.scopes)), told.token_id)

    def close(self) -> None:
        """Close the connections; calls that run fail."""
        with self._lock:
            made, self._made, self._closed = list(self._made.values()), {}, True
        for client in made:
            client.close()

    def _client(self, name: str, make: Callable[[], _ClientT]) -> _ClientT:
        with self._lock:
            if name not in self._made:
                client = make()
                if self._closed:  # as its calls are to fail, too
                    client.close()
                    return client
                self._made[name] = client
            return cast("_ClientT", self._made[name])


def may_see_pool(principal: Principal) -> bool:
    """Whether somebody may see workers, users, secrets' names and the audit trail."""
    return principal.has(Right.AUDIT)
