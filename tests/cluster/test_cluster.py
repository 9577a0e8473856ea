"""A pool and its workers as real processes: killed, stopped, hung, added, drained, restarted."""

from __future__ import annotations

import random
import resource
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from storage.errors import FileNotFound, FormatError, InsufficientWorkers, StorageError
from taskworker.client.pool import PoolStatus, WorkStatus
from tests.cluster.processes import Cluster, Process

USER = "ann"
MIB = 1 << 20


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of tests that leave its workers as they found them."""
    with Cluster(tmp_path_factory.mktemp("standing")) as cluster:
        yield cluster


def content(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.fixture
def impatient(tmp_path: Path) -> Iterator[Cluster]:
    """Makes again what workers hold that have been away for two seconds."""
    with Cluster(tmp_path, grace_s=2.0) as cluster:
        yield cluster


def test_any_two_of_six_workers_may_die(impatient: Cluster) -> None:
    cluster, rng = impatient, random.Random(3)
    files = {f"datei-{number}-文件": content(rng.choice((0, 1, 4096, 70_000, 3 * MIB)), number) for number in range(12)}
    ids = {name: cluster.client.push(data, filename=name, user_id=USER).file_id for name, data in files.items()}
    cluster.kill("w1", "w4")
    for name, data in files.items():
        assert cluster.client.get(ids[name], user_id=USER) == data
    later = {name: data + b"later" for name, data in files.items()}
    for name, data in later.items():
        cluster.client.push(data, filename=name, user_id=USER)
        assert cluster.client.get(ids[name], user_id=USER) == data
    # The others take over their part: without a command, the loss of any one more can be borne.
    cluster.await_survivable(1)
    cluster.kill("w0")
    for name, data in later.items():
        assert cluster.client.get(ids[name], user_id=USER) == data


def test_workers_that_come_back_are_only_given_what_they_missed(cluster: Cluster) -> None:
    data = content(16 * MIB)
    file_id = cluster.client.push(data, filename="a", user_id=USER).file_id
    cluster.await_survivable(2)
    before = {worker.worker_id: worker.shards for worker in cluster.await_status(_counted(19)).workers}
    cluster.kill("w2", "w5")
    cluster.client.push(content(20_000, 1), filename="b", user_id=USER)  # too large to be kept as copies
    for name in ("w2", "w5"):
        cluster.start_worker(name)
    cluster.await_status(lambda status: all(worker.state == "alive" for worker in status.workers))
    status = cluster.await_survivable(2)
    after = {worker.worker_id: worker.shards for worker in cluster.await_status(_counted(21)).workers}
    # One shard of the file that they missed and one copy of its version each; nothing else was made for them.
    assert {name: after[name] - before[name] for name in ("w2", "w5")} == {"w2": 2, "w5": 2}
    assert status.workers_survivable == 2
    cluster.kill("w0", "w1")
    assert cluster.client.get(file_id, user_id=USER) == data


def _counted(shards: int) -> Callable[[PoolStatus], bool]:
    """Whether every worker has told that it has this many shards, with its mark and the users' keys."""
    return lambda status: all(worker.shards == shards for worker in status.workers)


def test_lost_workers_are_done_without(tmp_path: Path) -> None:
    with Cluster(tmp_path, grace_s=2.0) as cluster:
        data = content(8 * MIB)
        file_id = cluster.client.push(data, filename="a", user_id=USER).file_id
        version = cluster.status().layout_version
        cluster.kill("w3")
        cluster.await_status(lambda status: status.layout_version == version + 1)
        assert [worker.worker_id for worker in cluster.status().workers if worker.state == "lost"] == ["w3"]
        cluster.await_survivable(1)
        cluster.kill("w0")
        assert cluster.client.get(file_id, user_id=USER) == data
        for name in ("w0", "w3"):
            cluster.start_worker(name)
        cluster.await_survivable(2)
        assert cluster.client.get(file_id, user_id=USER) == data


def test_kills_under_load_cost_no_call_and_no_byte(cluster: Cluster) -> None:
    stop = threading.Event()
    errors: list[BaseException] = []
    acknowledged: dict[str, bytes] = {}

    def load(number: int) -> None:
        rng = random.Random(number)
        try:
            while not stop.wait(0.05):
                name = f"{number}-{rng.randrange(4)}"
                data = rng.randbytes(rng.choice((100, 5000, 300_000, 2 * MIB)))
                version = cluster.client.push(data, filename=name, user_id=USER)
                acknowledged[name] = data
                if cluster.client.get(version.file_id, user_id=USER) != data:
                    raise AssertionError(f"{name} reads back wrong")
                patched = bytes([data[0] ^ 1]) + data[1:]
                cluster.client.revise(version.file_id, patched, user_id=USER)
                acknowledged[name] = patched
        except BaseException as error:  # told by the test
            errors.append(error)

    threads = [threading.Thread(target=load, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    rng = random.Random(7)
    for _ in range(2):
        names = rng.sample(sorted(cluster.workers), 2)
        stop.wait(rng.uniform(0.2, 0.8))
        cluster.kill(*names)
        stop.wait(rng.uniform(0.5, 1.0))
        for name in names:
            cluster.start_worker(name)
        cluster.await_survivable(2)
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors, errors
    for name, data in acknowledged.items():
        found = cluster.client.find(name, user_id=USER)
        assert found is not None
        assert cluster.client.get(found.file_id, user_id=USER) == data
    cluster.await_survivable(2)


def test_the_pool_may_be_killed(cluster: Cluster) -> None:
    data = content(5 * MIB)
    file_id = cluster.client.push(data, filename="a", user_id=USER).file_id
    interrupted = threading.Event()
    outcome: list[object] = []

    def push() -> None:
        def pieces() -> Iterator[bytes]:
            for number in range(400):
                if number == 20:
                    interrupted.set()
                yield content(MIB // 4, number)

        try:
            outcome.append(cluster.client.push(pieces(), filename="b", user_id=USER))
        except StorageError as error:
            outcome.append(error)

    thread = threading.Thread(target=push)
    thread.start()
    interrupted.wait()
    cluster.pool_process.kill()
    thread.join()
    cluster.restart_pool()
    cluster.await_status(lambda status: all(worker.state == "alive" for worker in status.workers))
    assert cluster.client.get(file_id, user_id=USER) == data
    found = cluster.client.find("b", user_id=USER)
    assert isinstance(outcome[0], StorageError)
    assert found is None
    cluster.await_survivable(2)


def test_a_pool_that_is_back_awaits_its_workers_but_not_dead_ones_for_ever(cluster: Cluster) -> None:
    data = content(3 * MIB)
    file_id = cluster.client.push(data, filename="a", user_id=USER).file_id
    cluster.pool_process.kill()
    cluster.restart_pool()
    # No worker has noticed yet: nothing is lost, and nobody is told so.
    assert cluster.client.get(file_id, user_id=USER) == data
    cluster.kill("w0", "w1")
    cluster.pool_process.kill()
    cluster.restart_pool()
    assert cluster.client.get(file_id, user_id=USER) == data
    cluster.pool_process.kill()
    cluster.restart_pool()
    assert cluster.client.push(b"new", filename="a", user_id=USER).file_id == file_id


def test_too_few_workers_take_nothing(cluster: Cluster) -> None:
    data = content(MIB)
    file_id = cluster.client.push(data, filename="a", user_id=USER).file_id
    cluster.kill("w0", "w1", "w2", "w3")
    with pytest.raises(InsufficientWorkers, match="would not survive"):
        cluster.client.push(b"new", filename="a", user_id=USER)
    with pytest.raises(
        InsufficientWorkers, match=r"2 of 4 shards needed are within reach.* does not answer.*bring back what is away"
    ):
        cluster.client.get(file_id, user_id=USER)  # not lost: they may come back
    for name in ("w0", "w1", "w2", "w3"):
        cluster.start_worker(name)
    cluster.await_survivable(2)
    assert cluster.client.get(file_id, user_id=USER) == data
    assert len(cluster.client.history(file_id, user_id=USER)) == 1


def test_a_seventh_worker_takes_its_share_and_a_drained_one_gives_it_up(cluster: Cluster) -> None:
    data = content(40 * MIB)
    file_id = cluster.client.push(data, filename="a", user_id=USER).file_id
    version = cluster.status().layout_version
    cluster.start_worker("w6")
    cluster.await_moved(version + 2)  # first a part on trial, then all of it
    cluster.await_survivable(2)
    # 41 stripes of 6 shards: by far not enough to see the share exactly, which tests of the layout do.
    status = cluster.await_status(lambda status: _shards(status, "w6") > 0)
    assert 0 < _shards(status, "w6") <= 41
    cluster.drain("w2")
    cluster.await_status(lambda status: status.layout_version == version + 3)
    cluster.await_survivable(2)
    cluster.await_status(lambda status: _shards(status, "w2") == 2)  # its own mark, and the users' keys
    cluster.kill("w2")
    cluster.kill("w0", "w6")
    assert cluster.client.get(file_id, user_id=USER) == data


def _shards(status: PoolStatus, name: str) -> int:
    return next(worker.shards for worker in status.workers if worker.worker_id == name)


def test_background_work_is_seen_and_outlasts_the_pool(tmp_path: Path) -> None:
    with Cluster(tmp_path, options=("--collect-every", "1")) as cluster:
        cluster.client.push(content(MIB), filename="a", user_id=USER)
        status = cluster.await_status(
            lambda status: all(_work(status, name).ended_ms > 0 for name in ("collect", "repair"))
        )
        assert [work.name for work in status.work] == ["repair", "rebalance", "heal", "scrub", "collect", "audit"]
        assert not any(work.errors for work in status.work)
        cluster.await_survivable(2)
        before = cluster.status()
        cluster.pool_process.kill()
        cluster.options = ()  # daily from now on
        cluster.restart_pool()
        after = cluster.await_status(lambda status: True)
        for name in ("repair", "collect"):
            assert _work(after, name).ended_ms >= _work(before, name).ended_ms > 0
        assert _work(after, "collect").next_ms > 0
        # A collect may have been due before the workers were back, and says so until it is tried again.
        cluster.await_status(lambda status: "removed" in _work(status, "collect").note)


def _work(status: PoolStatus, name: str) -> WorkStatus:
    return next(work for work in status.work if work.name == name)


def test_a_pool_whose_directory_is_lost_is_rebuilt_from_its_workers(cluster: Cluster) -> None:
    files = {f"file {number}": content(size, number) for number, size in enumerate((0, 1, 5000, 70_000, 3 * MIB))}
    versions = {}
    for name, data in files.items():
        first = cluster.client.push(b"before", filename=name, user_id=USER)
        versions[name] = [cluster.client.push(data, filename=name, user_id=USER).version_id, first.version_id]
    other = cluster.client.push(b"hers", filename="file 1", user_id="eve")
    gone = cluster.client.push(b"deleted", filename="gone", user_id=USER)
    cluster.client.delete(gone.file_id, user_id=USER)
    former = cluster.status().pool_id
    cluster.pool_process.kill()
    key = shutil.move(cluster.directory / "pool" / "master.key", cluster.directory / "kept.key")
    shutil.rmtree(cluster.directory / "pool")

    cluster.options = ("--rebuild", former, "--master-key", str(key))
    cluster.restart_pool()
    cluster.await_status(lambda status: sum(worker.share > 0 for worker in status.workers) == 6)
    assert cluster.status().pool_id == former
    assert cluster.status().health.startswith("the catalog is lost; 6 workers have joined: run `taskworker rebuild`")
    with pytest.raises(FormatError, match="run rebuild"):
        cluster.client.push(b"too early", filename="new", user_id=USER)
    report = cluster.client.rebuild()
    assert (report.files, report.versions, report.skipped) == (6, 11, [])
    for name, data in files.items():
        found = cluster.client.find(name, user_id=USER)
        assert found is not None
        assert cluster.client.get(found.file_id, user_id=USER) == data
        history = cluster.client.history(found.file_id, user_id=USER)
        assert [version.version_id for version in history] == versions[name]
    assert cluster.client.get(other.file_id, user_id="eve") == b"hers"
    with pytest.raises(FileNotFound):
        cluster.client.get(other.file_id, user_id=USER)
    assert cluster.client.find("gone", user_id=USER) is None

    cluster.await_survivable(2)
    cluster.pool_process.kill()
    cluster.restart_pool()  # with the same option: it is itself by now
    cluster.await_survivable(2)
    cluster.client.push(b"new", filename="new", user_id=USER)
    cluster.kill("w1", "w4")
    for name, data in files.items():
        found = cluster.client.find(name, user_id=USER)
        assert found is not None
        assert cluster.client.get(found.file_id, user_id=USER) == data


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--rebuild", "0" * 32), r"holds the catalog of pool .* already; to take the place of pool 0000"),
        (("--rebuild", "nonsense"), "'nonsense' is no pool's id"),
    ],
)
def test_what_cannot_be_rebuilt(tmp_path: Path, options: tuple[str, ...], text: str) -> None:
    with Cluster(tmp_path, workers=0) as cluster:
        cluster.pool_process.kill()
        if "nonsense" in options:
            shutil.rmtree(cluster.directory / "pool")
        cluster.options = options
        with pytest.raises(AssertionError, match=text):
            cluster.restart_pool()


def test_a_rebuilt_pool_must_be_as_the_former_one(tmp_path: Path) -> None:
    with Cluster(tmp_path, workers=1, options=("--k", "2", "--n", "3")) as cluster:
        former = cluster.status().pool_id
        cluster.pool_process.kill()
        cluster.workers["w0"].kill()
        shutil.rmtree(cluster.directory / "pool")
        cluster.options = ("--rebuild", former)
        cluster.restart_pool()
        with pytest.raises(AssertionError, match=r"is of a 2-of-3 pool; .* start it with --k 2 --n 3"):
            cluster.start_worker("w0")


def test_a_hanging_worker_holds_nothing_up(standing: Cluster) -> None:
    data = content(6 * MIB)
    file_id = standing.client.push(data, filename="a", user_id=USER).file_id
    standing.workers["w1"].signal(signal.SIGSTOP)
    assert standing.client.get(file_id, user_id=USER) == data
    newer = content(3 * MIB, 2)
    assert standing.client.push(newer, filename="a", user_id=USER).file_id == file_id
    assert standing.client.get(file_id, user_id=USER) == newer
    standing.workers["w1"].signal(signal.SIGCONT)
    standing.await_survivable(2)


def test_a_worker_that_had_no_descriptors_for_a_while_comes_back(standing: Cluster) -> None:
    worker = standing.workers["w3"]
    file_id = standing.client.push(content(2 * MIB), filename="a", user_id=USER).file_id
    worker.signal(signal.SIGSTOP)
    standing.await_status(lambda status: _state(status, "w3") == "suspect")
    limits = resource.prlimit(worker.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (5, limits[1]))
    try:
        worker.signal(signal.SIGCONT)
        time.sleep(3)  # several heartbeats
        assert _state(standing.status(), "w3") == "suspect"
        assert standing.client.get(file_id, user_id=USER) == content(2 * MIB)
    finally:
        resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, limits)
    standing.await_status(lambda status: _state(status, "w3") == "alive")
    standing.await_survivable(2)


def test_a_living_id_is_not_given_twice(standing: Cluster, tmp_path: Path) -> None:
    arguments = ["worker", "--id", "w1", "--dir", str(tmp_path / "other"), "--listen", "127.0.0.1:0"]
    with pytest.raises(AssertionError, match="a living worker has the id w1"):
        Process([*arguments, "--pool", standing.address], tmp_path / "other.log")


def test_the_port_of_a_volume_can_be_chosen(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["worker", "--id", "w9", "--dir", str(tmp_path / "w9"), "--listen", "127.0.0.1:0", "--no-functions"]
    (tmp_path / "pool").mkdir()
    with Cluster(tmp_path / "pool", workers=1) as cluster:
        worker = Process([*arguments, "--shard-port", str(port), "--pool", cluster.address], tmp_path / "w9.log")
        assert worker.shard_address == f"127.0.0.1:{port}"
        worker.stop()


def test_a_volume_of_another_pool_is_refused(standing: Cluster, tmp_path: Path) -> None:
    other_home = tmp_path / "elsewhere"
    other_home.mkdir()
    with Cluster(other_home, workers=1) as other:
        other.workers["w0"].stop()
        arguments = ["worker", "--id", "w9", "--dir", str(other_home / "w0"), "--listen", "127.0.0.1:0"]
        with pytest.raises(AssertionError, match="holds shards of pool"):
            Process([*arguments, "--pool", standing.address], tmp_path / "w9.log")


def test_rot_on_a_worker_is_found_and_healed(cluster: Cluster) -> None:
    data = content(6 * MIB)
    file_id = cluster.client.push(data, filename="a", user_id=USER).file_id
    cluster.client.push(content(6 * MIB, 2), filename="never read", user_id=USER)
    for segment in (cluster.directory / "w3" / "volume").glob("*.seg"):
        raw = bytearray(segment.read_bytes())
        for at in range(9000, 3_000_000, 100_000):
            raw[at] ^= 0xFF
        segment.write_bytes(raw)
    assert cluster.client.get(file_id, user_id=USER) == data
    report = cluster.client.scrub()
    assert report.rotten + report.missing > 0
    assert {damage.volume for damage in report.damaged} == {_slot(cluster.status(), "w3")}
    cluster.client.repair()
    assert cluster.client.scrub().clean
    assert next(worker.lies for worker in cluster.status().workers if worker.worker_id == "w3") > 0


def _state(status: PoolStatus, name: str) -> str:
    return next(worker.state for worker in status.workers if worker.worker_id == name)


def _slot(status: PoolStatus, name: str) -> int:
    return next(worker.slot for worker in status.workers if worker.worker_id == name)


def test_space_of_deleted_files_comes_back_on_the_workers(cluster: Cluster) -> None:
    kept = content(2 * MIB)
    kept_id = cluster.client.push(kept, filename="kept", user_id=USER).file_id
    file_id = cluster.client.push(content(20 * MIB, 2), filename="dropped", user_id=USER).file_id
    cluster.client.delete(file_id, user_id=USER)
    report = cluster.client.collect(grace_s=0)
    assert report.shards_removed >= 20 * 6
    assert cluster.client.get(kept_id, user_id=USER) == kept
    cluster.await_status(lambda status: all(worker.bytes_live < 2 * MIB for worker in status.workers))
