"""The process that is killed: it works on a store from several threads, and says what it was told.

Run as ``python -m tests.crash.victim STORE``. Each line on its input (a number) makes it fork a child that opens
the store and works on it until it is killed; the child is seeded by the number. On its output are JSON lines:

    {"pid": …}                              a child is there
    {"open": true}                          it has opened the store
    {"begin": op, "thread": …, "name": …, "digest": …}   it is about to push or revise; ``digest`` is of the content
    {"begin": op, "thread": …, "file_id": …}             it is about to delete
    {"done": op, "file_id": …, "version_id": …, "parent_id": …}   that has returned
    {"failed": …}                           an error: the end of the test
    {"ended": …}                            the child is gone
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from collections.abc import Callable
from hashlib import blake2b
from random import Random

from storage import ErasureProfile, FileStorage
from storage.fleet.volumes import VolumeOptions

USER = "ann"
THREADS = 4
CHUNK_BYTES = 65536
PROFILE = ErasureProfile(4, 6)
_NAMES_PER_THREAD = 3
_SIZES = (0, 1, 100, 4096, 4096, 50_000, CHUNK_BYTES + 1, 4 * CHUNK_BYTES)
_OPTIONS = VolumeOptions(segment_bytes_max=512 * 1024)


def open_store(path: str | os.PathLike[str]) -> FileStorage:
    """The store that child and parent work on in turns."""
    return FileStorage.open(path, profile=PROFILE, chunk_size=CHUNK_BYTES, volume_options=_OPTIONS)


def digest_of(content: bytes | bytearray) -> str:
    """What stands for a content in lines."""
    return blake2b(content, digest_size=16).hexdigest()


def say(**what: object) -> None:
    """One line, whole or not at all: shorter than PIPE_BUF, written at once."""
    os.write(sys.stdout.fileno(), json.dumps(what).encode() + b"\n")


class Worker:
    """One thread's work on names of its own, so that its operations on a file come one after another."""

    def __init__(self, store: FileStorage, thread: int, rng: Random, round_number: int) -> None:
        self._store = store
        self._thread = thread
        self._rng = rng
        self._prefix = f"{round_number}.{thread}"
        self._count = 0

    def run(self) -> None:
        """Until killed."""
        actions: tuple[Callable[[str], None], ...] = (self._push, self._revise, self._delete)
        while True:
            name = f"file-{self._thread}-{self._rng.randrange(_NAMES_PER_THREAD)}"
            self._rng.choices(actions, (6, 3, 2))[0](name)
            if self._thread == 0 and self._rng.random() < 0.05:
                self._store.collect(grace_s=0)

    def _next(self) -> str:
        self._count += 1
        return f"{self._prefix}.{self._count}"

    def _push(self, name: str) -> None:
        op, content = self._next(), self._rng.randbytes(self._rng.choice(_SIZES))
        say(begin=op, thread=self._thread, name=name, digest=digest_of(content))
        version = self._store.push(content, filename=name, user_id=USER, note=op)
        say(done=op, file_id=version.file_id, version_id=version.version_id, parent_id=version.parent_id)

    def _revise(self, name: str) -> None:
        head = self._store.find(name, user_id=USER)
        if head is None:
            return
        content = bytearray(self._store.get(head.file_id, user_id=USER))
        content[:3] = self._rng.randbytes(3)
        op = self._next()
        diff = self._store.diff(head.file_id, content, user_id=USER)
        say(begin=op, thread=self._thread, name=name, digest=digest_of(content))
        version = self._store.revise(head.file_id, diff, user_id=USER, note=op)
        say(done=op, file_id=version.file_id, version_id=version.version_id, parent_id=version.parent_id)

    def _delete(self, name: str) -> None:
        head = self._store.find(name, user_id=USER)
        if head is None:
            return
        op = self._next()
        say(begin=op, thread=self._thread, file_id=head.file_id)
        self._store.delete(head.file_id, user_id=USER)
        say(done=op, file_id=head.file_id)


def work(path: str, round_number: int) -> None:
    """What a child does."""

    def run(worker: Worker) -> None:
        try:
            worker.run()
        except BaseException:
            say(failed=traceback.format_exc()[-3000:])
            raise

    say(pid=os.getpid())
    try:
        store = open_store(path)
    except BaseException:
        say(failed=traceback.format_exc()[-3000:])
        raise
    say(open=True)
    rng = Random(round_number)
    workers = [Worker(store, thread, Random(rng.random()), round_number) for thread in range(THREADS)]
    threads = [threading.Thread(target=run, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> None:
    """Fork a child for each line of the input; forking spares it the start of Python."""
    path = sys.argv[1]
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                work(path, int(line))
            finally:
                os._exit(1)
        os.waitpid(child, 0)
        say(ended=child)


if __name__ == "__main__":
    main()
