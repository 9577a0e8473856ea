"""Which member of a pool makes a call, by the certificate that it shows."""

from __future__ import annotations

from typing import Protocol

from storage.errors import PermissionDenied
from taskworker.auth.certificates import NotTrusted
from taskworker.auth.identity import MemberIdentity
from taskworker.auth.tls import peer_of_call
from taskworker.rpc.binding import Caller


class SecureCaller(Caller, Protocol):
    """A caller over TLS. gRPC's ServicerContext implements it."""

    def auth_context(self) -> dict[str, list[bytes]]:
        """What the caller showed during the handshake."""

    def peer(self) -> str:
        """Where the caller calls from."""


def member_of(caller: SecureCaller) -> MemberIdentity:
    """Return the member that calls.

    Raises:
        PermissionDenied: the caller showed no certificate of a member.
    """
    try:
        return peer_of_call(caller.auth_context())
    except NotTrusted as error:
        raise PermissionDenied(f"the caller shows no certificate of a member: {error}") from None
