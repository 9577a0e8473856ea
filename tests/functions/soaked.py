"""The functions that the soak calls: well-behaved ones, and some for each way to misbehave."""

from __future__ import annotations

from collections.abc import Mapping

from taskworker.sandbox import Limits

MODULE = """
import asyncio
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from taskworker.inside import WorkerError, worker


def add(a: int, b: int = 1) -> int:
    return a + b


def echo(*args, **kwargs):
    return [args, kwargs]


async def later(value):
    await asyncio.sleep(0.002)
    return value


def raises(text: str):
    raise ValueError(text)


def greedy():
    return len(bytearray(1 << 30))


def forever():
    while True:
        time.sleep(1)


def spins():
    while True:
        pass


def huge():
    return "x" * (2 << 20)


def chatty():
    for number in range(2_000):
        print(number, "x" * 500)
    sys.stderr.write("no end of line")


def floods(how: str):
    if how == "line":
        sys.stdout.write("x" * (4 << 20))
    elif how == "lines":
        sys.stderr.write(chr(10) * (1 << 20))
    else:
        sys.stdout.buffer.write(bytes(range(256)) * (4 << 10))


def crowd():
    for _ in range(100):
        threading.Thread(target=time.sleep, args=(30,)).start()
    time.sleep(30)


def breeds() -> str:
    for _ in range(100):
        try:
            sys.modules["os"].fork()
        except OSError as error:
            return type(error).__name__


def fills() -> int:
    written = 0
    try:
        with open("filling", "wb", buffering=0) as file:
            while True:
                written += file.write(bytes(1 << 20))
    except OSError:
        return written


def hoards() -> int:
    files = []
    try:
        while True:
            files.append(open("hoarded", "wb"))
    except OSError:
        return len(files)


def crashes():
    sys.modules["os"]._exit(3)


def nameless():
    return object()


def twice(a: int) -> int:
    return worker.call("add", a, a)


def fails_within(name: str) -> str:
    try:
        return worker.call(name)
    except WorkerError as error:
        return error.kind


async def gives_up() -> str:
    try:
        await asyncio.wait_for(worker.acall("waits"), 0.05)
    except asyncio.TimeoutError:
        return "gave up"


def waits():
    time.sleep(20)


def keeps(name: str) -> int:
    worker.storage.push(b"kept", name)
    return len(worker.storage.get(name))


def fans(count: int) -> int:
    with ThreadPoolExecutor(count) as threads:
        return sum(threads.map(lambda number: worker.call("add", number, 1), range(count)))


async def gathers(count: int) -> int:
    return sum(await asyncio.gather(*(worker.acall("add", number, 1) for number in range(count))))


def counts(to: int, size: int = 0):
    for number in range(to):
        yield [number, "x" * size]


def trickles():
    yield "first"
    time.sleep(20)


def stumbles(after: int):
    yield from range(after)
    raise ValueError("no more")


def makes(name: str, size: int):
    with open("made", "wb") as file:
        file.write(bytes(range(256)) * (size // 256))
    return worker.result_file("made", name)


def writes(name: str, offset: int) -> int:
    worker.storage.push(b"." * 1000, name)
    worker.storage.write(name, b"written", offset)
    written = worker.storage.get(name)
    worker.storage.delete(name)
    return written.index(b"written")


def revises(name: str, count: int) -> list:
    for number in range(count):
        worker.storage.push(b"%d" % number * 1000, name)
    versions = [file.version_id for file in worker.storage.history(name)]
    with worker.storage.open(name) as file:
        file.seek(500)
        ranged = file.read(3).decode()
    contents = [worker.storage.get(name, version)[:3].decode() for version in versions]
    worker.storage.delete(name)
    try:
        worker.storage.stat(name)
    except WorkerError as error:
        return [contents, ranged, error.kind]


def configured() -> list[str]:
    assert worker.caller.call_id and worker.caller.deadline_left > 0
    return [worker.config.get("word", ""), worker.caller.user_id]


def remembers() -> list[str]:
    global users
    users = {*globals().get("users", ()), worker.caller.user_id}
    return sorted(users)


def litters(how: str) -> bool:
    global littered
    before, littered = globals().get("littered", False), True
    if how == "thread":
        threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
    elif how == "memory":
        worker.kept = bytearray(200 << 20)
    elif how == "flood":
        floods("line")
    elif how == "crash":
        sys.modules["os"]._exit(3)
    return before
"""
COMPILED = """
import io

import numpy
from PIL import Image


def compiled(size: int) -> list:
    values = numpy.arange(size * size, dtype=float).reshape(size, size)
    picture = Image.fromarray((values % 256).astype("uint8"))
    picture.thumbnail((16, 16))
    kept = io.BytesIO()
    picture.save(kept, "JPEG")
    return [float(values.sum()), Image.open(io.BytesIO(kept.getvalue())).size[0]]
"""
KEPT_S = 15.0
"""For how long processes serve a user: less long than the look at what is left waits."""
_KEPT = {"isolation": "user", "process_s": KEPT_S}
FUNCTIONS: dict[str, Mapping[str, object]] = {
    "add": {},
    "echo": {},
    "later": {},
    "raises": {},
    "greedy": {"limits": Limits(memory_bytes=64 << 20)},
    "forever": {"limits": Limits(wall_s=0.2)},
    "spins": {"limits": Limits(cpu_s=0.1)},
    "huge": {"limits": Limits(result_bytes=1 << 20)},
    "chatty": {"limits": Limits(output_bytes=64 << 10)},
    "floods": {"limits": Limits(output_bytes=64 << 10)},
    "crowd": {"limits": Limits(threads=8)},
    "breeds": {},
    "fills": {"limits": Limits(disk_bytes=8 << 20)},
    "hoards": {"limits": Limits(open_files=32)},
    "crashes": {},
    "nameless": {},
    "twice": {},
    "fails_within": {},
    "gives_up": {},
    "waits": {},
    "keeps": {},
    "fans": {},
    "gathers": {},
    "counts": {},
    "trickles": {},
    "stumbles": {},
    "makes": {},
    "writes": {},
    "revises": {},
    "remembers": _KEPT,
    "litters": _KEPT,
}
"""What each is deployed with."""
VERSIONED = "configured"
"""Deployed again and again."""
BROKEN = {
    "missing": "import nothing_of_the_kind\n",
    "raises": "def f():\n    pass\n\n\nraise RuntimeError('not today')\n",
    "no entry": "def g():\n    pass\n",
    "exits": "import sys\n\nsys.modules['os']._exit(3)\n",
    "floods": "import sys\n\nsys.stdout.write('x' * (8 << 20))\nraise RuntimeError('x' * (8 << 20))\n",
    "greedy": "kept = [bytearray(1 << 26) for _ in range(10_000)]\n",
}
"""Modules that cannot be imported, each in its way."""
