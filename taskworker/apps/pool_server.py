"""A node pool and the gRPC server in front of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from storage import ErasureProfile
from storage.system.forks import HomeProcess
from taskworker.apps.members_server import MembersCalls, MembersServer
from taskworker.apps.pool_capabilities import MASTER_KEY, PoolCapabilities
from taskworker.apps.shared_master_key import SharedMasterKey, given_keys, note_kept_elsewhere
from taskworker.audit.trail import BYTES_DEFAULT, AuditTrail
from taskworker.auth.bearers import Bearers
from taskworker.auth.identity import MemberIdentity, MemberKind
from taskworker.auth.rotation import Rotation
from taskworker.auth.server_certificates import ServerTls, TlsOptions
from taskworker.auth.sharing import Sharing
from taskworker.auth.users import Users
from taskworker.calls.concurrency import pool_places
from taskworker.errors import ApiBusy
from taskworker.functions.routing.policy import FunctionPolicy
from taskworker.outbound.dns.names import DnsOptions
from taskworker.outbound.egress.limits import DEFAULT_LIMITS, EgressLimits
from taskworker.outbound.secrets.master_key import KeyFile, MasterKeySource
from taskworker.pool.direct_pushes import DirectPushes
from taskworker.pool.direct_reads import DirectReads
from taskworker.pool.functions import PoolFunctions
from taskworker.pool.node_pool import NodePool
from taskworker.pool.options import PoolOptions
from taskworker.protos import (
    audit_pb2,
    auth_pb2,
    egress_pb2,
    functions_pb2,
    outside_pb2,
    pool_pb2,
    secrets_pb2,
    sharing_pb2,
    taskworker_pb2,
)
from taskworker.rpc.admission import DEFAULT_CALLS, Gate, ServerLimits
from taskworker.rpc.admission import DEFAULT_LIMITS as SERVER_LIMITS
from taskworker.rpc.auditing import CallAudit
from taskworker.rpc.authorization import Guard, by_token
from taskworker.rpc.binding import generic_handler
from taskworker.rpc.dialling import dial_secure
from taskworker.rpc.limits import PUSH_DATA_BYTES
from taskworker.rpc.quick_threads import OftenMadeCalls
from taskworker.rpc.token_channel import TokenChannel
from taskworker.services.audit import AuditService
from taskworker.services.auth import AuthService
from taskworker.services.capabilities import OutsideService
from taskworker.services.dns import DnsService
from taskworker.services.egress import EgressService
from taskworker.services.file_server import FileServer, guard_of, services_of
from taskworker.services.functions import FunctionService, HostingService
from taskworker.services.invocation import GrpcTransport
from taskworker.services.members import TokensOnly
from taskworker.services.pool import PoolService
from taskworker.services.rpc import CALL_CODECS, RpcService, StreamService
from taskworker.services.running_calls import (
    MembersHostingService,
    MembersOutsideService,
    TokensAndCalls,
    by_certificate,
)
from taskworker.services.secrets import SecretService
from taskworker.services.sharing import SharingService
from taskworker.services.storage_policy import STORAGE_POLICY, StoragePolicy
from taskworker.shares import UserPlaces

if TYPE_CHECKING:
    from taskworker.auth.oidc import OidcOptions, OidcProvider

_POOL = pool_pb2.DESCRIPTOR.services_by_name["PoolService"]
_HOSTING = functions_pb2.DESCRIPTOR.services_by_name["HostingService"]
_FUNCTIONS = functions_pb2.DESCRIPTOR.services_by_name["FunctionService"]
_OUTSIDE = outside_pb2.DESCRIPTOR.services_by_name["OutsideService"]
_EGRESS = egress_pb2.DESCRIPTOR.services_by_name["EgressService"]
_SECRETS = secrets_pb2.DESCRIPTOR.services_by_name["SecretService"]
_AUTH = auth_pb2.DESCRIPTOR.services_by_name["AuthService"]
_SHARING = sharing_pb2.DESCRIPTOR.services_by_name["SharingService"]
_AUDIT = audit_pb2.DESCRIPTOR.services_by_name["AuditService"]
_DNS = taskworker_pb2.DESCRIPTOR.services_by_name["DNSService"]
_STREAMS = functions_pb2.DESCRIPTOR.services_by_name["StreamService"]
_RPC = taskworker_pb2.DESCRIPTOR.services_by_name["RPCService"]

_TRAIL = "audit"
_CALLS = pool_places().total  # function calls at once, including waiting ones; each takes a thread
_OPERATORS_CALLS = 64  # calls at once that manage functions, secrets and egress rules; each takes a thread
_OUTSIDE_CALLS = 256  # secrets, API requests and lookups that running functions ask for at once; each takes a thread
_OUTSIDE_REQUESTS = 192  # how many of these may be API requests
_OUTSIDE_LOOKUPS = 32  # how many of these may be name lookups
_LOOKUPS = 32  # lookups at once by other callers; each holds a thread while it waits for name servers


def _provider_of(identities: OidcOptions) -> OidcProvider:
    from taskworker.apps.fetching import fetched  # these load much that most pools need not
    from taskworker.auth.oidc import OidcProvider

    return OidcProvider(identities, fetched)


class PoolServer:
    """Runs the pool in a directory. ``start`` and ``stop`` may be called once each.

    Args:
        directory: the directory of the pool's catalog; created if absent.
        profile: default (k, n) of a new pool: 4-of-6.
        chunk_size: default chunk size of a new pool, bytes.
        options: how to run the pool.
        master_key: the master key that secrets and the keys of encrypted files are sealed with; default: the file
            ``master.key`` in ``directory``. If it cannot be used, a pool without encryption logs that, runs without
            secrets, and does everything else.
        egress: limits on calls of outside APIs.
        dns: how to resolve names, and the address to serve them on.
        functions: the operator's settings for functions.
        joins_by_token: whether workers join with tokens, at an address of their own (:meth:`start`), over TLS.
        audit_log_bytes: size of the audit trail; the oldest records are removed when there are more.
        authenticates: whether callers need tokens of the pool's users (:attr:`users`); otherwise everybody may do
            everything.
        identities: whose identity tokens users can trade for tokens; None: nobody's.
        limits: limits on calls.
        storage: what users may store.

    Attributes:
        tls: how it shows users who serves them; None: it does not use TLS, or has not started.
        on_authority_change: called after each step of replacing the pool's certificate authority.

    Raises:
        StoreLocked: another process runs this pool.
        FormatError: the directory belongs to something else.
        KeyRequired, SecretsUnavailable: the pool encrypts, and its master key is another one, or cannot be used.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        profile: ErasureProfile | None = None,
        chunk_size: int | None = None,
        options: PoolOptions | None = None,
        master_key: MasterKeySource | None = None,
        egress: EgressLimits = DEFAULT_LIMITS,
        dns: DnsOptions | None = None,
        functions: FunctionPolicy | None = None,
        joins_by_token: bool = False,
        authenticates: bool = False,
        identities: OidcOptions | None = None,
        limits: ServerLimits = SERVER_LIMITS,
        audit_log_bytes: int = BYTES_DEFAULT,
        storage: StoragePolicy = STORAGE_POLICY,
    ) -> None:
        self._provider = None if identities is None else _provider_of(identities)
        self._home = HomeProcess(f"the pool in {os.fspath(directory)}")
        source = master_key or KeyFile(Path(directory) / MASTER_KEY)
        options = replace(options or PoolOptions(), keys=partial(given_keys, source))
        self.pool = NodePool(
            directory, profile=profile, chunk_size=chunk_size, options=options, joins_by_token=joins_by_token
        )
        note_kept_elsewhere(source, self.pool)
        shared = SharedMasterKey(source, self.pool.store.upkeep.keys.use_masters, lambda: self.pool.store.needs_rebuild)
        self.users = Users(self.pool.documents, default_quota=storage.quota)
        storage.apply(self.pool.store, self.users)
        self.tls: ServerTls | None = None
        self.on_authority_change: Callable[[], None] = lambda: None
        self.trail = AuditTrail(Path(directory) / _TRAIL, self.pool.documents, bytes_max=audit_log_bytes)
        self._audit = CallAudit(self.trail)
        self._sharing = Sharing(self.pool.documents)
        self.pool.encrypting.move_links = self._sharing.move_links
        self._guard = self._guard_of_users() if authenticates else None
        self._transport = GrpcTransport(self._dial_worker if joins_by_token else None)
        self.functions = PoolFunctions(
            self.pool.store, self.pool.membership, self._transport, functions, Path(directory) / "calls"
        )
        self.pool.store.upkeep.policy.beside = self.functions.deployed.bytes_of
        try:
            self.capabilities = PoolCapabilities(
                self.pool, self.functions, directory, master_key=shared, egress=egress, dns=dns
            )
        except BaseException:
            self.functions.close()
            self.trail.close()
            self.pool.close()
            raise
        hide = (str(directory),)
        self._often: OftenMadeCalls | None = None
        self._limits = limits
        service = PoolService if self.pool.enrollment is None else TokensOnly
        self._service = service(self.pool, self.functions.hosting.is_without_volume)
        self._members: MembersServer | None = None
        if self.pool.enrollment is not None and self.pool.credentials is not None:
            whole = PoolService(self.pool, self.functions.hosting.is_without_volume)
            more = _OUTSIDE_CALLS + _CALLS + DEFAULT_CALLS + _OPERATORS_CALLS
            calls = MembersCalls(more, self.pool.enrollment)
            self._members = MembersServer(
                whole,
                self.pool.enrollment,
                self.pool.credentials,
                hide,
                added=self._services_of_members(hide, calls),
                calls=calls,
                authority=self.pool.authority(),
                renew=partial(self.pool.renew_identity, only_if_due=True),
                audit=self._audit,
            )
        self._server = FileServer(
            self.pool.store,
            limits=limits,
            added=self._services(hide),
            added_calls=_CALLS + _OPERATORS_CALLS + _OUTSIDE_CALLS + _LOOKUPS,
            ready=self.pool.startup_barrier.wait,
            guard=self._guard,
            direct=self._direct_reads() if options.direct else None,
            pushes=self._direct_pushes() if options.direct and options.direct_pushes else None,
        )

    def _direct_reads(self) -> DirectReads:
        pool = self.pool
        return DirectReads(
            pool.fleet, pool.membership, pool.tickets, pool.pool_id, lambda: pool.credentials is not None
        )

    def _direct_pushes(self) -> DirectPushes:
        pool = self.pool
        return DirectPushes(
            pool.fleet,
            pool.membership,
            pool.tickets,
            pool.pool_id,
            lambda: pool.credentials is not None,
            lambda: pool.store.upkeep.keys.seals,
        )

    def _guard_of_users(self) -> Guard:
        """The guard of the users' server. There, workers that joined without tokens act for the calls that they run."""
        known = TokensAndCalls(self.users, lambda token: self.functions.hosting.call_of(token))
        found = self.users if self.pool.enrollment else known
        bearers = Bearers(found, self._sharing)
        return guard_of(self.pool.store, by_token(bearers), bearers.user_of, self._audit, self._sharing)

    def _dial_worker(self, worker: str, address: str) -> grpc.Channel:
        """Make a channel to a worker that joined with a token."""
        credentials = self.pool.credentials
        assert credentials is not None, "workers join with tokens"

        def make(_pair: object) -> grpc.Channel:
            identity = MemberIdentity(self.pool.pool_id, MemberKind.WORKER, worker)
            return dial_secure(address, credentials.for_grpc_channel(), identity.dns_name)

        return TokenChannel(make, lambda: ("", credentials.pair))

    def _services_of_members(self, hide: tuple[str, ...], calls: MembersCalls) -> dict[str, grpc.GenericRpcHandler]:
        """What workers that joined with tokens need for the calls of functions that they run."""
        enrollment, hosting = self.pool.enrollment, self.functions.hosting
        assert enrollment is not None, "workers join with tokens"
        guard = guard_of(self.pool.store, by_certificate(enrollment, hosting), audit=self._audit, entry=calls.entry)
        gate = Gate(_OPERATORS_CALLS, f"{_OPERATORS_CALLS} workers are telling what they run; that is the limit")
        offers = MembersHostingService(self._hosting(knows_calls=True), hosting, enrollment)
        asked = MembersOutsideService(self._outside(), hosting)
        router = self.functions.router
        limits = ServerLimits()
        self._often = OftenMadeCalls(limits.calls)
        return {
            **services_of(self.pool.store, limits, self.pool.startup_barrier.wait, self._often, guard),
            _HOSTING.full_name: generic_handler(_HOSTING, offers, hide=hide, gate=gate, guard=guard),
            _RPC.full_name: generic_handler(_RPC, RpcService(router), codecs=CALL_CODECS, hide=hide, guard=guard),
            _OUTSIDE.full_name: generic_handler(_OUTSIDE, asked, hide=hide, gate=self._asking(), guard=guard),
        }

    def _hosting(self, *, knows_calls: bool) -> HostingService:
        functions = self.functions
        return HostingService(functions.hosting, functions.deployed, self._read_bundle, knows_calls=knows_calls)

    def _read_bundle(self, owner: str, file_id: str, version_id: str) -> Iterator[bytes]:
        with self.pool.store.open_file(file_id, user_id=owner, version_id=version_id) as reader:
            while data := reader.read(PUSH_DATA_BYTES):
                yield data

    def _outside(self) -> OutsideService:
        weight_of = self.functions.weight_of
        return OutsideService(
            self.functions.hosting.call_of,
            self.capabilities.of,
            UserPlaces(_OUTSIDE_REQUESTS, "this pool", "requests to outside APIs", weight_of, refusal=ApiBusy),
            UserPlaces(_OUTSIDE_LOOKUPS, "this pool", "lookups of names", weight_of),
        )

    def _asking(self) -> Gate:
        # A running call holds a place at one gate while it requests secrets, outside APIs or names. These requests have
        # another gate: otherwise calls could fill the only gate, and their own requests would be refused.
        return Gate(_OUTSIDE_CALLS, f"{_OUTSIDE_CALLS} calls of functions request secrets, outside APIs or names")

    def _services(self, hide: tuple[str, ...]) -> dict[str, grpc.GenericRpcHandler]:
        functions, capabilities = self.functions, self.capabilities
        gate = Gate(_OPERATORS_CALLS, f"{_OPERATORS_CALLS} such calls are under way, as many as this pool allows")
        lookups = Gate(_LOOKUPS, f"{_LOOKUPS} names are being looked up, as many as this pool allows at once")
        management = FunctionService(functions.deployed, functions.hosting, functions.router, functions.log)
        handler = partial(generic_handler, hide=hide, guard=self._guard, limits=self._limits)
        return {
            _POOL.full_name: handler(_POOL, self._service),
            _HOSTING.full_name: handler(_HOSTING, self._hosting(knows_calls=self._guard is not None)),
            _FUNCTIONS.full_name: handler(_FUNCTIONS, management, gate=gate),
            _RPC.full_name: handler(_RPC, RpcService(functions.router), codecs=CALL_CODECS),
            _STREAMS.full_name: handler(_STREAMS, StreamService(functions.router), codecs=CALL_CODECS),
            _OUTSIDE.full_name: handler(_OUTSIDE, self._outside(), gate=self._asking()),
            _EGRESS.full_name: handler(_EGRESS, EgressService(capabilities.egress), gate=gate),
            _SECRETS.full_name: handler(_SECRETS, SecretService(capabilities.secrets, self.pool.key_copies)),
            _AUTH.full_name: handler(
                _AUTH,
                AuthService(
                    self.users,
                    self._sharing,
                    self._rotation,
                    self.pool.enrollment,
                    self._provider,
                    storage=self.pool.store.upkeep,
                    access_keys=capabilities.secrets.access_keys,
                ),
                gate=gate,
            ),
            _SHARING.full_name: handler(_SHARING, SharingService(self._sharing, self.pool.store), gate=gate),
            _AUDIT.full_name: handler(_AUDIT, AuditService(self.trail), gate=gate),
            _DNS.full_name: handler(_DNS, DnsService(capabilities.names), gate=lookups),
        }

    def _rotation(self) -> Rotation | None:
        if self.tls is None and self.pool.enrollment is None:
            return None
        waiting = list if self.pool.enrollment is None else self.pool.enrollment.behind
        return Rotation(self.pool.authority(), waiting, self._authority_changed)

    def _authority_changed(self) -> None:
        self.pool.renew_identity()
        self.on_authority_change()

    @property
    def join_address(self) -> str:
        """Where workers join with tokens; empty: they join without, or the server has not started."""
        return self._service.join_address

    def start(
        self,
        address: str,
        join_address: str = "",
        members_port: int = 0,
        *,
        tls: TlsOptions | None = None,
        bound: Callable[[str], None] = lambda _address: None,
    ) -> int:
        """Listen; see :meth:`taskworker.services.file_server.FileServer.start`. On failure the pool is closed.

        Args:
            address: where users and operators call.
            join_address: where workers join with tokens, see :meth:`MembersServer.start`.
            members_port: where they are served once they have joined.
            tls: how to show users who serves them; None: without TLS, so on this machine only.
            bound: called with the address for users, with its port, before the first call there is answered.
        """
        try:
            self.capabilities.start()
            if self._members is not None:
                self._service.join_address = self._members.start(join_address, members_port)
            if tls is not None:
                self.tls = ServerTls(self.pool.authority(), address, tls)
            port = self._server.start(address, None if self.tls is None else self.tls.credentials(), bound=bound)
        except BaseException:
            if self._members is not None:
                self._members.stop(0.0)
            self.capabilities.close()
            self.functions.close()
            self.trail.close()
            self.pool.close()
            raise
        self.functions.start()
        self.capabilities.began(address if port == 0 else f"{address.rpartition(':')[0]}:{port}")
        return port

    def wait(self, timeout_s: float | None = None) -> bool:
        """Block until the server has stopped; False if ``timeout_s`` ran out first."""
        return self._server.wait(timeout_s)

    def stop(self, grace_s: float = 5.0) -> None:
        """Give running calls ``grace_s`` seconds, then close the pool. Does nothing in a forked child."""
        if not self._home.is_here:
            return
        self.pool.startup_barrier.end()
        ending = self.capabilities.ending(grace_s)
        if self._members is not None:
            self._members.stop(grace_s)
        self._server.stop(grace_s)
        if self._often is not None:
            self._often.shutdown()
        ending.cancel()
        ending.join()
        self.capabilities.close()
        self.functions.close()
        self._transport.close()
        self.users.save_uses()
        self.trail.close()
        self.pool.close()
