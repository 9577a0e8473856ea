"""Members of a pool, with their certificates."""

from __future__ import annotations

import socket
from functools import partial
from pathlib import Path

from taskworker.auth.authority import Authority
from taskworker.auth.identity import MemberIdentity, MemberKind
from taskworker.auth.tls import MemberCredentials
from taskworker.transport.wire.secure import accept_secure, dial_secure
from taskworker.transport.wire.streams import Dial, Stream

POOL = "5a" * 16


def worker(name: str) -> MemberIdentity:
    """A worker of the pool."""
    return MemberIdentity(POOL, MemberKind.WORKER, name)


def pool() -> MemberIdentity:
    """The pool itself."""
    return MemberIdentity(POOL, MemberKind.POOL, "pool")


class Members:
    """The pool and a worker of it, which expect each other."""

    def __init__(self, authority: Authority, name: str = "w1") -> None:
        self.authority = authority
        self.pool = MemberCredentials(authority.issue_own(pool()))
        self.worker = MemberCredentials(authority.issue_own(worker(name)))

    @classmethod
    def in_directory(cls, directory: Path) -> Members:
        """Members of a new pool."""
        return cls(Authority(directory / "authority.pem", POOL))

    def accept(self, accepted: socket.socket) -> Stream:
        """What the worker makes of an accepted socket."""
        return accept_secure(accepted, self.worker.server, lambda certificate: None)

    @property
    def dial(self) -> Dial:
        """How the pool connects to the worker."""
        return partial(
            dial_secure,
            context=self.pool.client,
            server_name=self.worker.identity.dns_name,
            authorize=lambda certificate: None,
        )
