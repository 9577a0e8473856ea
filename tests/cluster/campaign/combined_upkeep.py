"""What befalls a pool in random order: kills, stops, drains, collections, repairs, shreds, rotations and rebuilds."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from random import Random
from typing import Any

from storage.errors import StorageError
from taskworker.client.keys import KeyClient
from taskworker.client.pool import PoolClient
from taskworker.client.users import UserClient
from tests.cluster.campaign.combined_calls import Account
from tests.cluster.processes import Cluster

WORKERS = 4
_WORKERS_MAX = 5
_WAIT_S = 120.0
_PLAIN, _ENCRYPTED = "--no-encryption", "--encryption"


class Upkeep:
    """Does to the pool what its operators and bad luck do. Not thread-safe.

    At most one worker is away at a time, as the pool can lose one.

    Args:
        cluster: the pool and its workers.
        rng: decides everything.
        account: where errors go.

    Attributes:
        kinds: all that it does, each with how often, in proportion.
        kinds_under_load: what it does while users have calls under way.
    """

    def __init__(self, cluster: Cluster, rng: Random, account: Account) -> None:
        self._cluster = cluster
        self._rng = rng
        self._account = account
        self._operator = UserClient(cluster.address)
        self._pool = PoolClient(cluster.address)
        self._keys = KeyClient(cluster.address)
        self._stopped: set[str] = set()
        self._killed: set[str] = set()
        self._next_worker = WORKERS
        self.kinds: dict[Callable[[], None], float] = {
            self.collect: 3, self.repair: 1, self.shred: 2, self.rotate_key: 1, self.kill_worker: 2,
            self.stop_worker: 1, self.kill_pool: 1.5, self.add_or_drain: 1, self.rebuild: 0.4,
        }  # fmt: skip
        self.kinds_under_load = (self.kill_pool, self.collect, self.kill_worker, self.shred, self.repair)

    def add_user(self, user_id: str) -> str:
        """Add a user; the token."""
        self._operator.add(user_id)
        return self._operator.create_token(user_id)[0]

    def usage(self) -> dict[str, tuple[int, int]]:
        """How many files and bytes are counted for each user."""
        return {user.user: (user.files, user.bytes) for user in self._operator.users() if user.role == "user"}

    def close(self) -> None:
        """End the connections."""
        for client in (self._operator, self._pool, self._keys):
            client.close()

    # -- work of operators -----------------------------------------------------------------------

    def _command(self, kind: str, command: Callable[[], Any]) -> None:
        """Give a command; it may be refused as long as workers are away."""
        try:
            command()
            self._account.done(kind)
        except StorageError as error:
            self._account.refuse(kind, error)

    def collect(self) -> None:
        """Remove what no version needs any more."""
        self._command("collect", lambda: self._cluster.client.collect(grace_s=0))

    def repair(self) -> None:
        """Mend what is missing."""
        self._command("repair", self._cluster.client.repair)

    def shred(self) -> None:
        """Make what was deleted unreadable by new keys."""
        self._command("shred", self._pool.shred)

    def rotate_key(self) -> None:
        """Give a user a new key of the pool's."""
        user_id = self._rng.choice(sorted(self.usage()))
        self._command("rotate a key", lambda: self._keys.rotate(user_id))

    def encrypt(self) -> None:
        """Encrypt what was stored before the pool encrypted, wholly; one that does not is restarted with encryption."""
        if _PLAIN in self._cluster.options:
            self._cluster.options = tuple(
                _ENCRYPTED if option == _PLAIN else option for option in self._cluster.options
            )
            self.kill_pool()
            self.heal()
        self._pool.encrypt_existing()
        self._cluster.await_status(
            lambda status: any(work.name == "encrypt" and work.state == "idle" for work in status.work), _WAIT_S
        )
        self._account.done("encrypt")

    def add_or_drain(self) -> None:
        """Add a worker, or if there are many drain one and forget it."""
        if len(self._cluster.workers) + len(self._killed) < _WORKERS_MAX:
            self._cluster.start_worker(f"w{self._next_worker}")
            self._next_worker += 1
        elif not self._killed and not self._stopped:
            self._command("drain", self._drain)

    def _drain(self) -> None:
        cluster, name = self._cluster, self._rng.choice(sorted(self._cluster.workers))
        cluster.await_survivable(1, _WAIT_S)
        cluster.drain(name)
        cluster.await_moved(cluster.status().layout_version, _WAIT_S)
        cluster.workers.pop(name).stop()
        self._pool.forget(name)

    def rebuild(self) -> None:
        """Lose the pool's directory, and rebuild its catalog from the workers; the same usage must be counted."""
        cluster = self._cluster
        self.heal()
        self.collect()
        before, users, pool_id = self.usage(), self._operator.export(), cluster.status().pool_id
        cluster.pool_process.kill()
        home, kept = cluster.directory / "pool", cluster.directory / "master.key"
        if (home / "master.key").exists():
            shutil.copy(home / "master.key", kept)
            if "--master-key" not in cluster.options:
                cluster.options += ("--master-key", str(kept))
        shutil.rmtree(home)
        options = cluster.options
        cluster.options = (*options, "--rebuild", pool_id)
        cluster.restart_pool()
        cluster.options = options
        cluster.await_status(lambda status: f"{len(cluster.workers)} workers have joined" in status.health, _WAIT_S)
        rebuilt = cluster.client.rebuild()
        if rebuilt.skipped or rebuilt.undecided:
            self._account.error("rebuild", "skipped or undecided", str(rebuilt))
        self._operator.restore(users)
        after = self.usage()
        if after != before:
            self._account.error("rebuild", "other usage (files, bytes)", f"{after}, where {before} was before")
        self._account.done("rebuild")

    # -- bad luck --------------------------------------------------------------------------------

    def kill_worker(self) -> None:
        """SIGKILL one; if one is away, have it back instead."""
        if self._killed or self._stopped:
            self._have_back()
            return
        name = self._rng.choice(sorted(self._cluster.workers))
        self._cluster.kill(name)
        self._killed.add(name)
        self._account.done("kill a worker")

    def stop_worker(self) -> None:
        """SIGSTOP one; if one is away, have it back instead."""
        if self._killed or self._stopped:
            self._have_back()
            return
        name = self._rng.choice(sorted(self._cluster.workers))
        self._cluster.workers[name].signal(signal.SIGSTOP)
        self._stopped.add(name)
        self._account.done("stop a worker")

    def kill_pool(self) -> None:
        """SIGKILL the pool and start it again."""
        self._cluster.pool_process.kill()
        self._cluster.restart_pool()
        self._account.done("kill the pool")

    def _have_back(self) -> None:
        for name in self._stopped:
            self._cluster.workers[name].signal(signal.SIGCONT)
        for name in self._killed:
            self._cluster.start_worker(name)
        self._stopped.clear()
        self._killed.clear()

    def heal(self) -> None:
        """Have all workers back, and wait until any one may be lost."""
        self._have_back()
        self._cluster.await_status(lambda status: all(worker.state == "alive" for worker in status.workers), _WAIT_S)
        self._cluster.await_survivable(1, _WAIT_S)
