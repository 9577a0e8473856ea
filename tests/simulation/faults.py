"""Faults, never more than the erasure code of each stripe tolerates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from storage.errors import InvalidArgument, UsedAfterFork
from storage.keys import ShardKey
from storage.system.forks import forks
from taskworker.pool.membership import Standing
from tests.simulation.invariants import (
    bearable,
    can_do_without,
    check_durable,
    check_spread_over,
    may_lie,
    require,
    shard_keys,
)
from tests.simulation.meanwhile import Meanwhile
from tests.simulation.model import Model, NothingToDo
from tests.simulation.operations import Users
from tests.simulation.pool import CROWD, GRACE_S, LEASE_S, Cluster
from tests.simulation.workers import Worker

T = TypeVar("T")

_WORKERS_MAX = 9
_CALLS_AHEAD = 40
_CENTURY_H = 100 * 365 * 24
_CLOCK_JUMPS_H = (0, 25, -25, _CENTURY_H, -_CENTURY_H)
_STRIPES_TRIED = 8
_ROUNDS = 3
_MOMENTS = ("catalog: before a commit", "catalog: after a commit")


@dataclass(slots=True)
class Faults:
    """Makes one fault at a time, now or during a later operation.

    ``injected`` counts the faults that have happened, by kind: one for each partition, restart, message and so on. Not
    counted are consequences of faults (failed calls, expired leases), their ends (machines that are started, networks
    that work again), and turns of other threads or of time.
    """

    cluster: Cluster
    model: Model
    rng: Random
    workers_min: int
    users: Users
    meanwhile: Meanwhile

    @property
    def injected(self) -> Counter[str]:
        """Faults so far, by kind."""
        return self.cluster.network.injected

    # -- workers come and go ---------------------------------------------------------------------

    def cut_off(self) -> str:
        worker = self._one_of([worker for worker in self.cluster.workers if worker.reachable])

        def fire() -> None:
            self.injected["partition"] += not worker.cut_off
            self._set_cut(worker, True)

        return self._soon(worker, fire)

    def reconnect(self) -> str:
        worker = self._one_of([worker for worker in self.cluster.workers if worker.cut_off])
        self._set_cut(worker, False)
        return worker.name

    def _set_cut(self, worker: Worker, cut_off: bool) -> None:
        worker.cut_off = cut_off
        worker.listen()

    def kill(self) -> str:
        """Kill a worker's process and start it again at once. The machine keeps what the process wrote."""
        worker = self._one_of([worker for worker in self.cluster.workers if worker.up])

        def fire() -> None:
            if worker.up:
                self.injected["worker restarted"] += 1
                worker.start()

        return self._soon(worker, fire)

    def power_off(self) -> str:
        """Cut a machine's power, so that it may lose what was not synced."""
        worker = self._one_of([worker for worker in self.cluster.workers if worker.up])
        return self._soon(worker, lambda: self._power_off(worker))

    def reboot(self) -> str:
        """Cut a machine's power and start it again before anyone notices."""
        worker = self._one_of([worker for worker in self.cluster.workers if worker.up])

        def fire() -> None:
            if worker.up:
                self._power_off(worker)
                worker.start()

        return self._soon(worker, fire)

    def _power_off(self, worker: Worker) -> None:
        self.injected["power lost"] += 1
        worker.stop()
        worker.volume.lose_power(self.rng)
        check_durable(self.cluster, self.users.stripes())

    def start(self) -> str:
        worker = self._one_of([worker for worker in self.cluster.workers if not worker.up])
        worker.start()
        return worker.name

    def lose_disk(self) -> str:
        """Replace a machine's disk by an empty one."""
        worker = self._one_of([worker for worker in self.cluster.honest() if self._can_do_without(worker)])
        self._power_off(worker)
        self.injected["disk lost"] += 1
        worker.volume.wounded()
        worker.volume = self.cluster.new_volume()
        return worker.name

    def _can_do_without(self, worker: Worker) -> bool:
        return can_do_without(self.cluster, [worker], self.users.stripes())

    def add_worker(self) -> str:
        if len(self.cluster.workers) >= _WORKERS_MAX:
            raise NothingToDo
        self.injected["membership changed"] += 1
        return self.cluster.add_worker().name

    def leave(self) -> str:
        """Stop a worker in good order."""
        worker = self._one_of([worker for worker in self.cluster.workers if worker.reachable])
        worker.leave(self.cluster.pool)
        self.injected["worker stopped"] += 1
        return worker.name

    def remove_worker(self) -> str:
        """Remove a machine for good."""
        if len(self.cluster.workers) <= self.workers_min:
            raise NothingToDo
        worker = self._one_of([worker for worker in self.cluster.honest() if self._can_do_without(worker)])
        worker.leave(self.cluster.pool)
        worker.volume.wounded()
        self.cluster.workers.remove(worker)
        self.injected["membership changed"] += 1
        return worker.name

    def drain(self) -> str:
        worker = self._one_of(self.cluster.workers)
        standing = {record.worker: record.standing for record in self.cluster.pool.membership.records}
        cancel = standing.get(worker.name) in (Standing.DRAINING, Standing.DRAINED)
        try:
            moved = self.cluster.pool.drain(worker.name, cancel=cancel)
        except InvalidArgument as error:
            return str(error)
        self.injected["membership changed"] += 1
        return f"{worker.name}, moves {moved:.2f}"

    # -- other threads of the pool ---------------------------------------------------------------

    def time_meanwhile(self) -> str:
        """Let time pass during an operation: leases expire, workers join, layouts change."""
        seconds, calls = self.rng.choice((1.0, LEASE_S + 1, GRACE_S + 5)), self.rng.randint(1, _CALLS_AHEAD)
        self.meanwhile.after_calls(calls, "membership", lambda: self.cluster.pass_time(seconds))
        return f"{seconds} s in {calls} calls"

    def mend_meanwhile(self) -> str:
        calls = self.rng.randint(1, _CALLS_AHEAD)
        self.meanwhile.after_calls(calls, "repair_scheduler", self.users.mend)
        return f"in {calls} calls"

    def heal_meanwhile(self) -> str:
        calls = self.rng.randint(1, _CALLS_AHEAD)
        self.meanwhile.after_calls(calls, "healer", self.users.heal)
        return f"in {calls} calls"

    def collect_meanwhile(self) -> str:
        calls = self.rng.randint(1, _CALLS_AHEAD)
        self.meanwhile.after_calls(calls, "collector", self.users.collect)
        return f"in {calls} calls"

    # -- calls -----------------------------------------------------------------------------------

    def lose_reply(self) -> str:
        """Let the next call take effect, but fail by a timeout."""
        worker = self._one_of([worker for worker in self.cluster.workers if worker.reachable])
        return self._soon(worker, lambda: self.cluster.network.lost_replies.__setitem__(worker.address, 1))

    def lose_request(self) -> str:
        """Let the next call fail without effect."""
        worker = self._one_of([worker for worker in self.cluster.workers if worker.reachable])
        return self._soon(worker, lambda: self.cluster.network.lost_requests.__setitem__(worker.address, 1))

    def lose_heartbeat(self) -> str:
        """Lose the next heartbeats of a worker."""
        worker = self._one_of([worker for worker in self.cluster.workers if worker.reachable])
        count = self.rng.choice((1, 1, 2, 4))
        worker.lost_beats += count
        return f"{count} of {worker.name}"

    def repeat_message(self) -> str:
        """Deliver a worker's last message a second time."""
        worker = self._one_of([worker for worker in self.cluster.workers if worker.reachable])
        what = self.rng.choice((worker.join_again, worker.beat_again))
        what(self.cluster.pool)
        self.injected["message repeated"] += 1
        return f"{worker.name}: {what.__name__}"

    def late_message(self) -> str:
        """Deliver a delayed message of a former process of a worker."""
        worker = self._one_of([worker for worker in self.cluster.workers if worker.former])
        former = self.rng.choice(worker.former)
        what = self.rng.choice((worker.say_late_heartbeat, worker.say_late_leave, worker.say_late_join))
        what(self.cluster.pool, former)
        self.injected["message late"] += 1
        return f"{worker.name}: {what.__name__}"

    # -- disks -----------------------------------------------------------------------------------

    def rot(self) -> str:
        worker, key = self._some_shard()
        worker.volume.rot(key, self.rng)
        self.injected["rot"] += 1
        return f"{key.hex()[:12]} slot {key[-1]} on {worker.name}"

    def lie(self) -> str:
        worker, key = self._some_shard()
        volume = worker.volume
        other = None
        if self.rng.random() < 0.5:
            other = volume.records_by_key[self.rng.choice(sorted(volume.records_by_key))].shard
            if other.key[32:] != key[32:]:  # other kind or size, which would be easy to notice
                other = None
        volume.lie(key, self.rng, None if other is None or other.key == key else other)
        self.injected["lie"] += 1
        return f"{key.hex()[:12]} slot {key[-1]} on {worker.name}"

    def _some_shard(self) -> tuple[Worker, ShardKey]:
        """Choose a good shard whose stripe can lose it."""
        stripes = list(self.users.stripes())
        liars = [worker for worker in self.cluster.workers if worker.liar]
        for stripe in self.rng.sample(stripes, min(_STRIPES_TRIED, len(stripes))):
            if bearable(self.cluster, stripe, liars) > 0:
                keys = shard_keys(stripe)
                return self._one_of(
                    [(worker, key) for worker in self.cluster.honest() for key in keys if worker.volume.is_durable(key)]
                )
        raise NothingToDo

    # -- workers that lie ------------------------------------------------------------------------

    def begin_lying(self) -> str:
        """Let a worker lie from now on. Everything it holds counts as lost."""
        if len(self.cluster.honest()) < len(self.cluster.workers):
            raise NothingToDo
        worker = self._one_of([worker for worker in self.cluster.workers if self._may_lie([worker])])
        worker.liar = True
        worker.listen()
        self.injected["liar"] += 1
        return worker.name

    def _may_lie(self, liars: list[Worker]) -> bool:
        return may_lie(self.cluster, liars, self.users.stripes())

    def conspire(self) -> str:
        """Let n - k workers, or all workers of one owner, lie at the same time, while some others are away."""
        group = self._conspirators()
        self.cluster.calm()
        for _ in range(_ROUNDS):
            self.cluster.pass_time(2.0)
            self.users.heal()
            self.users.mend()
        self._check_counted_on(group)
        if group[0].owner == CROWD and self.cluster.pool.fleet.is_mended():
            check_spread_over(self.cluster, self.users.stripes(), group)
        if not self._may_lie(group):
            raise NothingToDo
        for worker in group:
            worker.liar = True
            worker.listen()
        self.injected["liar"] += len(group)
        away = self._cut_off_beside(group)
        users = self.users
        for _ in range(self.rng.randint(4, 10)):
            with suppress(NothingToDo):
                self.rng.choice((users.push_small, users.push_large, users.revise, users.get, users.get_part,
                                 users.mend, users.repair, users.scrub, users.heal, users.collect))()  # fmt: skip
            self.cluster.pass_time(self.rng.choice((0.3, 1.0)))
        for worker in group:
            self.set_up_anew(worker)
            worker.start()
        for worker in away:
            self._set_cut(worker, False)
        return ", ".join(worker.name for worker in group) + "".join(f", without {worker.name}" for worker in away)

    def _cut_off_beside(self, liars: list[Worker]) -> list[Worker]:
        """Cut off honest workers, but so few that liars do not stand in for more than n - k shards of a stripe."""
        k, n = self.model.profile.k, self.model.profile.n
        honest = [worker for worker in self.cluster.workers if worker not in liars]
        # If one owner's workers lie, each other worker may hold n - k shards of a stripe; otherwise only one.
        one_owner = all(liar.owner == CROWD for liar in liars)
        needed = max(2, -(-k // (n - k))) if one_owner else n - len(liars)
        away = self.rng.sample(honest, self.rng.randint(0, max(0, len(honest) - needed)))
        while away and not one_owner and not self._hold_one_each({*self.cluster.workers} - {*away}):
            away.pop()
        for worker in away:
            self._set_cut(worker, True)
        self.injected["partition"] += len(away)
        return away

    def _hold_one_each(self, workers: Collection[Worker]) -> bool:
        """Whether these workers can hold one shard of a stripe each, with at most n - k of them in a zone."""
        k, n = self.model.profile.k, self.model.profile.n
        by_zone = Counter(worker.zone for worker in workers)
        if len({worker.zone for worker in self.cluster.workers}) == 1:
            return len(workers) >= n
        return sum(min(count, n - k) for count in by_zone.values()) >= n

    def _conspirators(self) -> list[Worker]:
        """Choose the workers that will lie. The others must be able to hold k shards of each stripe, one each."""
        workers, profile = self.cluster.workers, self.model.profile
        group = [worker for worker in workers if worker.owner == CROWD]
        if not group or self.rng.random() < 0.3:
            group = self.rng.sample(workers, min(profile.n - profile.k, len(workers)))
        crowded = sum(worker.owner == CROWD for worker in workers) > 1 and group[0].owner != CROWD
        if len(self.cluster.honest()) < len(workers) or len(workers) < profile.n or crowded:
            raise NothingToDo
        if len(workers) - len(group) < profile.k:
            raise NothingToDo
        return group

    def _check_counted_on(self, group: list[Worker]) -> None:
        """Require that the pool relies on all other workers.

        None of them may be drained, on trial, distrusted or stood in for. No removed worker may still be in the layout,
        as others would stand in for it.
        """
        pool = self.cluster.pool
        names = {worker.name for worker in self.cluster.workers}
        if any(member.worker not in names for member in pool.fleet.placement.members):
            raise NothingToDo
        stood_in_for = pool.fleet.full() | pool.fleet.slow()
        records = {record.worker: record for record in pool.membership.records}
        for worker in self.cluster.workers:
            record = records.get(worker.name)
            counted = record is not None and record.standing is Standing.IN and not record.allowed
            if worker not in group and not (
                record and counted and pool.fleet.trusts(record.slot) and record.slot not in stood_in_for
            ):
                raise NothingToDo

    def expose(self) -> str:
        """Let an operator detect a liar and set up its machine again."""
        worker = self._one_of([worker for worker in self.cluster.workers if worker.liar])
        self.set_up_anew(worker)
        return worker.name

    def set_up_anew(self, worker: Worker) -> None:
        """End a worker's lies, and replace its disk by an empty one."""
        self._write_off(worker)
        worker.volume = self.cluster.new_volume()
        worker.liar = False

    def _write_off(self, liar: Worker) -> None:
        """Count everything that a liar claimed to hold as lost."""
        liar.stop()
        honest = [other.volume.durable for other in self.cluster.honest()]
        keys = {key for stripe in self.users.stripes() for key in shard_keys(stripe)}
        self.cluster.wounds.update(keys.difference(*honest))
        liar.volume.wounded()

    # -- forks -----------------------------------------------------------------------------------

    def fork(self) -> str:
        """Let a forked child try to use and close the pool's store; this must not harm the parent."""
        store = self.cluster.pool.store
        uses = (lambda: store.find("a", user_id="ada"), store.stats, store.collect, store.repair)
        forks.count += 1  # as in the child
        try:
            for use in uses:
                try:
                    use()
                except UsedAfterFork:
                    continue
                require(False, "a forked child may use the store")
            store.close()
        finally:
            forks.count -= 1
        self.injected["forked"] += 1
        return "used in a child"

    # -- the clock -------------------------------------------------------------------------------

    def jump_clock(self) -> str:
        """Set the wall clock of the pool's machine to a wrong time."""
        hours = self.rng.choice(_CLOCK_JUMPS_H)
        self.cluster.clock.wrong_ns = hours * 3600 * 1_000_000_000
        self.injected["clock jumped"] += 1
        return f"{hours} h from the true time"

    # -- full disks ------------------------------------------------------------------------------

    def fill(self) -> str:
        worker = self._one_of(self.cluster.workers)

        def fire() -> None:
            self.injected["disk full"] += not worker.volume.full
            worker.volume.full = True

        return self._soon(worker, fire)

    def make_room(self) -> str:
        worker = self._one_of([worker for worker in self.cluster.workers if worker.volume.full])
        worker.volume.full = False
        return worker.name

    # -- the pool --------------------------------------------------------------------------------

    def crash_pool(self) -> str:
        """Let the pool's process crash at a later call or commit."""
        process = self.cluster.process
        if self.rng.random() < 0.5:
            process.dies_at = self.rng.choice(_MOMENTS)
            return process.dies_at
        calls = self.rng.randint(1, _CALLS_AHEAD)
        self.cluster.network.after_calls(calls, self.cluster.crash_pool)
        return f"in {calls} calls"

    def _soon(self, worker: Worker, fire: Callable[[], None]) -> str:
        if self.rng.random() < 0.5:
            fire()
            return f"{worker.name} now"
        calls = self.rng.randint(1, _CALLS_AHEAD)
        self.cluster.network.after_calls(calls, fire)
        return f"{worker.name} in {calls} calls"

    def _one_of(self, choices: list[T]) -> T:
        if not choices:
            raise NothingToDo
        return self.rng.choice(choices)
