"""Connections between members of a pool, with TLS: each end knows the other by its identity.

A worker takes all calls from its pool. From other workers of the pool it takes only those that read shards, since they
fetch from each other what the pool has them make; otherwise, one could change what another holds. Whom a worker fetches
from, it need not know: what it makes of the shards is verified by its hash.
"""

from __future__ import annotations

import socket
from collections.abc import Container, Iterable
from functools import partial

from cryptography import x509

from storage.runtime import Runtime
from taskworker.auth.certificates import NotTrusted, identity_of
from taskworker.auth.identity import MemberIdentity, MemberKind
from taskworker.auth.tls import MemberCredentials
from taskworker.transport.frames import Call
from taskworker.transport.remote_volume import RemoteVolume, identify_process
from taskworker.transport.shard_service import Dialling
from taskworker.transport.wire.poller import SHARED
from taskworker.transport.wire.secure import SecureStream, accept_secure, dial_secure
from taskworker.transport.wire.streams import Stream

_FOR_WORKERS = frozenset((Call.FETCH,))


class MemberDialling:
    """Connects a member to others, and judges those that connect to it.

    Args:
        credentials: what this member shows, and whom it trusts.
    """

    def __init__(self, credentials: MemberCredentials) -> None:
        self._credentials = credentials
        self._denied: frozenset[str] = frozenset()

    # -- of a pool -------------------------------------------------------------------------------

    def connect(self, address: str, worker: str, instance: str) -> RemoteVolume:
        """Make a connection to a worker's volume; see :data:`taskworker.transport.port.Connect`."""
        return RemoteVolume(address, worker, instance, dial=partial(self._dial, worker))

    def identify(self, address: str, worker: str) -> str:
        """Ask a worker's process for its name; see :data:`taskworker.transport.port.Identify`."""
        return identify_process(address, worker, partial(self._dial, worker))

    def _dial(self, worker: str, address: str, within_s: float) -> Stream:
        expected = MemberIdentity(self._credentials.identity.pool, MemberKind.WORKER, worker)
        # Connections are made again with the present credentials, which may have been renewed.
        return dial_secure(address, within_s, self._credentials.client, expected.dns_name, self._require_worker)

    # -- of a worker -----------------------------------------------------------------------------

    def accept(self, accepted: socket.socket) -> Stream:
        """Make an accepted socket a stream for members of the same pool; see :class:`WireServer`."""
        return accept_secure(accepted, self._credentials.server, self._require_member)

    def allowed(self, stream: Stream) -> Container[int] | None:
        """Return which methods the member at the other end may call; see :class:`WireServer`."""
        assert isinstance(stream, SecureStream)
        peer = stream.peer
        assert isinstance(peer, MemberIdentity)
        return None if peer.kind is MemberKind.POOL else _FOR_WORKERS

    def deny(self, workers: Iterable[str]) -> None:
        """Have nothing to do with these workers from now on, and with others again."""
        self._denied = frozenset(workers)

    def is_denied(self, stream: Stream) -> bool:
        """Whether the other end of a stream is such a worker."""
        peer = stream.peer if isinstance(stream, SecureStream) else None
        return isinstance(peer, MemberIdentity) and self._refuses(peer)

    def _refuses(self, peer: MemberIdentity) -> bool:
        return peer.kind is MemberKind.WORKER and peer.name in self._denied

    def to_workers(self) -> Dialling:
        """How to reach other workers of the pool, at addresses that the pool gives."""
        return Dialling(SHARED, self._dial_any_worker, Runtime())

    def _dial_any_worker(self, address: str, within_s: float) -> Stream:
        # The name is not compared, but TLS libraries want one.
        name = self._credentials.identity.dns_name
        return dial_secure(address, within_s, self._credentials.client_of_any, name, self._require_worker)

    # -- whom to have to do with -----------------------------------------------------------------

    def _require_member(self, certificate: bytes) -> MemberIdentity:
        try:
            peer = identity_of(x509.load_der_x509_certificate(certificate))
        except (NotTrusted, ValueError) as error:
            raise ConnectionRefusedError(str(error)) from None
        if peer.pool != self._credentials.identity.pool:
            raise ConnectionRefusedError("a member of another pool")
        if self._refuses(peer):
            raise ConnectionRefusedError(f"worker {peer.name} was denied")
        return peer

    def _require_worker(self, certificate: bytes) -> MemberIdentity:
        peer = self._require_member(certificate)
        if peer.kind is not MemberKind.WORKER:
            raise ConnectionRefusedError(f"{peer.kind} {peer.name} is no worker")
        return peer
