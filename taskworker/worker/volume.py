"""A pool's worker: serves its volume to the pool, and keeps its lease alive."""

from __future__ import annotations

import logging
import math
import os
import random
import resource
import shutil
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import grpc

from storage.clocks import wall_ms
from storage.erasure import code_for_key
from storage.errors import FormatError, StorageError
from storage.shards import LocalVolume, VolumeFailed, VolumeUnavailable, VolumeUsage
from storage.shards.identity import VolumeIdentity, new_volume_key, read_identity
from storage.system.forks import HomeProcess
from storage.system.locking import StoreLock
from storage.system.private_paths import make_own_directory, make_root_directory
from taskworker.errors import (
    DeadlineExceeded,
    NotJoined,
    ServerNotTrusted,
    StorageUnavailable,
    WorkerRefused,
    cannot_listen,
)
from taskworker.protos import pool_pb2
from taskworker.protos.pool_pb2_grpc import PoolServiceStub
from taskworker.rpc import status
from taskworker.rpc.admission import DEFAULT_CALLS
from taskworker.rpc.dialling import dial
from taskworker.rpc.protocol import PROTOCOL, upgrade_advice
from taskworker.rpc.serving import Server
from taskworker.transport.member_dialling import MemberDialling
from taskworker.transport.shard_service import shard_server
from taskworker.transport.shards_of_clients import ShardsOfClients
from taskworker.transport.wire.server import WireServer
from taskworker.worker.announcing import announced
from taskworker.worker.calls_server import calls_server
from taskworker.worker.clients_port import CLIENTS_OPTIONS, ClientsOptions, ClientsPort
from taskworker.worker.functions import FUNCTION_CALLS, HostedFunctions
from taskworker.worker.member import WorkerMember
from taskworker.worker.own_volume import OwnVolume
from taskworker.worker.renewal import Renewal
from taskworker.worker.self_description import own_version, volume_id
from taskworker.worker.self_scrub import SCRUB_BYTES_PER_S, ScrubState, SelfScrub

log = logging.getLogger(__name__)

ResponseT = TypeVar("ResponseT")

_CALL_TIMEOUT_S = 30.0  # while a worker joins, the pool makes several calls to it, over a link that may be slow
_RETRY_S = 0.5
_LEAVE_TIMEOUT_S = 2.0
_SILENT_S = 5.0
_GIVE_UP_S = 600.0  # a worker without its volume is useless; its supervisor may know what to do
_TOLD_EVERY_S = 30.0


class VolumeWorker:
    """Offers the volume in a directory to a pool, from :meth:`start` until :meth:`stop`. Thread-safe.

    Args:
        worker_id: its id in the pool.
        pool_address: ``host:port`` or ``unix:path`` of the pool, or several ``host:port``, separated by commas, where
            it may be found.
        directory: directory of the volume; created if absent.
        zone: the failure domain of this worker.
        owner: the owner of this machine; the pool spreads shards over as many owners as it can.
        capacity: its weight in the layout, in bytes; default: the size of the disk.
        scrub_bytes_per_s: rate of its scrub; 0: never scrub.
        functions: the functions that it also runs for the pool.
        shard_port: the port for its volume, on the host that it listens on; 0: any free one.
        member: its certificate, if the pool's workers join with tokens.
        clients: whether clients may read from it themselves, and where.
        clock_s: monotonic seconds.
        now_ms: milliseconds since 1970.
        rng: varies the pauses between heartbeats.
    """

    def __init__(
        self,
        worker_id: str,
        pool_address: str,
        directory: str | os.PathLike[str],
        *,
        zone: str = "",
        owner: str = "",
        capacity: int | None = None,
        scrub_bytes_per_s: int = SCRUB_BYTES_PER_S,
        functions: HostedFunctions | None = None,
        shard_port: int = 0,
        member: WorkerMember | None = None,
        clients: ClientsOptions = CLIENTS_OPTIONS,
        clock_s: Callable[[], float] = time.monotonic,
        now_ms: Callable[[], int] = wall_ms,
        rng: random.Random | None = None,
    ) -> None:
        self._clock_s = clock_s
        self._now_ms = now_ms
        self._rng = rng or random.Random()
        self._home = HomeProcess(f"worker {worker_id}")
        self._functions = functions
        self.worker_id = worker_id
        self.pool_address = pool_address
        self.directory = Path(directory)
        self.zone = zone
        self.owner = owner
        self.address = ""
        self._capacity = capacity
        self._shard_port = shard_port
        self._member = member
        self._channel = dial(pool_address, as_worker=True) if member is None else member.channel()
        self._pool = PoolServiceStub(self._channel)
        self._stopping = threading.Event()
        self._joined = threading.Event()
        self._own: OwnVolume | None = None
        self._gave_up = ""
        self._lock: StoreLock | None = None
        self._server: Server | None = None
        self._shards: WireServer | None = None
        self._clients: ClientsPort | None = None
        self._clients_options = clients
        self._from_clients = ShardsOfClients()
        self._instance = ""  # the instance name under which it has joined
        self._end = threading.Thread(target=self._stop_serving, name="end", daemon=True)
        self._pulse = threading.Thread(target=self._keep_lease, name="heartbeat", daemon=True)
        self._scrubber = SelfScrub(
            scrub_bytes_per_s, self._stopping, self.directory / "scrub.json", clock_s=clock_s, now_ms=now_ms
        )
        self._renewal = Renewal(member, self._channel, clock_s)
        self._is_to_renew = False
        self._members: MemberDialling | None = None
        self._denied_state = ""
        self._heartbeat_s = 1.0
        self._cpu_s = (clock_s(), 0.0)

    @property
    def shard_address(self) -> str:
        """The address at which the pool reaches the volume; empty before :meth:`start`."""
        return "" if self._shards is None else self._shards.address

    @property
    def clients_address(self) -> str:
        """The address at which clients read from the volume; empty: they do not."""
        return "" if self._clients is None else self._clients.address

    @property
    def joined(self) -> bool:
        """Whether this worker is joined to the pool, as far as it knows."""
        return self._joined.is_set()

    @property
    def volume_trouble(self) -> str:
        """Why the volume cannot be used or is read-only; empty if it works, or is not open yet."""
        return "" if self._own is None else self._own.reason

    @property
    def scrub(self) -> ScrubState:
        """The progress of the worker's scrub."""
        return self._scrubber.state

    def volume_usage(self) -> VolumeUsage | None:
        """The space of the volume; None: it is not open."""
        if self._own is None:
            return None
        try:
            return self._own.current().volume.usage()
        except VolumeFailed:
            return None

    def start(self, address: str) -> int:
        """Open the volume, serve it on ``address`` and join the pool; waits for the pool until :meth:`give_up`.

        Returns:
            The port bound; 0 for a socket file.

        Raises:
            WorkerRefused: the pool refuses this worker; the text says why.
            StorageUnavailable: the address is taken, or no pool answered until :meth:`give_up`.
            StoreLocked: another process uses this directory.
            FormatError: the directory is not a volume of this pool.
        """
        self._home.check()
        description = self._when_it_answers(self._describe)
        make_root_directory(self.directory)
        self._lock = StoreLock(self.directory)
        try:
            volume = self._open_volume(description)
            self._own = own = OwnVolume(volume, partial(self._open_again, volume.identity), self._clock_s)
            added = {} if self._functions is None else self._functions.services(self.directory)
            functions_calls = 0 if self._functions is None else FUNCTION_CALLS
            self._server = calls_server(added, DEFAULT_CALLS + functions_calls, self._member, self._clock_s)
            credentials = None if self._member is None else self._member.credentials.for_grpc_server()
            port = self._server.start(address, credentials)
            self.address = address if port == 0 else f"{address.rpartition(':')[0]}:{port}"
            code_for_key(description.k, description.n)  # takes a moment, which repair need not wait for
            self._shards = self._serve_volume(own)
            if self._clients_options.offered:
                credentials_of = None if self._member is None else self._member.credentials
                hide, written = (str(self.directory),), self._from_clients
                self._clients = ClientsPort(self.worker_id, own.current, credentials_of, hide, written, self._now_ms)
                self._clients.start(self.address, description.pool_id, self._clients_options.port)
            self._when_it_answers(lambda: self._join(description.pool_id))
            self._instance = own.current().instance
        except BaseException:
            self.stop(0.0)
            raise
        self._pulse.start()
        self._scrubber.start(lambda: own.current().volume)
        if self._functions is not None:
            self._functions.start(self.worker_id, own.current().instance)
        return port

    def _serve_volume(self, own: OwnVolume) -> WireServer:
        """Serve the volume at an address beside the worker's own."""
        host = self.address.rpartition(":")[0]
        address = f"{self.address}.shards" if self.address.startswith("unix:") else f"{host}:{self._shard_port}"
        hide, written = (str(self.directory),), self._from_clients
        if self._member is None:
            server = shard_server(None, hide=hide, current=own.current, from_clients=written)
        else:
            self._members = members = MemberDialling(self._member.credentials)
            server = shard_server(
                None,
                hide=hide,
                current=own.current,
                secure=members.accept,
                dialling=members.to_workers(),
                allowed=members.allowed,
                from_clients=written,
            )
        try:
            server.start(address)
        except OSError as error:
            server.stop(0.0)
            raise cannot_listen(address, error) from None
        log.info("serving the volume on %s", server.address)
        return server

    def give_up(self) -> None:
        """Make a :meth:`start` that waits for the pool stop waiting."""
        self._stopping.set()

    def wait(self) -> None:
        """Wait until the worker has stopped.

        Raises:
            VolumeFailed: the worker ended by itself because its volume could not be opened for too long.
        """
        if self._server is not None:
            self._server.wait()
        if self._gave_up:
            raise VolumeFailed(self._gave_up)

    def _stop_serving(self) -> None:
        if self._server is not None:
            self._server.stop(0.0)

    def stop(self, grace_s: float = 5.0) -> None:
        """Leave the pool, end running calls within ``grace_s`` seconds, and close the volume.

        Does nothing in a forked child: the worker belongs to the parent.
        """
        if not self._home.is_here:
            return
        self._stopping.set()
        if self._joined.is_set():
            self._leave()
        if self._clients is not None:
            self._clients.stop(grace_s)
        if self._shards is not None:
            self._shards.stop(grace_s)
        if self._server is not None:
            self._server.stop(grace_s)
        if self._functions is not None:
            self._functions.close()
        if self._pulse.is_alive():
            self._pulse.join()
        self._scrubber.join()
        self._channel.close()
        if self._own is not None:
            self._own.close()
        if self._lock is not None:
            self._lock.release()

    # -- the volume ------------------------------------------------------------------------------

    def _open_volume(self, description: pool_pb2.PoolDescription) -> LocalVolume:
        path = self.directory / "volume"
        make_own_directory(path)
        identity = read_identity(path)
        if identity is None:
            identity = VolumeIdentity(
                store_id=description.pool_id,
                slot=0,
                volumes=1,
                key=new_volume_key(),
                k=description.k,
                n=description.n,
                chunk_size=description.chunk_size,
            )
        elif identity.store_id != description.pool_id:
            raise FormatError(
                f"{self.directory} holds shards of pool {identity.store_id}, the pool at {self.pool_address} is "
                f"{description.pool_id}; start this worker with its own pool's address, or with another directory, or "
                f"if that pool's own directory is lost, a new pool with --rebuild {identity.store_id}"
            )
        return LocalVolume(path, identity, clock_s=self._clock_s, now_ms=self._now_ms)

    def _open_again(self, known: VolumeIdentity) -> LocalVolume:
        """Reopen the volume. If it is not there, do not create it: its disk may be missing for now."""
        path = self.directory / "volume"
        identity = read_identity(path)
        if identity is None:
            raise VolumeUnavailable(f"there is no volume in {path}: was it removed, or its disk unmounted?")
        if identity.key != known.key:
            raise VolumeUnavailable(f"there is another volume in {path} than before: restart this worker to use it")
        return LocalVolume(path, identity, clock_s=self._clock_s, now_ms=self._now_ms)

    # -- the pool --------------------------------------------------------------------------------

    def _when_it_answers(self, call: Callable[[], ResponseT]) -> ResponseT:
        """Repeat a call until the pool answers or this worker is stopped, and return its result."""
        told_at_s = -math.inf
        while True:
            try:
                return call()
            except StorageUnavailable as error:
                if self._clock_s() >= told_at_s + _TOLD_EVERY_S:
                    told_at_s = self._clock_s()
                    log.warning("%s; waiting for it", error)
                if self._stopping.wait(_RETRY_S):
                    raise

    def _describe(self) -> pool_pb2.PoolDescription:
        try:
            description = self._call(lambda: self._pool.Describe(pool_pb2.DescribeRequest(), timeout=_CALL_TIMEOUT_S))
        except ServerNotTrusted as error:
            if self._member is not None:
                raise
            raise WorkerRefused(
                f"{error}. A worker of another machine joins with a token instead: give it the one that "
                "`taskworker worker token` printed for it (--token)"
            ) from None
        if description.protocol != PROTOCOL:
            raise WorkerRefused(
                f"the pool at {self.pool_address} speaks protocol {description.protocol}, this worker {PROTOCOL}; "
                + upgrade_advice(PROTOCOL, description.protocol)
            )
        return description

    def _join(self, pool_id: str) -> None:
        assert self._own is not None
        volume, instance = self._own.current()
        request = pool_pb2.JoinRequest(
            worker_id=self.worker_id,
            address=self._announced(self.address),
            shard_address=self._announced(self.shard_address),
            clients_address=self._announced(self.clients_address) if self.clients_address else "",
            zone=self.zone,
            owner=self.owner,
            capacity=self._capacity or self._own_capacity(),
            instance=instance,
            volume_id=volume_id(volume.identity),
            pool_id=pool_id,
            protocol=PROTOCOL,
            version=own_version(),
            k=volume.identity.k,
            n=volume.identity.n,
        )
        response = self._call(lambda: self._pool.Join(request, timeout=_CALL_TIMEOUT_S))
        self._heartbeat_s = response.heartbeat_ms / 1000
        if self._clients is not None:
            self._clients.trust(response.ticket_authorities)
        self._joined.set()
        if self._functions is not None:
            self._functions.renew(instance)
        log.info("joined pool %s as number %d", response.pool_id, response.slot)

    def _announced(self, address: str) -> str:
        return announced(address, self._member.members_address if self._member else self.pool_address)

    def _own_capacity(self) -> int:
        """Size of the disk in whole GiB, so that the layout does not change with every file."""
        usage = shutil.disk_usage(self.directory)
        return max(1, usage.total >> 30) << 30

    def _keep_lease(self) -> None:
        pause_s, silent_s = self._heartbeat_s, 0.0
        while not self._stopping.wait(pause_s * self._rng.uniform(0.9, 1.0)):
            pause_s = self._heartbeat_s
            try:
                if not self._tend():
                    continue
                self._renewal.look(told=self._is_to_renew)
                self._renew_lease()
            except NotJoined:
                self._joined.clear()
                pause_s = 0.05
                continue
            except (StorageUnavailable, DeadlineExceeded) as error:
                silent_s += self._heartbeat_s
                # Not worth a log line: the pool may just be restarting.
                log.log(logging.WARNING if silent_s > _SILENT_S else logging.INFO, "%s; it is tried again", error)
            except StorageError as error:
                log.error("the pool does not take this worker: %s", error)
            except OSError as error:  # for example, no descriptors are left for the moment
                log.warning("the pool was not told that this worker lives, and is told again: %s", error)
            except Exception:  # must not end the thread: the pool would give the worker up for good
                log.exception("the pool was not told that this worker lives, and is told again")
            else:
                silent_s = 0.0
            pause_s = self._heartbeat_s

    def _tend(self) -> bool:
        """Check the volume. If its disk is gone, leave the pool, so that the pool treats this worker as gone."""
        assert self._own is not None
        usable = self._own.tend()
        if not usable:
            self._joined.clear()
            if self._own.failing_s > _GIVE_UP_S:
                self._gave_up = (
                    f"the volume could not be opened for {_GIVE_UP_S:.0f} s, so this worker ends: {self._own.reason}"
                )
                self._stopping.set()
                self._end.start()
        if self._server is not None:
            self._server.tell_health(serving=usable)
        return usable

    def _renew_lease(self) -> None:
        assert self._own is not None
        volume, instance = self._own.current()
        if self._joined.is_set() and instance == self._instance:
            self._beat()
        else:
            self._join(volume.identity.store_id)
            self._instance = instance

    def _beat(self) -> None:
        request = pool_pb2.HeartbeatRequest(
            worker_id=self.worker_id, instance=self._instance, load=self._load(), denied_state=self._denied_state
        )
        answer = self._call(lambda: self._pool.Heartbeat(request, timeout=max(1.0, self._heartbeat_s)))
        self._is_to_renew = answer.renew
        if answer.denied_state != self._denied_state and self._members is not None and self._shards is not None:
            self._members.deny(answer.denied)
            self._shards.end_those(self._members.is_denied)
            self._denied_state = answer.denied_state

    def _load(self) -> pool_pb2.Load:
        assert self._own is not None
        usage = self._own.current().volume.usage()
        used = resource.getrusage(resource.RUSAGE_SELF)
        now, cpu = self._clock_s(), used.ru_utime + used.ru_stime
        then, before = self._cpu_s
        self._cpu_s = (now, cpu)
        scrub = self._scrubber.state
        return pool_pb2.Load(
            cpu=(cpu - before) / max(now - then, 1e-3),
            bytes_used=usage.bytes_used,
            bytes_live=usage.bytes_live,
            bytes_free=usage.bytes_free,
            shards=usage.shards,
            rotten=scrub.found,
            scrub_done=scrub.done,
            scrub_total=scrub.total,
            scrub_bytes_per_s=scrub.bytes_per_s,
            scrub_ended_ms=scrub.ended_ms,
            scrub_next_ms=scrub.next_ms,
            scrub_errors=scrub.errors,
        )

    def _leave(self) -> None:
        request = pool_pb2.LeaveRequest(worker_id=self.worker_id, instance=self._instance)
        try:
            self._call(lambda: self._pool.Leave(request, timeout=_LEAVE_TIMEOUT_S))
        except StorageError as error:
            log.info("the pool could not be told that this worker stops: %s", error)

    def _call(self, call: Callable[[], ResponseT]) -> ResponseT:
        try:
            return call()
        except grpc.RpcError as error:
            failure = status.decode(error, self.pool_address)
            if type(failure) is StorageUnavailable:
                failure = StorageUnavailable(f"no pool answers at {self.pool_address}")
            raise failure from None
