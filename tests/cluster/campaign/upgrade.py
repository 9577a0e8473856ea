"""A pool of a former commit is upgraded in place, and its workers one after another, while users push and get."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from storage.errors import StorageError
from taskworker import Client
from taskworker.client.pool import PoolStatus
from tests.cluster.campaign.run import Run
from tests.cluster.campaign.users import Users
from tests.cluster.campaign.verdicts import spread
from tests.cluster.processes import WAIT_S, Cluster, Process

_ROOT = Path(__file__).parents[3]
_WORKERS = 6
_USERS = 2
_DEADLINE_S = 60.0  # of every call of the users
_SETTLED_S = 300.0
_TOO_FEW = ": InsufficientWorkers: "


@dataclass(frozen=True, slots=True)
class Former:
    """A commit to upgrade from.

    Attributes:
        commit: its hash.
        what: what it lacks.
        speaks: whether its workers can serve the new pool.
    """

    commit: str
    what: str
    speaks: bool = True


FORMER = (
    Former("26332ba", "without TLS for users, encryption, quotas"),
    Former("b96919b", "without users and tokens, with another shard transport", speaks=False),
)


def upgrade(run: Run) -> None:
    """Upgrade from each of the former commits, or from the one that was named."""
    known = {former.commit: former for former in FORMER}
    wanted = (known.get(run.former, Former(run.former, "as named")),) if run.former else FORMER
    for former in wanted:
        directory = run.directory / former.commit
        directory.mkdir()
        tree = directory / "tree"
        if why := _extract(former.commit, tree):
            run.verdicts.note(f"SKIPPED, nothing is shown: {why}")
            continue
        _upgrade(run, former, directory, tree)


def _extract(commit: str, tree: Path) -> str:
    """Write out the files of a commit; why not, if there is no such commit here."""
    tree.mkdir()
    archive = subprocess.run(["git", "-C", _ROOT, "archive", commit], check=False, capture_output=True)
    if archive.returncode:
        return f"no commit {commit} in this directory's history: {archive.stderr.decode().strip()}"
    subprocess.run(["tar", "-x", "-C", tree], input=archive.stdout, check=True)
    return ""


def _upgrade(run: Run, former: Former, directory: Path, tree: Path) -> None:
    # Both releases write to the contexts of their user, which are not to be those of whoever runs this.
    os.environ["XDG_CONFIG_HOME"] = str(directory / "config")
    name = f"from {former.commit}, {former.what}"
    with Cluster(directory, grace_s=300.0, tree=tree) as cluster:
        kept = {f"kept-{number}": run.rng.randbytes(size) for number, size in enumerate((0, 3_000, 70_000, 5_000_000))}
        for filename, content in kept.items():
            cluster.client.push(content, filename=filename, user_id="ann")
        with Users(cluster.address, _USERS, run.seed, directory, may_be_refused=True) as users:
            _work(users, run.rounds)
            before = len(users.account.errors), users.account.refused
            run.verdicts.check(f"{name}: before, failed and refused", f"{before}", holds=before == (0, 0))
            users.resume()
            cluster.tree = None
            if former.speaks:
                _in_step(run, name, cluster, users)
            else:
                _apart(run, name, cluster, users)
            users.verify()
            run.verdicts.note(f"{users.account}; {users.account.refused} refused")
            run.verdicts.errors(f"{name}: errors other than clear ones, or bytes lost", users.account.errors)
        with Client(cluster.address, timeout_s=WAIT_S) as client:
            lost = [file for file, content in kept.items() if _read(client, file) != content]
            run.verdicts.errors(f"{name}: files that were stored before and cannot be read", lost)
            scrubbed = client.scrub()
        bad = scrubbed.missing + scrubbed.rotten
        run.verdicts.check(f"{name}: shards missing or rotten", f"{bad} of {scrubbed.shards_checked:,}", holds=not bad)


def _in_step(run: Run, name: str, cluster: Cluster, users: Users) -> None:
    """The new pool uses the former workers until each of them is upgraded: only its own restart is noticed."""
    began_s = time.monotonic()
    _upgrade_pool(cluster)
    cluster.await_status(_all_alive)
    run.verdicts.note(f"{name}: the new pool has all former workers after {time.monotonic() - began_s:.1f} s")
    users.pause()
    refused = users.account.refused
    users.resume()
    _upgrade_workers(run, name, cluster)
    _work(users, run.rounds)
    later = users.account.refused - refused
    run.verdicts.check(f"{name}: refused after the pool was back", str(later), holds=not later)


def _apart(run: Run, name: str, cluster: Cluster, users: Users) -> None:
    """The new pool refuses the former workers: until enough of them are upgraded, files cannot be read."""
    _upgrade_pool(cluster)
    _upgrade_workers(run, name, cluster)
    users.pause()
    waiting = [text for text in users.account.errors if _TOO_FEW in text]
    users.account.errors = [text for text in users.account.errors if _TOO_FEW not in text]
    run.verdicts.note(f"{name}: at least {len(waiting)} calls were told that too few workers were back")
    told = _refused(cluster.directory)
    run.verdicts.check(f"{name}: what its workers are told", told, holds="install this server's" in told)
    _work(users, run.rounds)


def _work(users: Users, seconds: float) -> None:
    users.resume()
    time.sleep(seconds)
    users.pause()


def _upgrade_pool(cluster: Cluster) -> None:
    cluster.pool_process.stop()
    cluster.restart_pool()


def _upgrade_workers(run: Run, name: str, cluster: Cluster) -> None:
    taken_s = _one_after_another(cluster, run.rounds)
    run.verdicts.note(f"{name}: a worker is back {spread(taken_s, 's')} after it was stopped")
    cluster.await_survivable(2, _SETTLED_S)


def _one_after_another(cluster: Cluster, pause_s: float) -> list[float]:
    taken_s = []
    for number in range(_WORKERS):
        name = f"w{number}"
        began_s = time.monotonic()
        _end(cluster.workers.pop(name))
        cluster.start_worker(name)
        cluster.await_status(partial(_is_alive, name))
        taken_s.append(time.monotonic() - began_s)
        time.sleep(pause_s / _WORKERS)
    return taken_s


def _refused(directory: Path) -> str:
    """What the last worker was told by the new pool while it was of the former release."""
    lines = (directory / f"w{_WORKERS - 1}.log").read_text().splitlines()
    return next((line for line in lines if "does not take this worker" in line), "nothing")


def _end(process: Process) -> None:
    if process.alive:
        process.stop()
    else:
        process.kill()


def _is_alive(name: str, status: PoolStatus) -> bool:
    return any(worker.worker_id == name and worker.state == "alive" for worker in status.workers)


def _all_alive(status: PoolStatus) -> bool:
    return len(status.workers) == _WORKERS and all(worker.state == "alive" for worker in status.workers)


def _read(client: Client, filename: str) -> bytes | None:
    try:
        head = client.find(filename, user_id="ann")
        return None if head is None else client.get(head.file_id, user_id="ann")
    except StorageError:
        return None
