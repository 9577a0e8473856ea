"""Connections of a pool to its workers' volumes, with TLS: each end expects the other by its identity.

Workers take calls from their pool only: another worker could otherwise change what they hold.
"""

from __future__ import annotations

import socket
from functools import partial

from cryptography import x509

from taskworker.auth.certificates import NotTrusted, identity_of
from taskworker.auth.identity import MemberIdentity, MemberKind
from taskworker.auth.tls import MemberCredentials
from taskworker.transport.remote_volume import RemoteVolume, identify_process
from taskworker.transport.wire.secure import accept_secure, dial_secure
from taskworker.transport.wire.streams import Stream


class MemberDialling:
    """Connects a pool to its workers, and judges those that connect to a worker.

    Args:
        credentials: what this member shows, and whom it trusts.
    """

    def __init__(self, credentials: MemberCredentials) -> None:
        self._credentials = credentials

    def connect(self, address: str, worker: str, instance: str) -> RemoteVolume:
        """Make a connection to a worker's volume; see :data:`taskworker.transport.port.Connect`."""
        return RemoteVolume(address, worker, instance, dial=partial(self._dial, worker))

    def identify(self, address: str, worker: str) -> str:
        """Ask a worker's process for its name; see :data:`taskworker.transport.port.Identify`."""
        return identify_process(address, worker, partial(self._dial, worker))

    def _dial(self, worker: str, address: str, within_s: float) -> Stream:
        expected = MemberIdentity(self._credentials.identity.pool, MemberKind.WORKER, worker)
        # Connections are made again with the present credentials, which may have been renewed.
        return dial_secure(address, within_s, self._credentials.client, expected.dns_name, _accept_any)

    def accept(self, accepted: socket.socket) -> Stream:
        """Make an accepted socket a stream for the worker's own pool; see :class:`WireServer`."""
        return accept_secure(accepted, self._credentials.server, self._require_pool)

    def _require_pool(self, certificate: bytes) -> None:
        try:
            peer = identity_of(x509.load_der_x509_certificate(certificate))
        except (NotTrusted, ValueError) as error:
            raise ConnectionRefusedError(str(error)) from None
        if (peer.pool, peer.kind) != (self._credentials.identity.pool, MemberKind.POOL):
            raise ConnectionRefusedError(f"{peer.kind} {peer.name} calls a worker, which only its pool may")


def _accept_any(_certificate: bytes) -> None:
    """The name was verified during the handshake."""
