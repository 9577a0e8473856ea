"""Peak memory of processes that store and read files much larger than their memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.measure import MIB, Figure, Limit, SuiteResult, Target
from benchmarks.processes import Outcome, PeakMemory, WatchedServer, run_task
from benchmarks.session import Session, human_size
from benchmarks.workload import USER, RandomContent
from taskworker import Client

TASK_MIB_MAX = 200
SERVER_MIB_MAX = 400
CHANGED_CHUNKS = 16
ENGINE_FLOOR = "a process that only imports the engine"
SERVER_FLOOR = "the same server before its first push"


def run(session: Session) -> SuiteResult:
    """Measure push, get, revise and scrub in fresh processes, then a server with many concurrent pushes."""
    figures: list[Figure] = []
    targets: list[Target] = []
    with session.scratch("memory") as root:
        for name, outcome, floor in _engine_tasks(session, root):
            _add(session, figures, targets, name, outcome.memory, floor, ENGINE_FLOOR, TASK_MIB_MAX)
    with session.scratch("memory-server") as root:
        busy, idle = _server_under_pushes(session, root)
        sizes = session.sizes
        name = f"server under {sizes.server_pushes} pushes of {human_size(sizes.server_push_bytes)} at once"
        _add(session, figures, targets, name, busy, idle, SERVER_FLOOR, SERVER_MIB_MAX)
    return SuiteResult("memory", tuple(figures), tuple(targets), ("Peaks are VmHWM, mapped files included.",))


def _engine_tasks(session: Session, root: Path) -> list[tuple[str, Outcome, PeakMemory]]:
    size = session.sizes.memory_file_bytes
    content = RandomContent("memory", size)
    session.progress.step(f"making a file of {human_size(size)}")
    source = content.write_to(root / "source")
    arguments = {"store": root / "store", "source": source, "filename": "file"}
    floor = run_task("nothing", {}).memory
    found = []
    for task in ("push", "get", "revise", "scrub"):
        if task == "revise":
            _change_some_chunks(source, size)
        session.progress.step(f"{task} of {human_size(size)} in a process of its own")
        found.append((f"{task} of {human_size(size)}", run_task(task, arguments), floor))
    return found


def _change_some_chunks(path: Path, size: int) -> None:
    """Change some chunks, spread evenly over the file."""
    with path.open("r+b") as file:
        for turn in range(CHANGED_CHUNKS):
            file.seek(size // CHANGED_CHUNKS * turn)
            file.write(b"changed")


def _server_under_pushes(session: Session, root: Path) -> tuple[PeakMemory, PeakMemory]:
    """Return the peak memory of a server after all pushes, and before the first one."""
    sizes = session.sizes
    session.progress.step(f"{sizes.server_pushes} pushes of {human_size(sizes.server_push_bytes)} at once")
    with WatchedServer("benchmarks.server", root / "store") as server:
        idle = server.memory

        def push(number: int) -> None:
            content = RandomContent(f"memory-{number}", sizes.server_push_bytes)
            with Client(server.address) as client:
                client.push(content.pieces(), filename=f"file-{number}", user_id=USER)

        with ThreadPoolExecutor(sizes.server_pushes) as pool:
            list(pool.map(push, range(sizes.server_pushes)))
        return server.memory, idle


def _add(
    session: Session,
    figures: list[Figure],
    targets: list[Target],
    name: str,
    peak: PeakMemory,
    floor: PeakMemory,
    floor_name: str,
    bound: int,
) -> None:
    resident = (peak.resident / MIB,)
    limit = Limit(floor_name, (floor.resident / MIB,))
    note = f"{peak.anonymous / MIB:.0f} MiB of it anonymous"
    figures.append(Figure(name, "MiB", resident, "lower", limit, note))
    targets.append(Target("d", f"peak memory: {name}", "at most", bound, "MiB", resident, name, session.sizes.reduced))
