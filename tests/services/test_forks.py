"""Forks of programs that have a client, a server, a pool or a worker: the child is told, the parent goes on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.storage.helpers import python_environment

# A server's threads are inside gRPC at any fork. gRPC then starts threads of its own in the child on connections of the
# parent, and at times one of them ends the child (SIGABRT). The docstring of UsedAfterFork names this switch.
NO_THREADS_OF_GRPC = {"GRPC_ENABLE_FORK_SUPPORT": "0"}

CLIENT_AND_SERVER = """
import os, sys, gc
from storage import FileStorage, UsedAfterFork
from taskworker import Client
from taskworker.services.file_server import FileServer

def refused(use):
    try:
        use()
    except UsedAfterFork as error:
        return "open it after the fork" in str(error)
    return False

store = FileStorage.open(sys.argv[1], chunk_size=65536)
server = FileServer(store)
address = f"127.0.0.1:{server.start('127.0.0.1:0')}"
client = Client(address)
data = os.urandom(20_000_000)
version = client.push(data, filename="a", user_id="u")
reader = client.open(version.file_id, user_id="u")
begun = reader.read(100_000)
files = client.iter_files(user_id="u")
children = []
for ends in ("at once", "closing", "dropping"):
    child = os.fork()
    if child:
        children.append(child)
        continue
    assert refused(lambda: client.push(b"x", filename="b", user_id="u"))
    assert refused(lambda: client.get(version.file_id, user_id="u"))
    assert refused(lambda: client.stats())
    assert refused(lambda: reader.read(5_000_000))
    assert refused(lambda: next(files))
    assert refused(lambda: server.start("127.0.0.1:0"))
    if ends == "closing":
        reader.close(), client.close(), server.stop(0.0), store.close()
    if ends == "dropping":
        del reader, client, server, store, files
        gc.collect()
    sys.exit(0)
for child in children:
    assert os.waitpid(child, 0)[1] == 0
assert begun + reader.read() == data, "what was under way was cut off"
assert client.get(version.file_id, user_id="u") == data
client.push(b"y", filename="c", user_id="u")
with Client(address) as another:
    assert another.stats().files == 2
reader.close()
client.close()
server.stop(0.0)
store.close()
print("whole")
"""


def test_a_client_and_a_server(tmp_path: Path) -> None:
    assert _run(CLIENT_AND_SERVER, tmp_path / "store") == "whole\n"


LOCKS_HELD = """
import gc, os, sys, threading
from storage import FileStorage, UsedAfterFork
from taskworker import Client
from taskworker.services.file_server import FileServer

store = FileStorage.open(sys.argv[1], chunk_size=65536)
server = FileServer(store)
client = Client(f"127.0.0.1:{server.start('127.0.0.1:0')}")
version = client.push(os.urandom(20_000_000), filename="a", user_id="u")
reader = client.open(version.file_id, user_id="u")
reader.read(100_000)
held, over = threading.Event(), threading.Event()

def hold():
    # What gRPC's own threads hold for moments, and a loaded machine for long: the locks of its calls.
    calls = [each._state.condition for each in gc.get_objects() if type(each).__name__ == "_MultiThreadedRendezvous"]
    assert calls
    for call in calls:
        call.acquire()
    held.set()
    over.wait()
    for call in calls:
        call.release()

holder = threading.Thread(target=hold)
holder.start()
held.wait()
children = []
for ends in ("at once", "closing", "dropping"):
    child = os.fork()
    if child:
        children.append(child)
        continue
    try:
        client.stats()
    except UsedAfterFork:
        pass
    else:
        os._exit(1)
    if ends == "closing":
        reader.close(), client.close(), server.stop(0.0), store.close()
    if ends == "dropping":
        del reader, client, server, store
        gc.collect()
    sys.exit(0)
for child in children:
    assert os.waitpid(child, 0)[1] == 0
over.set()
holder.join()
assert len(reader.read()) == 19_900_000
reader.close()
client.close()
server.stop(0.0)
store.close()
print("whole")
"""


def test_children_end_though_grpc_held_locks_at_the_fork(tmp_path: Path) -> None:
    assert _run(LOCKS_HELD, tmp_path / "store") == "whole\n"


POOL_AND_WORKERS = """
import os, sys, time
from storage import ErasureProfile, UsedAfterFork
from taskworker import Client
from taskworker.client.pool import PoolClient
from taskworker.apps.pool_server import PoolServer
from taskworker.worker.volume import VolumeWorker

def refused(use):
    try:
        use()
    except UsedAfterFork:
        return True
    return False

root = sys.argv[1]
pool = PoolServer(root + "/pool", profile=ErasureProfile(1, 2))
address = f"127.0.0.1:{pool.start('127.0.0.1:0')}"
workers = [VolumeWorker(f"w{number}", address, f"{root}/w{number}") for number in range(3)]
for worker in workers:
    worker.start("127.0.0.1:0")
operator, client = PoolClient(address), Client(address)
while operator.status().workers_survivable < 1 or len(operator.status().workers) < 3:
    time.sleep(0.01)
version = client.push(b"x" * 300_000, filename="a", user_id="u")
child = os.fork()
if not child:
    assert refused(lambda: pool.pool.store.push(b"x", filename="b", user_id="u"))
    assert refused(lambda: operator.status())
    assert refused(lambda: workers[0].start("127.0.0.1:0"))
    for worker in workers:
        worker.stop(0.0)
    operator.close(), client.close(), pool.stop(0.0)
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
assert client.get(version.file_id, user_id="u") == b"x" * 300_000
client.push(b"y" * 300_000, filename="c", user_id="u")
assert all(worker.state == "alive" for worker in operator.status().workers)
operator.close()
client.close()
for worker in workers:
    worker.stop(0.0)
pool.stop(0.0)
print("whole")
"""


def test_a_pool_and_its_workers(tmp_path: Path) -> None:
    assert _run(POOL_AND_WORKERS, tmp_path) == "whole\n"


def _run(program: str, root: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, str(root)],
        env=python_environment() | NO_THREADS_OF_GRPC, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
