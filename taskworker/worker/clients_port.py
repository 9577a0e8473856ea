"""A worker's port for clients that read shards from it and write some to it themselves, with tickets of its pool."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from typing import NamedTuple

from storage.clocks import wall_ms
from taskworker.auth.identity import MemberIdentity, MemberKind
from taskworker.auth.tickets import TicketChecker
from taskworker.auth.tls import MemberCredentials
from taskworker.auth.write_tickets import WriteTicketChecker
from taskworker.transport.shards_of_clients import ShardsOfClients
from taskworker.transport.ticketed_reads import clients_server
from taskworker.transport.ticketed_writes import CurrentForClients
from taskworker.transport.wire.secure import accept_secure
from taskworker.transport.wire.server import WireServer
from taskworker.transport.wire.streams import SocketStream, Stream

log = logging.getLogger(__name__)


class ClientsOptions(NamedTuple):
    """Whether clients read from a worker and write to it themselves, and where.

    Attributes:
        offered: whether they may.
        port: the port, on the host that the worker listens on; 0: any free one.
    """

    offered: bool = True
    port: int = 0


CLIENTS_OPTIONS = ClientsOptions()


class ClientsPort:
    """Serves a worker's volume to clients. ``start`` and ``stop`` may be called once each.

    Args:
        worker: the worker's id.
        current: returns the volume as it is open now, and the name of this process.
        credentials: the worker's certificate; None: it joined without a token, and its pool is on this machine.
        written: remembers what clients write.
        now_ms: milliseconds since 1970.

    Attributes:
        address: where clients connect; empty: nowhere.
    """

    def __init__(
        self,
        worker: str,
        current: CurrentForClients,
        credentials: MemberCredentials | None,
        hide: tuple[str, ...] = (),
        written: ShardsOfClients | None = None,
        now_ms: Callable[[], int] = wall_ms,
    ) -> None:
        self._worker = worker
        self._current = current
        self._credentials = credentials
        self._hide = hide
        self._written = written or ShardsOfClients()
        self._now_ms = now_ms
        self._told = b""
        self._server: WireServer | None = None
        self.address = ""

    def start(self, worker_address: str, pool_id: str, port: int) -> None:
        """Listen beside the address at which the worker itself listens. If that fails, clients read through the pool.

        Args:
            worker_address: ``host:port``, ``[ipv6]:port`` or ``unix:path``.
            pool_id: id of the pool.
            port: the port; 0: any free one.
        """
        me = MemberIdentity(pool_id, MemberKind.WORKER, self._worker)
        check = TicketChecker(me, self._authorities, self._now_ms).check
        check_writing = WriteTicketChecker(me, self._authorities, self._now_ms).check
        secure = SocketStream if self._credentials is None else self._accept
        server = clients_server(self._current, check, check_writing, self._written, self._hide, secure)
        host = worker_address.rpartition(":")[0]
        address = f"{worker_address}.clients" if worker_address.startswith("unix:") else f"{host}:{port}"
        try:
            self.address = server.start(address)
        except OSError as error:
            server.stop(0.0)
            log.warning("clients read through the pool only, as %s cannot be listened on: %s", address, error.strerror)
            return
        self._server = server
        log.info("serving clients on %s", self.address)

    def trust(self, authorities_pem: bytes) -> None:
        """Accept tickets for which these authorities vouch, at a worker that has no certificate itself."""
        self._told = authorities_pem

    def _authorities(self) -> bytes:
        return self._told if self._credentials is None else self._credentials.pair.authorities_pem

    def _accept(self, accepted: socket.socket) -> Stream:
        assert self._credentials is not None, "there is TLS"
        return accept_secure(accepted, self._credentials.server_of_strangers, _nobody)

    def stop(self, grace_s: float) -> None:
        """End all connections; running calls have ``grace_s`` seconds."""
        if self._server is not None:
            self._server.stop(grace_s)


def _nobody(_certificate: bytes) -> None:
    """Clients are asked for no certificates, and are known by their tickets."""
