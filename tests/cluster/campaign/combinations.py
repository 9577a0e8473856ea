"""All calls of users and all work of operators in random order, with kills, held against a model of what was told."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from random import Random

from storage.errors import StorageError
from storage.sealing.master_keys import MasterKey, MasterKeys
from taskworker import Client
from taskworker.client.sealed.rotating import OwnKeyRotation
from tests.cluster.campaign.combined_calls import Account, RandomCalls
from tests.cluster.campaign.combined_sharing import Sharing
from tests.cluster.campaign.combined_upkeep import WORKERS, Upkeep
from tests.cluster.campaign.run import Run
from tests.cluster.processes import Cluster

_STEPS = 30  # of a round
_SHARERS = ("ann", "bob")
_OWNER_OF_KEYS = "cat"  # whose client encrypts with a key of her own
_CALL_S = 90.0
_KEYS_KEPT = 3
_DIRECT_CHANCE = 0.8  # that a client reaches workers itself


class _Scene:
    """The pool, its users, and what happens next."""

    def __init__(self, run: Run, cluster: Cluster) -> None:
        self._rng = run.rng
        self._cluster = cluster
        self.account = Account()
        self.upkeep = Upkeep(cluster, self._rng, self.account)
        self._tokens = {name: self.upkeep.add_user(name) for name in (*_SHARERS, _OWNER_OF_KEYS)}
        self._keys = [MasterKey(self._rng.randbytes(32))]
        self.users = {name: self._user(name, run.directory) for name in self._tokens}
        self._sharing = Sharing({name: self.users[name] for name in _SHARERS}, self._rng, self.account)

    def _user(self, name: str, directory: Path) -> RandomCalls:
        rng = Random(self._rng.random())
        has_own_key = name == _OWNER_OF_KEYS
        return RandomCalls(self._connect(name), name, rng, directory, self.account, has_own_key=has_own_key)

    def _connect(self, name: str) -> Client:
        direct = None if self._rng.random() < _DIRECT_CHANCE else False
        key = MasterKeys(self._keys[0], tuple(self._keys[1:])) if name == _OWNER_OF_KEYS else None
        return Client(self._cluster.address, token=self._tokens[name], timeout_s=_CALL_S, direct=direct, key=key)

    def step(self) -> None:
        """One call of one user, or some of all at once, or work of an operator, or bad luck."""
        chance = self._rng.random()
        if chance < 0.62:
            self.users[self._rng.choice(sorted(self.users))].step()
        elif chance < 0.70:
            self._rng.choice((self._sharing.change, self._sharing.use))()
        elif chance < 0.77:
            self._all_at_once()
        elif chance < 0.78:
            self._rotate_own_key()
        elif chance < 0.79:
            self._encrypt()
        else:
            kinds = self.upkeep.kinds
            self._rng.choices(list(kinds), weights=list(kinds.values()))[0]()

    def _all_at_once(self) -> None:
        """Something happens to the pool while every user has a call under way."""
        event = self._rng.choice(self.upkeep.kinds_under_load)
        with ThreadPoolExecutor(len(self.users)) as threads:
            calls = [threads.submit(user.step) for user in self.users.values()]
            time.sleep(self._rng.uniform(0.0, 0.3))
            event()
        for call in calls:
            call.result()

    def _encrypt(self) -> None:
        """Encrypt what was stored before the pool encrypted: such files get a version more, with the same content."""
        self.verify()  # settles what is in doubt
        self.upkeep.encrypt()
        for user in self.users.values():
            user.take_encrypted()

    def _rotate_own_key(self) -> None:
        """Encrypt all of a user's files with a new key of the user's own."""
        self.upkeep.heal()
        user = self.users[_OWNER_OF_KEYS]
        user.verify()  # settles what is in doubt
        self._keys = [MasterKey(self._rng.randbytes(32)), *self._keys[: _KEYS_KEPT - 1]]
        user.client.close()
        user.client = self._connect(_OWNER_OF_KEYS)
        try:
            OwnKeyRotation(user.client, _OWNER_OF_KEYS).run()
            self.account.done("rotate an own key")
        except StorageError as error:
            self.account.error(_OWNER_OF_KEYS, "rotate an own key", error)
        user.find_again()

    def verify(self) -> None:
        """Have all workers back; look at every version of every file, and at every shard."""
        self.upkeep.heal()
        for user in self.users.values():
            user.verify()
        scrubbed = self._cluster.client.scrub()
        if not scrubbed.clean:
            self.account.error("scrub", "not clean", str(replace(scrubbed, damaged=scrubbed.damaged[:3])))
        files = sum(len(user.files.histories) for user in self.users.values())
        counted = self._cluster.client.stats().files
        if counted != files:
            self.account.error("stats", "files", f"{counted}, where there are {files}")

    def delete_all(self) -> tuple[dict[str, tuple[int, int]], int]:
        """Delete all files and collect; the files and bytes still counted for users, and the versions left."""
        for user in self.users.values():
            user.delete_all()
        for _ in range(2):
            self.upkeep.collect()
        return self.upkeep.usage(), self._cluster.client.stats().versions

    def close(self) -> None:
        """End all connections."""
        for user in self.users.values():
            user.client.close()
        self.upkeep.close()


def combinations(run: Run) -> None:
    """Take N rounds of random steps, with a look at everything after each."""
    verdicts = run.verdicts
    os.environ["XDG_CONFIG_HOME"] = str(run.directory / "config")
    os.environ["XDG_STATE_HOME"] = str(run.directory / "state")
    plain, collects = run.rng.random() < 0.5, run.rng.random() < 0.5
    options = (
        "--k",
        "2",
        "--n",
        "3",
        "--no-encryption" if plain else "--encryption",
        "--collect-every",
        "20" if collects else "0",
    )
    verdicts.note(f"the pool {'begins without encryption' if plain else 'encrypts'}: {' '.join(options)}")
    with Cluster(run.directory, workers=WORKERS, grace_s=20.0, options=options) as cluster:
        scene = _Scene(run, cluster)
        account = scene.account
        try:
            for number in range(1, run.rounds + 1):
                for _ in range(_STEPS):
                    scene.step()
                scene.verify()
                verdicts.progress(f"round {number}: {account.calls.total():,} calls, {len(account.errors)} errors")
            usage, versions = scene.delete_all()
        finally:
            scene.close()
    verdicts.note(f"{run.rounds} rounds of {_STEPS} steps; {account}")
    verdicts.note(f"refused, as the pool or workers were away: {dict(sorted(account.refused.items()))}")
    verdicts.errors(
        "answers, files, versions, shards or usage other than the model has, errors that nothing explains",
        account.errors,
    )
    longest_s, kind = account.longest
    verdicts.note(
        f"{account.bytes_verified / 1e9:.2f} GB read back and compared; longest call {longest_s:.1f} s ({kind})"
    )
    verdicts.check(
        "files, bytes and versions counted after all files were deleted",
        f"{usage}, {versions} versions",
        holds=not versions and all(counted == (0, 0) for counted in usage.values()),
    )
    tracebacks = [path.name for path in sorted(run.directory.glob("*.log")) if "Traceback" in path.read_text("utf-8")]
    verdicts.errors("tracebacks in the logs of the pool and its workers", tracebacks)
