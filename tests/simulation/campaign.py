"""One simulation: a long random sequence of operations and faults from one seed, after which all must be well."""

from __future__ import annotations

import gc
import os
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from random import Random

from storage import ErasureProfile
from storage.fleet.layout import Layout
from taskworker.pool.membership import Standing
from tests.simulation.copies import Copies
from tests.simulation.embedded import EmbeddedSimulation
from tests.simulation.faults import Faults
from tests.simulation.invariants import check_durable, require
from tests.simulation.meanwhile import Meanwhile
from tests.simulation.model import Model, NothingToDo
from tests.simulation.network import PoolCrashed
from tests.simulation.operations import Users
from tests.simulation.pool import GRACE_S, Cluster, simulated_hot_bytes, simulated_keys
from tests.simulation.surroundings import simulated_surroundings

STEPS = 215
FAULTS_MIN = 200  # in every seed
_PROFILES = ((4, 6), (2, 3), (2, 4), (3, 5))
_SMALL_COPIES = (0, 100, 4096, 65536)  # bytes
_ROUNDS_MAX = 12
_DISTURBED = (0, 1, 1, 2)  # how many disturbances follow a step, by chance

_THREADS = {
    "mend": {"repair_scheduler"},
    "heal": {"healer"},
    "collect": {"collector"},
    "collect_if_due": {"collector"},
    "pass_some_time": {"membership"},
    "pass_much_time": {"membership"},
    "upload_beside_collects": {"collector"},
    "restore_catalog": {"repair_scheduler", "healer", "collector", "membership"},
    "lose_catalog": {"repair_scheduler", "healer", "collector", "membership"},
    "restart_pool": {"repair_scheduler", "healer", "collector", "membership"},  # they end before the pool closes
}

Action = Callable[[], str]
Choices = tuple[list[Action], list[float]]
"""Actions, and for each the sum of its relative frequency and those of all before it."""


class Simulation:
    """A simulation of a pool.

    Args:
        seed: determines everything.
        steps: number of operations and faults.
    """

    def __init__(self, seed: int, steps: int = STEPS) -> None:
        self.seed = seed
        self.steps = steps
        self.trace: list[str] = []
        self.rng = Random(seed)
        profile = ErasureProfile(*self.rng.choice(_PROFILES))
        count = max(profile.k + 1, profile.n + self.rng.choice((-1, 0, 0, 1, 2)))
        crowd = self.rng.choice((0, 0, 0, 2, 3))
        zones, small_copies = self.rng.choice((1, 2, 3, 9)), self.rng.choice(_SMALL_COPIES)
        keys, hot_bytes = simulated_keys(seed), simulated_hot_bytes(seed)
        self.cluster = Cluster(self.rng, profile, count, zones, crowd, small_copies, keys, hot_bytes)
        self.cluster.network.punctual = False
        self.model = Model(profile, self.cluster.key_of)
        self.users = Users(self.cluster, self.model, self.rng)
        self.copies = Copies(self.cluster, self.model, self.rng, self.users)
        self.meanwhile = Meanwhile(self.cluster)
        self.faults = Faults(self.cluster, self.model, self.rng, profile.k + 1, self.users, self.meanwhile)
        self._actions, self._disturbances = self._weighted()
        self._note("begin", f"{profile} over {count} workers")

    def run(self) -> None:
        """Run all steps, and check the end state."""
        self.users.push_large()
        done = 0
        while done < self.steps or (self.faults.injected.total() < FAULTS_MIN and self.steps >= STEPS):
            done += self._step(self._choose(self._actions))
            for _ in range(self.rng.choice(_DISTURBED)):
                self._step(self._choose(self._disturbances))
        self._end()

    def _note(self, what: str, outcome: str) -> None:
        self.trace.append(f"{len(self.trace):4} {self.cluster.clock.monotonic_s():8.2f} s  {what}: {outcome}")

    # -- steps -----------------------------------------------------------------------------------

    def _weighted(self) -> tuple[Choices, Choices]:
        """Return the steps and the disturbances between them, each with its relative frequency."""
        users, faults, copies = self.users, self.faults, self.copies
        steps: dict[Action, float] = {
            users.push_small: 10, users.push_large: 5, users.push_again: 2, users.revise: 5, users.delete: 2,
            users.begin_upload: 3, users.go_on_uploading: 9, users.abort_upload: 0.5,
            users.get: 12, users.get_part: 5,
            users.scrub: 1, users.mend: 7, users.repair: 1, users.heal: 5, users.collect: 1.5,
            self.pass_some_time: 12, self.pass_much_time: 1, self.restart_pool: 0.5,
            faults.cut_off: 4, faults.reconnect: 8, faults.kill: 2, faults.power_off: 2.5, faults.reboot: 2,
            faults.start: 8, faults.lose_disk: 1, faults.rot: 4, faults.lie: 3, faults.lose_reply: 3,
            faults.lose_request: 2, faults.lose_heartbeat: 3, faults.repeat_message: 2, faults.late_message: 2,
            faults.fill: 0.7, faults.make_room: 4, faults.crash_pool: 1.5,
            faults.time_meanwhile: 3, faults.mend_meanwhile: 4, faults.heal_meanwhile: 2, faults.collect_meanwhile: 1.5,
            faults.begin_lying: 0.8, faults.expose: 1, faults.fork: 0.5, faults.jump_clock: 1, self.collect_if_due: 0.5,
            faults.conspire: 0.4, users.upload_beside_collects: 0.3,
            copies.copy_catalog: 2, copies.restore_catalog: 1.2, copies.lose_catalog: 0.3, copies.age_volume: 1.2,
            faults.add_worker: 0.5, faults.leave: 1, faults.remove_worker: 0.4, faults.drain: 0.6,
        }  # fmt: skip
        disturbances: dict[Action, float] = {
            faults.lose_heartbeat: 5, faults.repeat_message: 6, faults.late_message: 6, faults.lose_reply: 5,
            faults.lose_request: 5, faults.kill: 4, faults.reboot: 3, faults.rot: 2, faults.lie: 2, faults.cut_off: 1,
            faults.reconnect: 4, faults.start: 4, self.pass_some_time: 12,
        }  # fmt: skip
        return _choices(steps), _choices(disturbances)

    def _choose(self, choices: Choices) -> Action:
        actions, weights = choices
        return self.rng.choices(actions, cum_weights=weights)[0]

    def _step(self, action: Action) -> bool:
        """Do an action; return False if it was impossible."""
        what = action.__name__
        self.meanwhile.running.update(_THREADS.get(what, ()))
        try:
            outcome = action()
        except NothingToDo:
            return False
        except PoolCrashed:
            self.faults.injected["pool crashed"] += 1
            self._note(what, "the pool crashed")
            self._start_pool_again()
            return True
        except BaseException:
            self._note(what, "!")
            raise
        finally:
            self.meanwhile.running.clear()
        self._note(what, outcome)
        return True

    def pass_some_time(self) -> str:
        seconds = self.rng.choice((0.3, 1.0, 4.0))
        self.cluster.pass_time(seconds)
        return f"{seconds} s"

    def pass_much_time(self) -> str:
        self.cluster.pass_time(GRACE_S + 5)
        return f"{GRACE_S + 5} s"

    def collect_if_due(self) -> str:
        """Do what the collector's thread does periodically."""
        collected = self.cluster.pool.collector.collect_if_due()
        self.users.check_kept()  # check before a later push needs dropped chunks again
        return str(collected)

    def restart_pool(self) -> str:
        """Stop the pool in good order and start it again."""
        for uploading in self.users.uploads:
            uploading.upload.abort()
        self.cluster.pool.close()
        self.faults.injected["pool restarted"] += 1
        self._start_pool_again()
        return f"stopped and started, with copies of up to {self.cluster.small_copies_bytes} bytes"

    def _start_pool_again(self) -> None:
        self.cluster.small_copies_bytes = self.rng.choice(_SMALL_COPIES)
        before, starts = self.cluster.pool.layouts, 0
        while True:
            self.cluster.crash_pool()
            starts += 1
            try:
                self.cluster.start_pool()
                _check_layouts(before, self.cluster.pool.layouts, starts)
                self.cluster.pass_time(self.rng.choice((0.3, 2.0)))
                self._note("start_pool", self.users.find_out())
                return
            except PoolCrashed:
                self._note("start_pool", "the pool crashed again")

    # -- the end ---------------------------------------------------------------------------------

    def _end(self) -> None:
        """End all faults, and check that everything comes to its place."""
        self._stop_faults()
        for _ in range(_ROUNDS_MAX):
            self.cluster.pass_time(1.0)
            self.users.heal()
            self._note("mend", self.users.mend())
        self._note("scrub", self.users.scrub())
        self._note("repair", self.users.repair())
        for _ in range(2):
            self.cluster.pass_time(1.0)
            self._note("mend", self.users.mend())
        require(len(self.cluster.pool.layouts) == 1, "former layouts are not retired")
        check_durable(self.cluster, self.model.stripes())
        self.users.check_everything()
        require("Error" not in self.users.push_large(), "nothing can be pushed")
        self.users.check_everything()

    def _stop_faults(self) -> None:
        cluster = self.cluster
        cluster.clock.wrong_ns = 0
        cluster.network.punctual = True
        for worker in cluster.workers:
            if worker.liar:
                self.faults.set_up_anew(worker)
            worker.volume.confess()
        cluster.calm()
        present = {worker.name for worker in cluster.workers}
        for record in cluster.pool.membership.records:
            if record.standing in (Standing.DRAINING, Standing.DRAINED) and record.worker in present:
                cluster.pool.drain(record.worker, cancel=True)
        cluster.pass_time(GRACE_S + 10.0)


def _choices(frequencies: dict[Action, float]) -> Choices:
    return list(frequencies), list(accumulate(frequencies.values()))


def _check_layouts(before: list[Layout], after: list[Layout], starts: int) -> None:
    """Check that a restarted pool has its former layouts, and at most one more of each process that crashed.

    A process may store one just before it crashes, also soon after its start.
    """
    tables = {layout.version: (layout.rows, layout.members) for layout in before}
    newest = max(tables, default=0)
    for layout in after:
        known = tables.get(layout.version)
        require(newest < layout.version <= newest + starts if known is None else known == (layout.rows, layout.members),
                f"layout {layout.version} has changed after a restart")  # fmt: skip
    require(bool(after) or not before, "the layouts are gone after a restart")


@dataclass(frozen=True, slots=True)
class Failure:
    """A failure of a seed, in one line, and the trace that led to it."""

    text: str
    trace: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a seed. ``faults`` are counted by kind."""

    seed: int
    faults: Counter[str]
    failure: Failure | None


def run_seed(seed: int, steps: int = STEPS) -> Outcome:
    """Run one seed."""
    failure: Failure | None = None
    with simulated_surroundings():
        simulation = Simulation(seed, steps)
        try:
            simulation.run()
        except (Exception, PoolCrashed) as error:
            told = [*simulation.trace, "", *traceback.format_exception(error)]
            failure = Failure(f"{type(error).__name__}: {error}", "\n".join(told))
    return Outcome(seed, simulation.faults.injected, failure)


def run_embedded_seed(seed: int) -> Outcome:
    """Run one seed of an embedded store."""
    failure: Failure | None = None
    simulation = EmbeddedSimulation(seed, FAULTS_MIN)
    with simulated_surroundings():
        try:
            simulation.run()
        except Exception as error:
            told = [*simulation.trace, "", *map(simulation.without_place, traceback.format_exception(error))]
            failure = Failure(simulation.without_place(f"{type(error).__name__}: {error}"), "\n".join(told))
    return Outcome(seed, simulation.injected, failure)


def run_seeds(seeds: Iterable[int], steps: int = STEPS, processes: int | None = None) -> Iterator[Outcome]:
    """Run seeds in several processes (default: one for each processor); yield their outcomes in order."""
    yield from _run_all(partial(run_seed, steps=steps), seeds, processes, chunk=4)


def run_embedded_seeds(seeds: Iterable[int], processes: int | None = None) -> Iterator[Outcome]:
    """Like `run_seeds`, with embedded stores."""
    yield from _run_all(run_embedded_seed, seeds, processes, chunk=1)


def _collect_rarely() -> None:
    """Look for cycles among objects rarely, which saves a tenth of the time."""
    gc.freeze()
    gc.set_threshold(20_000)


def _run_all(
    run: Callable[[int], Outcome], seeds: Iterable[int], processes: int | None, chunk: int
) -> Iterator[Outcome]:
    with ProcessPoolExecutor(processes or os.cpu_count() or 1, initializer=_collect_rarely) as pool:
        try:
            yield from pool.map(run, seeds, chunksize=chunk)
        finally:
            pool.shutdown(cancel_futures=True)
