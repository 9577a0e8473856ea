"""The figures of a pool for Prometheus, from what ``taskworker status`` shows."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from storage.errors import StorageError
from taskworker.apps.pool_server import PoolServer
from taskworker.auth.certificates import Lifetime
from taskworker.metrics.certificates import certificates
from taskworker.metrics.families import Families, Parts, at, counter, counters, gauge, gauges
from taskworker.pool.membership import WorkerState, WorkerView
from taskworker.pool.node_pool import NodePool
from taskworker.pool.status import PoolView
from taskworker.reports import WorkStatus

FUNCTIONS_MAX = 256
"""How many functions have series of their own: those that were called last."""

_WORK_STATES = ("idle", "waiting", "running", "failed")


def pool_unready(pool: NodePool) -> str:
    """Why a pool takes no files now; empty if it does."""
    store = pool.store
    if store.needs_rebuild:
        return "the catalog is lost, and must be rebuilt (`taskworker rebuild`)"
    trouble = store.trouble() or store.unfinished
    if trouble:
        return trouble
    if store.behind:
        return "the catalog is older than what the workers hold; run `taskworker rebuild` once all workers are back"
    try:
        pool.fleet.require_writable(pool.profile)
    except StorageError as error:
        return str(error)
    return ""


def pool_parts(server: PoolServer) -> Parts:
    """What to read of a pool, by name."""
    return {
        "pool": lambda: _pool(server.pool.view(), server.pool),
        "certificates": lambda: certificates(_shown(server)),
        "functions": lambda: _functions(server),
        "caches": lambda: _caches(server),
    }


def _shown(server: PoolServer) -> dict[str, Lifetime]:
    credentials, tls = server.pool.credentials, server.tls
    return ({} if credentials is None else {"member": credentials.lifetime}) | (
        {} if tls is None else {"users": tls.lifetime}
    )


def _pool(view: PoolView, pool: NodePool) -> Families:
    yield gauge("taskworker_files", "Files, without deleted ones.", view.files)
    yield gauge("taskworker_versions", "Versions of files.", view.versions)
    yield gauge("taskworker_logical_bytes", "Bytes of the newest versions of all files.", view.logical_bytes)
    yield gauges(
        "taskworker_losses_survivable",
        "How many further workers, zones or owners, whichever, may be lost now; negative: some files cannot be read.",
        ("domain",),
        [
            (["worker"], view.workers_survivable),
            (["zone"], view.zones_survivable),
            (["owner"], view.owners_survivable),
        ],
    )
    yield gauge(
        "taskworker_losses_promised",
        "How many losses of workers all files survive once everything is mended.",
        view.workers_promised,
    )
    yield from _workers(view, pool)
    yield from _work(view.work)


def _workers(view: PoolView, pool: NodePool) -> Families:
    workers = view.workers
    counts = dict.fromkeys(WorkerState, 0)
    for worker in workers:
        counts[worker.state] += 1
    yield gauges(
        "taskworker_pool_workers",
        "Workers of the pool, by state.",
        ("state",),
        [([state.value], count) for state, count in counts.items()],
    )
    for name, help_text, figure in _OF_WORKERS:
        rows = [([worker.record.worker], figure(worker)) for worker in workers]
        yield gauges(f"taskworker_pool_worker_{name}", help_text, ("worker",), rows)
    yield counters(
        "taskworker_pool_worker_rotten_shards",
        "Rotten shards that a worker found on its disk since it started.",
        ("worker",),
        [([worker.record.worker], worker.load.rotten) for worker in workers],
    )
    yield counters(
        "taskworker_pool_worker_wrong_shards",
        "Wrong shards that a worker sent as good ones.",
        ("worker",),
        [([worker.record.worker], view.lies.get(worker.record.slot, 0)) for worker in workers],
    )
    yield gauges(
        "taskworker_pool_worker_complete",
        "Whether a worker has all shards that it should have, as far as is known.",
        ("worker",),
        [([worker.record.worker], worker.record.slot in view.complete) for worker in workers],
    )
    yield from _certificates_of(workers, pool)


def _scrubbed(worker: WorkerView) -> float:
    return at(worker.load.scrub_ended_ms)


_OF_WORKERS: tuple[tuple[str, str, Callable[[WorkerView], float]], ...] = (
    ("up", "Whether a worker is there, as far as the pool knows.", lambda one: not one.state.is_away),
    ("capacity_bytes", "The weight of a worker in the layout.", lambda one: one.record.capacity),
    ("used_bytes", "Bytes that a worker's volume takes.", lambda one: one.load.bytes_used),
    ("live_bytes", "Bytes of these that files need.", lambda one: one.load.bytes_live),
    ("free_bytes", "Bytes that are free on a worker's disk.", lambda one: one.load.bytes_free),
    ("shards", "Shards that a worker holds.", lambda one: one.load.shards),
    (
        "cpu_ratio",
        "Share of one processor that a worker's process used since its last heartbeat.",
        lambda o: o.load.cpu,
    ),
    ("heartbeat_timestamp_seconds", "When a worker was last heard of.", lambda one: at(one.seen_ms)),
    ("scrub_end_timestamp_seconds", "When a worker last ended a scrub of its volume; 0: never.", _scrubbed),
    ("scrub_errors", "How many scrubs of a worker failed in a row.", lambda one: one.load.scrub_errors),
)


def _is_gone(worker: WorkerView) -> bool:
    return worker.state.is_away or worker.state is WorkerState.DRAINED


def _certificates_of(workers: Iterable[WorkerView], pool: NodePool) -> Families:
    """When the certificates of present workers expire: one that is away renews its own once it is back."""
    enrollment = pool.enrollment
    if enrollment is None:
        return
    found = {
        worker.record.worker: lifetime
        for worker in workers
        if not _is_gone(worker) and (lifetime := enrollment.lifetime(worker.record.worker)) is not None
    }
    yield gauges(
        "taskworker_pool_worker_certificate_issued_timestamp_seconds",
        "When the pool issued the latest certificate of a worker.",
        ("worker",),
        [([worker], one.begin_s) for worker, one in found.items()],
    )
    yield gauges(
        "taskworker_pool_worker_certificate_expiry_timestamp_seconds",
        "Until when the latest certificate of a worker is valid.",
        ("worker",),
        [([worker], one.end_s) for worker, one in found.items()],
    )


def _work(work: list[WorkStatus]) -> Families:
    yield gauges(
        "taskworker_work_state",
        "1 for the state that a kind of background work is in, and 0 for the others.",
        ("work", "state"),
        [([one.name, state], one.state == state) for one in work for state in _WORK_STATES],
    )
    for name, help_text, figure in _OF_WORK:
        yield gauges(f"taskworker_work_{name}", help_text, ("work",), [([one.name], figure(one)) for one in work])


_OF_WORK: tuple[tuple[str, str, Callable[[WorkStatus], float]], ...] = (
    ("queue_objects", "Objects that were found and wait for background work.", lambda one: one.queue),
    ("consecutive_errors", "How many attempts failed in a row, up to now.", lambda one: one.errors),
    ("end_timestamp_seconds", "When background work last finished; 0: never.", lambda one: at(one.ended_ms)),
    ("done_ratio", "Share of the present run that is done; 0 between runs.", lambda one: _share(one.done, one.total)),
)


def _share(done: int, total: int) -> float:
    return done / total if total else 0.0


def _functions(server: PoolServer) -> Families:
    counted = server.functions.statistics.latest(FUNCTIONS_MAX)
    for name, help_text, field in (
        ("calls", "Calls of a function that ended, also those answered from the cache.", "calls"),
        ("errors", "Calls of a function that failed.", "errors"),
        ("cached", "Calls of a function that were answered from the cache.", "cached"),
        ("moved", "Calls of a function that moved to another worker, as theirs was lost.", "moved"),
        ("run_seconds", "Seconds that calls of a function ran.", "seconds"),
    ):
        rows = [([function], getattr(counts, field)) for function, counts in counted.items()]
        yield counters(f"taskworker_function_{name}", help_text, ("function",), rows)
    running = server.functions.router.outstanding()
    yield gauges(
        "taskworker_pool_worker_calls",
        "Calls of functions that run on a worker.",
        ("worker",),
        [([host.worker], running.get(host.worker, 0)) for host in server.functions.hosting.hosts()],
    )


def _caches(server: PoolServer) -> Families:
    hot = server.pool.store.hot_objects()
    yield counter("taskworker_hot_object_hits", "Small objects that were read from memory.", hot.hits)
    yield counter("taskworker_hot_object_misses", "Objects that were not in memory, and read from workers.", hot.misses)
    yield gauge("taskworker_hot_objects_bytes", "Memory of small objects that were read lately.", hot.bytes_used)
    names = server.capabilities.names.use
    yield counter(
        "taskworker_dns_answered_at_once", "Questions for names answered without name servers.", names.at_hand
    )
    yield counter("taskworker_dns_forwarded", "Questions for names that were forwarded to name servers.", names.asked)
    yield counter("taskworker_dns_failed", "Forwarded questions that no name server answered.", names.failed)
