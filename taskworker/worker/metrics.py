"""The figures of a worker for Prometheus."""

from __future__ import annotations

from taskworker.metrics.certificates import certificates
from taskworker.metrics.families import Families, Parts, at, counter, gauge
from taskworker.worker.functions import HostedFunctions
from taskworker.worker.member import WorkerMember
from taskworker.worker.volume import VolumeWorker


def worker_unready(worker: VolumeWorker | None, functions: HostedFunctions | None) -> str:
    """Why the pool cannot use a worker now; empty if it can.

    Args:
        worker: the worker; None: it has no volume.
        functions: the functions that it runs; None: it runs none.
    """
    if worker is None:
        return "" if functions is None or functions.is_taken else "it waits for the pool"
    if not worker.shard_address:
        return f"it waits for the pool at {worker.pool_address}"
    if worker.volume_trouble:
        return worker.volume_trouble
    return "" if worker.joined else f"the pool at {worker.pool_address} does not answer, or has not taken it yet"


def worker_parts(worker: VolumeWorker | None, functions: HostedFunctions | None, member: WorkerMember | None) -> Parts:
    """What to read of a worker, by name.

    Args:
        worker: the worker; None: it has no volume.
        functions: the functions that it runs; None: it runs none.
        member: its certificate; None: the pool's workers have none.
    """
    parts: Parts = {}
    if worker is not None:
        parts["volume"] = lambda: _volume(worker)
    if functions is not None:
        parts["functions"] = lambda: _functions(functions)
    if member is not None:
        parts["certificates"] = lambda: certificates({"member": member.credentials.lifetime})
    return parts


def _volume(worker: VolumeWorker) -> Families:
    yield gauge("taskworker_worker_joined", "Whether this worker is joined to its pool.", worker.joined)
    scrub = worker.scrub
    yield counter("taskworker_volume_rotten_shards", "Rotten shards that were found on the volume.", scrub.found)
    yield gauge(
        "taskworker_volume_scrub_end_timestamp_seconds",
        "When a scrub of the volume last ended; 0: never.",
        at(scrub.ended_ms),
    )
    yield gauge("taskworker_volume_scrub_errors", "How many scrubs failed in a row.", scrub.errors)
    usage = worker.volume_usage()
    if usage is not None:
        yield gauge("taskworker_volume_used_bytes", "Bytes that the volume takes.", usage.bytes_used)
        yield gauge("taskworker_volume_live_bytes", "Bytes of these that files need.", usage.bytes_live)
        yield gauge("taskworker_volume_free_bytes", "Bytes that are free on the volume's disk.", usage.bytes_free)
        yield gauge("taskworker_volume_shards", "Shards that the volume holds.", usage.shards)


def _functions(functions: HostedFunctions) -> Families:
    views = functions.host.views()
    yield gauge("taskworker_sandboxes", "Functions that have processes here.", len(views))
    yield gauge("taskworker_sandbox_processes", "Processes of functions.", sum(one.processes for one in views))
    yield gauge(
        "taskworker_sandbox_memory_bytes",
        "Memory of these processes, with a share of what they have in common.",
        sum(one.memory_bytes for one in views),
    )
    yield gauge(
        "taskworker_sandboxes_usable",
        "Whether this machine can isolate functions, as far as it was tried.",
        functions.unavailable is None,
    )
