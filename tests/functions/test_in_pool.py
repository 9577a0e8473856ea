"""Functions in a pool of real processes: deployed, called, failing, limited, logged, cancelled, rolled back, moved."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from storage.errors import InvalidArgument
from taskworker import AsyncClient, Client
from taskworker.calls import bundle as archive
from taskworker.calls.concurrency import WORKER_CALLS
from taskworker.calls.owners import DEPLOYED_OWNER
from taskworker.calls.platform import own_platform
from taskworker.calls.spec import FunctionSpec
from taskworker.errors import (
    CallUncertain,
    DeadlineExceeded,
    FunctionBroken,
    FunctionFailed,
    FunctionLimitExceeded,
    FunctionNotFound,
    FunctionsUnavailable,
)
from taskworker.protos import functions_pb2, taskworker_pb2
from taskworker.protos.functions_pb2_grpc import InvocationServiceStub
from taskworker.protos.taskworker_pb2_grpc import RPCServiceStub
from taskworker.rpc.dialling import dial
from taskworker.sandbox import Limits
from tests.functions.processes import USER, WAIT_S, FunctionPool

MODULE = """
import dataclasses
import logging
import time

from taskworker.inside import WorkerError, worker


def calculate(a: int, b: int) -> int:
    return a + b


def plain(a, b):
    return a + b


async def later(value, pause_s=0.01):
    import asyncio

    await asyncio.sleep(pause_s)
    return value


def raises(text):
    def inner():
        raise ValueError(text)

    inner()


def wraps(text):
    try:
        {}[text]
    except KeyError as error:
        raise ValueError("wrapped") from error


def imports_late():
    import no_such_package


def greedy():
    return len(bytearray(1 << 30))


def forever():
    while True:
        time.sleep(1)


def chatty(word):
    print(word)
    logging.getLogger("app").warning("logged %s", word)


def keep(text):
    return worker.storage.push(text.encode(), "kept").file_id


def read(name):
    return worker.storage.get(name).decode()


def twice(a):
    return worker.call("calculate", worker.call("calculate", a, a), 0)


def waits_for(name):
    try:
        return worker.call(name)
    finally:
        worker.call(name)


def endless(depth):
    return worker.call("endless", depth + 1)


def state():
    global seen
    try:
        return seen
    except NameError:
        seen = True
        return False


def appends(name, wait_s):
    worker.storage.push(b"", name)
    time.sleep(wait_s)
    return "done"


def slowly(value, seconds):
    time.sleep(seconds)
    return value


def waits(name):
    while True:
        try:
            return worker.storage.get(name).decode()
        except WorkerError:
            time.sleep(0.05)


def all_wait(count, name):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(lambda number: worker.call("waits", name), range(count)))


async def all_awaited(count, name):
    import asyncio

    return await asyncio.gather(*(worker.acall("waits", name) for number in range(count)))


async def gives_up(name):
    import asyncio

    try:
        await asyncio.wait_for(worker.acall("waits", name), 0.5)
    except asyncio.TimeoutError:
        return "gave up"


async def asks_both_ways(count):
    import asyncio

    one_by_one = [worker.call("slowly", number, 0) for number in range(2)]
    tasks = [asyncio.ensure_future(worker.acall("slowly", number, 0.1)) for number in range(count)]
    await asyncio.sleep(0)
    in_threads = await asyncio.gather(*(asyncio.to_thread(worker.call, "slowly", number, 0) for number in range(8)))
    blocking = worker.call("slowly", "here", 0)
    return one_by_one, await asyncio.gather(*tasks), in_threads, blocking


def leaves_a_loop():
    import asyncio

    loop = asyncio.new_event_loop()
    loop.create_task(worker.acall("waits", "never"))
    loop.run_until_complete(asyncio.sleep(0.1))
    return "left"


async def items_of_its_loop(to):
    import asyncio

    queue = asyncio.Queue()

    async def fill():
        for number in range(to):
            await asyncio.sleep(0.001)
            await queue.put(number)

    task = asyncio.ensure_future(fill())

    async def items():
        for _ in range(to):
            yield await queue.get()
        await task

    return items()


def about(key=None):
    caller = worker.caller
    if key:
        return worker.config[key]
    return caller.user_id, caller.call_id, caller.deadline_left, dict(worker.config)


def counts(to, size=0, pause_s=0):
    for number in range(to):
        yield [number, "x" * size]
        time.sleep(pause_s)


async def acounts(to):
    for number in range(to):
        yield number


def breaks(at):
    for number in range(at):
        yield number
    raise ValueError("enough")


def unspeakable():
    yield 1
    yield float("nan")


def keeps_a_file():
    import pathlib

    pathlib.Path("report.txt").write_bytes(b"large" * 1000)
    return worker.result_file("report.txt", "reports/1")


def remembers(word):
    global words
    words = globals().get("words", []) + [word]
    return words


def text(count, character):
    return character * count


def texts(count, character):
    yield 0
    yield character * count


def length(text):
    return len(text)


def asks_for_length(count, character):
    return worker.call("length", character * count)


def asks_for_text(count, character):
    return len(worker.call("text", count, character))


def uses_processes():
    from concurrent.futures import ProcessPoolExecutor


def uses_os():
    import os

    return os.getcwd()
"""


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FunctionPool]:
    directory = tmp_path_factory.mktemp("functions")
    (directory / "app.py").write_text(MODULE)
    (directory / "broken.py").write_text("import absent_module\n")
    (directory / "eager.py").write_text("from taskworker.inside import worker\n\nworker.storage.stat('x')\n")
    with FunctionPool(directory, pool_options=("--metrics", "127.0.0.2:0")) as pool:
        pool.deploy("calculate", "app:calculate", directory)
        pool.await_workers("calculate", 3)
        yield pool


def test_arguments_as_a_caller_would_expect(pool: FunctionPool) -> None:
    call = pool.client.call_texts
    assert call("calculate", ["3", "4"], {}, user_id=USER) == "7"
    assert call("calculate", ["3"], {"b": "4"}, user_id=USER) == "7"
    pool.deploy("plain", "app:plain", pool.directory)
    assert call("plain", ["3", "4"], {}, user_id=USER) == "7"
    assert call("plain", ["three", "four"], {}, user_id=USER) == '"threefour"'
    with pytest.raises(InvalidArgument, match=r"parameter 'a'.*valid integer"):
        call("calculate", ["three", "4"], {}, user_id=USER)
    pool.deploy("later", "app:later", pool.directory)
    assert pool.client.call("later", [{"深": [1, None]}], user_id=USER) == {"深": [1, None]}
    with pytest.raises(FunctionNotFound, match="'absent'"):
        pool.client.call("absent", user_id=USER)
    for called in (pool.client.call, pool.client.stream):
        with pytest.raises(InvalidArgument, match=r"arguments in a list: write \['three'\] for one"):
            called("later", "three", user_id=USER)


def test_a_caller_may_wait_without_a_deadline(pool: FunctionPool) -> None:
    with Client(pool.address) as patient:
        assert patient.call("calculate", [3, 4], user_id=USER) == 7
        pool.deploy("single", "app:later", pool.directory, concurrency=1)
        with ThreadPoolExecutor(4) as callers:
            calls = [callers.submit(patient.call, "single", [number, 0.05], user_id=USER) for number in range(8)]
            assert [call.result(60) for call in calls] == list(range(8))


def test_an_exception_comes_with_the_function_s_own_frames(pool: FunctionPool) -> None:
    pool.deploy("raises", "app:raises", pool.directory)
    with pytest.raises(FunctionFailed) as failed:
        pool.client.call("raises", ["no way"], user_id=USER)
    first, *frames = str(failed.value).splitlines()
    assert first == "ValueError: no way"
    assert [frame.split(":")[0].strip() + frame[frame.index(" in ") :] for frame in frames] == [
        "app/app.py in raises: inner()",
        "app/app.py in inner: raise ValueError(text)",
    ]
    assert str(pool.directory) not in str(failed.value)


def test_what_an_exception_was_raised_from_comes_too(pool: FunctionPool) -> None:
    pool.deploy("wraps", "app:wraps", pool.directory)
    with pytest.raises(FunctionFailed, match=r"(?s)^ValueError: wrapped\n.*\n  caused by KeyError: 'a key'$"):
        pool.client.call("wraps", ["a key"], user_id=USER)


def test_a_package_that_is_missing_amid_a_call_says_how_to_bring_it(pool: FunctionPool) -> None:
    pool.deploy("imports_late", "app:imports_late", pool.directory)
    with pytest.raises(FunctionFailed, match=r"no_such_package'; `deploy --include` .* `--requirements FILE`"):
        pool.client.call("imports_late", user_id=USER)


def test_modules_that_functions_do_not_have_are_told(pool: FunctionPool) -> None:
    pool.deploy("uses_os", "app:uses_os", pool.directory)
    with pytest.raises(FunctionFailed, match=r"ForbiddenImport: functions have no module 'os': .*worker\.storage"):
        pool.client.call("uses_os", user_id=USER)
    pool.deploy("uses_processes", "app:uses_processes", pool.directory)
    with pytest.raises(FunctionFailed, match=r"ForbiddenImport: .*ProcessPoolExecutor.*worker\.acall"):
        pool.client.call("uses_processes", user_id=USER)


VENDORED = """
import os
from os import path


def here():
    return path.basename(os.getcwd())
"""
VENDORING = """
import sys
from pathlib import Path

from own._vendor import one

sys.path.insert(0, str(Path(__file__).parent / "vendor"))

import two


def f():
    return one.here(), two.here()
"""


def test_vendored_libraries_have_modules_that_functions_do_not_have(pool: FunctionPool) -> None:
    home = pool.directory / "vendoring"
    for path in (
        "own/__init__.py",
        "own/_vendor/__init__.py",
        "own/_vendor/one.py",
        "vendor/two.py",
        "plain/__init__.py",
    ):
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        (home / path).write_text(VENDORED if path[-6:] in ("one.py", "two.py") else "")
    (home / "vendoring.py").write_text(VENDORING)
    options: dict[str, Any] = {"directory": home, "user_id": USER}
    pool.client.deploy("vendoring", "vendoring:f", include=["vendor"], **options)
    assert pool.client.call("vendoring", user_id=USER) == ["tmp", "tmp"]
    (home / "plain" / "vendor.py").write_text(VENDORED)  # a module of that name is the user's
    with pytest.raises(FunctionBroken, match="functions have no module 'os'"):
        pool.client.deploy("vendor", "plain.vendor:here", **options)


def test_what_cannot_be_imported_is_told_and_does_not_go_live(pool: FunctionPool) -> None:
    pool.deploy("fragile", "app:plain", pool.directory)
    with pytest.raises(FunctionBroken, match=r"fragile is not deployed as this version: .*absent_module"):
        pool.deploy("fragile", "broken:f", pool.directory)
    with pytest.raises(FunctionBroken, match="no 'nowhere'"):
        pool.deploy("fragile", "app:nowhere", pool.directory)
    with pytest.raises(FunctionBroken, match="while a call runs, not while the module is being imported"):
        pool.deploy("fragile", "eager:f", pool.directory)
    assert pool.client.call("fragile", ["a", "b"], user_id=USER) == "ab"
    assert len(pool.functions.history("fragile")) == 1
    with pytest.raises(FunctionBroken, match="absent_module"):
        pool.deploy("never", "broken:f", pool.directory)
    with pytest.raises(FunctionNotFound):
        pool.client.call("never", user_id=USER)


COMPILED_S = 240.0
"""For 80 MB to be stored, fetched and imported, on a machine that does much else."""
COMPILED = """
import io

import numpy
from PIL import Image


def f(size: int) -> list:
    values = numpy.arange(size * size, dtype=float).reshape(size, size)
    picture = Image.fromarray((values % 256).astype("uint8"))
    picture.thumbnail((16, 16))
    kept = io.BytesIO()
    picture.save(kept, "JPEG")
    return [float(numpy.linalg.norm(values @ values)), Image.open(io.BytesIO(kept.getvalue())).size]
"""


def test_compiled_packages_run(pool: FunctionPool) -> None:
    (pool.directory / "compiled.py").write_text(COMPILED)
    requirements = pool.directory / "compiled.txt"
    requirements.write_text("numpy\npillow\n")
    try:
        found = pool.client.deploy(
            "compiled",
            "compiled:f",
            user_id=USER,
            directory=pool.directory,
            requirements=requirements,
            timeout_s=COMPILED_S,
        )
    except InvalidArgument as error:
        if "No matching distribution" not in str(error):
            raise
        pytest.skip(f"no package index can be reached for numpy and Pillow: {error}")
    here = own_platform()
    assert here is not None
    assert list(found.platforms) == [here.tag]
    assert found.able == ("w0", "w1", "w2")
    for size in (8, 64):
        norm, thumbnail = pool.client.call("compiled", [size], user_id=USER, timeout_s=COMPILED_S)
        assert norm > 0
        assert thumbnail == [min(size, 16)] * 2


def test_a_worker_that_cannot_run_a_bundle_is_not_chosen(pool: FunctionPool) -> None:
    (pool.directory / "plain.py").write_text("def f():\n    return 1\n")
    spec = FunctionSpec("elsewhere", "plain:f", platforms={"3.99-riscv64-musl1.2": ()})
    packed = archive.packed(spec, {"app/plain.py": b"def f():\n    return 1\n"})
    deployed = pool.functions.deploy(packed.bundle, user_id=USER)
    assert (deployed.able, set(deployed.unable)) == ((), {"w0", "w1", "w2"})
    assert "3.99-riscv64-musl1.2" in deployed.not_imported
    with pytest.raises(FunctionsUnavailable, match=r"3\.99-riscv64-musl1\.2"):
        pool.client.call("elsewhere", user_id=USER, timeout_s=2)
    pool.functions.undeploy("elsewhere")


def test_a_client_deploys_as_the_command_does(pool: FunctionPool) -> None:
    (pool.directory / "named.py").write_text(
        "from importlib import import_module\n\nword = import_module('named' + '_too').WORD\n"
    )
    (pool.directory / "named_too.py").write_text("WORD = 'found'\n")
    (pool.directory / "entry.py").write_text("import named\n\n\ndef f():\n    return named.word\n")
    options: dict[str, Any] = {"directory": pool.directory, "user_id": USER, "limits": {"wall_s": 5}}
    tried = pool.client.deploy("entry", "entry:f", dry_run=True, **options)
    assert (tried.version_id, set(tried.files)) == ("", {"app/entry.py", "app/named.py", "app/named_too.py"})
    assert "entry" not in [one.function for one in pool.client.functions()]
    deployed = pool.client.deploy("entry", "entry:f", **options)
    assert (deployed.changed, len(deployed.imported_by)) == (True, 1)
    assert pool.client.call("entry", user_id=USER) == "found"
    assert "entry" in [one.function for one in pool.client.functions()]
    with pytest.raises(InvalidArgument, match="there is no option 'walls'"):
        pool.client.deploy("entry", "entry:f", walls=5, **options)


@pytest.mark.parametrize(("entry", "threads"), [("all_wait", 32), ("all_awaited", 1)])
def test_calls_of_one_function_run_at_the_same_time(pool: FunctionPool, entry: str, threads: int) -> None:
    pool.deploy("waits", "app:waits", pool.directory)
    pool.deploy(entry, f"app:{entry}", pool.directory, limits=Limits(threads=threads))
    go = f"go of {entry}"
    with ThreadPoolExecutor(1) as callers:
        call = callers.submit(pool.client.call, entry, [8, go], user_id=USER)
        pool.await_status("waits", lambda status: status.running == 8)
        pool.client.push(b"gone", filename=go, user_id=USER)
        assert call.result(60) == ["gone"] * 8


def test_a_call_that_is_not_awaited_any_more_ends(pool: FunctionPool) -> None:
    pool.deploy("waits", "app:waits", pool.directory, limits=Limits(wall_s=600.0))
    for entry, said in (("gives_up", "gave up"), ("leaves_a_loop", "left")):
        pool.deploy(entry, f"app:{entry}", pool.directory)
        assert pool.client.call(entry, ["never"] if entry == "gives_up" else [], user_id=USER) == said
        pool.await_status("waits", lambda status: not status.running)


def test_threads_and_coroutines_ask_at_the_same_time(pool: FunctionPool) -> None:
    for entry in ("slowly", "asks_both_ways"):
        pool.deploy(entry, f"app:{entry}", pool.directory)
    told = pool.client.call("asks_both_ways", [40], user_id=USER)
    assert told == [[0, 1], list(range(40)), list(range(8)), "here"]


def test_items_of_a_coroutine_come_from_its_event_loop(pool: FunctionPool) -> None:
    pool.deploy("items_of_its_loop", "app:items_of_its_loop", pool.directory)
    assert list(pool.client.stream("items_of_its_loop", [5], user_id=USER)) == list(range(5))
    assert pool.client.call("items_of_its_loop", [5], user_id=USER) == list(range(5))


def test_one_user_s_calls_do_not_hold_another_s_up(pool: FunctionPool) -> None:
    pool.deploy("slowly", "app:slowly", pool.directory, concurrency=16)
    with ThreadPoolExecutor(24) as callers:
        anns = [callers.submit(pool.client.call, "slowly", [number, 3], user_id="ann") for number in range(24)]
        pool.await_status("slowly", lambda status: (status.running, status.waiting) == (14, 10))
        assert pool.client.call("slowly", ["bob", 0], user_id="bob") == "bob"
        assert not any(call.done() for call in anns)
        assert [call.result(60) for call in anns] == list(range(24))


def test_a_function_knows_its_caller_and_its_configuration(pool: FunctionPool) -> None:
    pool.deploy("about", "app:about", pool.directory, limits=Limits(wall_s=20.0), config={"url": "http://x", "n": "3"})
    user, call_id, left_s, config = pool.client.call("about", user_id=USER, timeout_s=1000)
    assert (user, config) == (USER, {"url": "http://x", "n": "3"})
    assert call_id
    assert 10 < left_s <= 20
    assert pool.client.call("about", user_id=USER, timeout_s=5)[2] < 6
    with pytest.raises(FunctionFailed, match=r"KeyError: .*worker\.config has no 'town': `deploy --set town=VALUE`"):
        pool.client.call("about", ["town"], user_id=USER)
    for config in ({"n": 3}, {"n": "\ud800"}, {"n": "x" * 65_536}):
        with pytest.raises(InvalidArgument, match="config"):
            pool.client.deploy("about", "app:about", user_id=USER, directory=pool.directory, config=config)


def test_a_file_is_returned_in_place_of_its_bytes(pool: FunctionPool) -> None:
    pool.deploy("keeps_a_file", "app:keeps_a_file", pool.directory)
    file = pool.client.call("keeps_a_file", user_id=USER)
    assert (file["filename"], file["size"]) == ("reports/1", 5000)
    assert pool.client.get(file["file_id"], user_id=USER, version_id=file["version_id"]) == b"large" * 1000


def test_what_a_generator_gives_comes_as_it_is_made(pool: FunctionPool) -> None:
    for entry in ("counts", "acounts", "breaks", "unspeakable"):
        pool.deploy(entry, f"app:{entry}", pool.directory)
    stream = pool.client.stream
    assert list(stream("counts", [300], user_id=USER)) == [[number, ""] for number in range(300)]
    assert list(stream("acounts", [3], user_id=USER)) == [0, 1, 2]
    assert list(stream("calculate", [3, 4], user_id=USER)) == [7]
    assert pool.client.call("acounts", [3], user_id=USER) == [0, 1, 2]
    assert list(stream("acounts", [0], user_id=USER)) == []
    broken = stream("breaks", [2], user_id=USER)
    assert [next(broken), next(broken)] == [0, 1]
    with pytest.raises(FunctionFailed, match="ValueError: enough"):
        next(broken)
    with pytest.raises(FunctionFailed, match="ValueError: enough"):
        pool.client.call("breaks", [2], user_id=USER)
    with pytest.raises(FunctionFailed, match="not finite"):
        list(stream("unspeakable", user_id=USER))
    with pytest.raises(InvalidArgument, match="missing a required argument: 'to'"):
        list(stream("acounts", user_id=USER))


def test_the_first_item_comes_before_the_second_is_made(pool: FunctionPool) -> None:
    pool.deploy("counts", "app:counts", pool.directory)
    items = pool.client.stream("counts", [2, 0, 3600], user_id=USER)
    assert next(items) == [0, ""]  # the second will never come
    items.close()
    pool.await_status("counts", lambda status: not status.running)


def test_waiting_for_an_item_or_a_line_can_be_cancelled(pool: FunctionPool) -> None:
    pool.deploy("counts", "app:counts", pool.directory, limits=Limits(wall_s=3600.0))
    pool.deploy("silent", "app:plain", pool.directory)

    async def scenario() -> None:
        async with AsyncClient(pool.address) as client:
            items = client.stream("counts", [2, 0, 3600], user_id=USER)
            assert await anext(items) == [0, ""]
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(items), 0.2)
            lines = client.logs("silent", follow=True)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(lines), 0.5)

    asyncio.run(asyncio.wait_for(scenario(), 60))
    pool.await_status("counts", lambda status: not status.running)


def test_a_generator_waits_for_who_takes_what_it_gives(pool: FunctionPool) -> None:
    pool.deploy("counts", "app:counts", pool.directory)
    items = pool.client.stream("counts", [200, 500_000], user_id=USER)
    next(items)
    time.sleep(0.5)
    assert pool.status("counts").running == 1  # 100 MB are not held anywhere
    assert sum(1 for _ in items) == 199


def test_a_caller_that_takes_no_items_holds_nothing_up_when_the_time_is_over(pool: FunctionPool) -> None:
    pool.deploy("counts", "app:counts", pool.directory, limits=Limits(wall_s=2.0), concurrency=1)
    with Client(pool.address) as patient:
        items = patient.stream("counts", [200, 500_000], user_id=USER)
        numbers = [next(items)[0]]
        assert pool.client.call("counts", [1], user_id=USER) == [[0, ""]]  # its turn comes
        with pytest.raises(DeadlineExceeded, match=r"time limit of 2 s"):
            numbers += (number for number, _ in items)
    assert numbers == list(range(len(numbers)))
    assert len(numbers) < 200


def test_a_stream_whose_worker_is_killed_ends_with_an_error(pool: FunctionPool) -> None:
    pool.deploy("counts", "app:counts", pool.directory)
    pool.await_workers("counts", 3)
    items = pool.client.stream("counts", [100_000, 0, 0.01], user_id=USER)
    taken = [next(items)]
    victim = pool.await_busy()
    pool.workers[victim].kill()
    with pytest.raises(CallUncertain, match="after some of its results were delivered"):
        taken.extend(items)
    assert taken == [[number, ""] for number in range(len(taken))]
    pool.start_worker(victim)
    pool.await_workers("counts", 3)


def test_an_item_has_the_limit_of_a_result(pool: FunctionPool) -> None:
    pool.deploy("counts", "app:counts", pool.directory, limits=Limits(result_bytes=1000))
    assert len(list(pool.client.stream("counts", [50, 900], user_id=USER))) == 50
    with pytest.raises(FunctionLimitExceeded, match="result limit"):
        list(pool.client.stream("counts", [1, 2000], user_id=USER))
    with pytest.raises(FunctionLimitExceeded, match="result limit"):
        pool.client.call("counts", [50, 900], user_id=USER)


@pytest.mark.parametrize(("character", "size"), [("x", 1), ('"', 2), ("\n", 2), ("é", 2), ("漢", 3), ("\0", 6)])
def test_the_limit_of_a_result_is_of_its_json(pool: FunctionPool, character: str, size: int) -> None:
    for entry in ("text", "texts"):
        pool.deploy(entry, f"app:{entry}", pool.directory, limits=Limits(result_bytes=60_002))
    largest = 60_000 // size
    assert pool.client.call("text", [largest, character], user_id=USER) == character * largest
    assert list(pool.client.stream("texts", [largest, character], user_id=USER)) == [0, character * largest]
    for entry in ("text", "texts"):
        with pytest.raises(FunctionLimitExceeded, match="result limit"):
            list(pool.client.stream(entry, [largest + 1, character], user_id=USER))


def test_the_largest_result_is_the_same_to_a_function_that_calls(pool: FunctionPool) -> None:
    pool.deploy("text", "app:text", pool.directory, limits=Limits(result_bytes=8 << 20))
    pool.deploy("asks_for_text", "app:asks_for_text", pool.directory)
    pool.deploy("texts", "app:texts", pool.directory)
    assert pool.client.call("asks_for_text", [(4 << 20) - 1, '"'], user_id=USER) == (4 << 20) - 1
    with pytest.raises(FunctionFailed, match="result limit of 8 MiB"):
        pool.client.call("asks_for_text", [4 << 20, '"'], user_id=USER)
    with pytest.raises(FunctionLimitExceeded, match="result limit"):  # of more than a frame can hold
        list(pool.client.stream("texts", [9 << 20, "x"], user_id=USER))


@pytest.mark.parametrize("character", ["x", '"', "漢", "🦀"])
def test_functions_pass_on_what_callers_may(pool: FunctionPool, character: str) -> None:
    pool.deploy("length", "app:length", pool.directory)
    pool.deploy("asks_for_length", "app:asks_for_length", pool.directory)
    most = ((1 << 20) - 2) // len(json.dumps(character, ensure_ascii=False)[1:-1])
    assert pool.client.call("length", [character * most], user_id=USER) == most
    assert pool.client.call("asks_for_length", [most, character], user_id=USER) == most
    with pytest.raises(InvalidArgument, match="at most 1,048,576"):
        pool.client.call("length", [character * (most + 1)], user_id=USER)
    with pytest.raises(FunctionFailed, match="at most 1,048,576"):
        pool.client.call("asks_for_length", [most + 1, character], user_id=USER)


def test_with_isolation_user_a_process_serves_one_user(pool: FunctionPool) -> None:
    pool.deploy("remembers", "app:remembers", pool.directory)
    assert [pool.client.call("remembers", [n], user_id=USER) for n in range(3)] == [[0], [1], [2]]
    pool.deploy("remembers", "app:remembers", pool.directory, isolation="user")
    by_user = {
        user: [pool.client.call("remembers", [f"{user} {n}"], user_id=user) for n in range(12)]
        for user in ("ann", "bob")
    }
    for user, seen in by_user.items():
        assert all(word.startswith(user) for words in seen for word in words)
        assert max(map(len, seen)) >= 4  # three workers, each with a process of this user
    pool.deploy("remembers", "app:remembers", pool.directory, isolation="user", config={"newer": "yes"})
    assert len(pool.client.call("remembers", ["of a new version"], user_id="ann")) == 1
    _await_one_version_warm(pool, "remembers")


@pytest.mark.parametrize("isolation", ["call", "user"])
def test_who_deploys_often_leaves_one_version_warm(pool: FunctionPool, isolation: str) -> None:
    for number in range(8):  # each is tried by a worker, and called at another one as often as not
        pool.deploy("often", "app:remembers", pool.directory, isolation=isolation, config={"n": str(number)})
        assert pool.client.call("often", [number], user_id=USER) == [number]
    _await_one_version_warm(pool, "often")
    pool.functions.roll_back("often", user_id=USER)
    assert pool.client.call("often", ["back"], user_id=USER)[-1] == "back"
    _await_one_version_warm(pool, "often")


def _await_one_version_warm(pool: FunctionPool, name: str) -> None:
    """All workers have processes of the newest version, and none of those that were replaced, which it names apart."""
    until = time.monotonic() + WAIT_S
    while (workers := sorted(warm.worker_id for warm in pool.status(name).warm)) != sorted(pool.workers):
        assert time.monotonic() < until, workers
        pool.client.call(name, [""], user_id=f"user {time.monotonic()}")  # of whom no worker has a process
        time.sleep(0.05)


def test_limits_say_which_and_how_much(pool: FunctionPool) -> None:
    pool.deploy("greedy", "app:greedy", pool.directory, limits=Limits(memory_bytes=128 << 20))
    with pytest.raises(FunctionLimitExceeded, match="memory limit of 128 MiB"):
        pool.client.call("greedy", user_id=USER)
    pool.deploy("forever", "app:forever", pool.directory, limits=Limits(wall_s=0.5))
    with pytest.raises(DeadlineExceeded, match=r'wall time limit of 0\.5 s.*--limits wall=.*"wall_s": .*--limits-max'):
        pool.client.call("forever", user_id=USER)
    with pytest.raises(DeadlineExceeded):
        pool.client.call("forever", user_id=USER, timeout_s=0.2)


def test_nothing_is_left_of_a_call_for_the_next(pool: FunctionPool) -> None:
    pool.deploy("state", "app:state", pool.directory)
    assert [pool.client.call("state", user_id=USER) for _ in range(5)] == [False] * 5


def test_what_calls_print_and_log_can_be_read(pool: FunctionPool) -> None:
    pool.deploy("chatty", "app:chatty", pool.directory)
    follower: list[str] = []
    enough = threading.Event()

    def follow() -> None:
        for line in pool.functions.logs("chatty", follow=True):
            follower.append(f"{line.stream}: {line.text}")
            if "last" in line.text and line.stream == "stderr":
                enough.set()
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    pool.client.call("chatty", ["词"], user_id=USER)
    pool.client.call("chatty", ["last"], user_id=USER)
    assert enough.wait(30)
    thread.join(30)
    kept = [f"{line.stream}: {line.text}" for line in pool.functions.logs("chatty")]
    assert (
        sorted(kept)
        == sorted(follower)
        == sorted(["stdout: 词", "stderr: WARNING app: logged 词", "stdout: last", "stderr: WARNING app: logged last"])
    )


def test_functions_work_on_the_files_of_their_caller(pool: FunctionPool) -> None:
    for name in ("keep", "read"):
        pool.deploy(name, f"app:{name}", pool.directory)
    file_id = pool.client.call("keep", ["文字"], user_id=USER)
    assert pool.client.get(file_id, user_id=USER) == "文字".encode()
    assert pool.client.call("read", ["kept"], user_id=USER) == "文字"
    with pytest.raises(FunctionFailed, match="WorkerError"):
        pool.client.call("read", [file_id], user_id="bob")


def test_functions_call_functions_but_not_without_end(pool: FunctionPool) -> None:
    pool.deploy("twice", "app:twice", pool.directory)
    assert pool.client.call("twice", [21], user_id=USER) == 42
    pool.deploy("endless", "app:endless", pool.directory)
    with pytest.raises(FunctionFailed, match=r"too deeply .*endless -> endless"):
        pool.client.call("endless", [0], user_id=USER)


def test_a_new_version_is_called_at_once_and_an_old_one_again_after_a_rollback(
    pool: FunctionPool, tmp_path: Path
) -> None:
    for number in (1, 2):
        (tmp_path / "versioned.py").write_text(f"def f(): return {number}\n")
        pool.deploy("versioned", "versioned:f", tmp_path)
        assert pool.client.call("versioned", user_id=USER) == number
    pool.functions.roll_back("versioned", user_id=USER)
    assert pool.client.call("versioned", user_id=USER) == 1
    assert len(pool.functions.history("versioned")) == 3
    pool.functions.undeploy("versioned")
    with pytest.raises(FunctionNotFound):
        pool.client.call("versioned", user_id=USER)


def test_deployed_functions_outlive_the_pool_s_process(pool: FunctionPool) -> None:
    pool.restart_pool()
    assert pool.client.call("calculate", [20, 22], user_id=USER, timeout_s=30) == 42
    pool.await_workers("calculate", 3)


def test_status_tells_how_calls_do(pool: FunctionPool) -> None:
    before = pool.status("calculate")
    for number in range(20):
        pool.client.call("calculate", [number, 1], user_id=USER)
    status = pool.status("calculate")
    assert status.calls - before.calls == 20
    assert 0 < status.p50_ms <= status.p95_ms <= status.p99_ms
    assert status.workers == ["w0", "w1", "w2"]
    warm = pool.await_status("calculate", lambda status: bool(status.warm)).warm
    assert all(one.processes and 1 << 20 < one.memory_bytes < 200 << 20 for one in warm)


def test_calls_of_a_killed_worker_move(pool: FunctionPool) -> None:
    pool.deploy("moving", "app:later", pool.directory)
    pool.await_workers("moving", 3)
    with ThreadPoolExecutor(16) as callers:
        calls = [callers.submit(pool.client.call, "moving", [number, 0.05], user_id=USER) for number in range(200)]
        time.sleep(0.4)
        pool.workers.pop("w1").kill()
        assert [call.result() for call in calls] == list(range(200))
    pool.start_worker("w1")
    pool.await_workers("moving", 3)


def test_calls_of_a_suspended_worker_move(pool: FunctionPool) -> None:
    pool.deploy("hanging", "app:later", pool.directory)
    pool.await_workers("hanging", 3)
    with ThreadPoolExecutor(16) as callers:
        calls = [callers.submit(pool.client.call, "hanging", [number, 0.05], user_id=USER) for number in range(200)]
        time.sleep(0.4)
        pool.workers["w2"].signal(signal.SIGSTOP)
        try:
            assert [call.result() for call in calls] == list(range(200))
        finally:
            pool.workers["w2"].signal(signal.SIGCONT)
    pool.await_workers("hanging", 3)


def test_a_call_whose_caller_has_gone_ends_at_once(pool: FunctionPool) -> None:
    pool.deploy("unending", "app:forever", pool.directory, limits=Limits(wall_s=300.0))  # longer than is waited here
    pool.await_workers("unending", 3)
    with dial(pool.address) as channel:
        request = taskworker_pb2.FunctionCallRequest(function_name="unending", user_id=USER)
        call = RPCServiceStub(channel).CallFunction.future(request)
        pool.await_status("unending", lambda status: status.running == 1)
        call.cancel()
        assert pool.await_status("unending", lambda status: status.running == 0).errors == 1
    assert pool.client.call("calculate", [1, 2], user_id=USER) == 3


def test_a_cancel_that_overtakes_its_call_ends_it(pool: FunctionPool) -> None:
    version = pool.deploy("overtaken", "app:forever", pool.directory)
    file_id = next(one.file_id for one in pool.client.list_files(user_id=DEPLOYED_OWNER) if one.filename == "overtaken")
    with grpc.insecure_channel(pool.workers["w0"].address) as channel:
        worker = InvocationServiceStub(channel)
        worker.Cancel(functions_pb2.CancelRequest(token="early"))
        told = worker.Invoke(
            functions_pb2.InvokeRequest(
                function_name="overtaken", file_id=file_id, version_id=version, user_id=USER, token="early"
            ),
            timeout=30,
        )
    assert told.kind == "CallAbandoned"


def test_a_call_that_ends_before_its_time_takes_with_it_what_it_waits_for(pool: FunctionPool) -> None:
    pool.deploy("innermost", "app:forever", pool.directory, limits=Limits(wall_s=300.0))  # longer than is waited here
    pool.deploy("inner", "app:waits_for", pool.directory, limits=Limits(wall_s=300.0))
    pool.deploy("outer", "app:waits_for", pool.directory, limits=Limits(wall_s=2.0))
    pool.await_workers("outer", 3)
    with pytest.raises(DeadlineExceeded, match="outer"):
        pool.client.call("outer", ["innermost"], user_id=USER, timeout_s=WAIT_S)
    assert pool.await_status("innermost", lambda status: status.running == 0).calls == 1
    with dial(pool.address) as channel:
        request = taskworker_pb2.FunctionCallRequest(function_name="inner", args=["innermost"], user_id=USER)
        call = RPCServiceStub(channel).CallFunction.future(request)
        pool.await_status("innermost", lambda status: status.running == 1)
        call.cancel()
        for name, calls in (("inner", 1), ("innermost", 2)):
            assert pool.await_status(name, lambda status: status.running == 0).calls == calls


def test_calls_of_a_worker_that_is_full_can_be_ended(pool: FunctionPool) -> None:
    version = pool.deploy("filling", "app:forever", pool.directory, limits=Limits(wall_s=300.0))
    file_id = next(one.file_id for one in pool.client.list_files(user_id=DEPLOYED_OWNER) if one.filename == "filling")
    with grpc.insecure_channel(pool.workers["w0"].address) as channel:
        worker = InvocationServiceStub(channel)

        def begin(token: str) -> grpc.Future[functions_pb2.InvokeResponse]:
            request = functions_pb2.InvokeRequest(
                function_name="filling", file_id=file_id, version_id=version, user_id=USER, token=token
            )
            return worker.Invoke.future(request, timeout=300)

        calls = {str(number): begin(str(number)) for number in range(WORKER_CALLS + 1)}
        give_up = time.monotonic() + WAIT_S
        while not (refused := [token for token, call in calls.items() if call.done()]):
            assert time.monotonic() < give_up
            time.sleep(0.01)
        with pytest.raises(grpc.RpcError, match="as many calls under way as it allows"):
            calls.pop(refused[0]).result()
        for token in calls:
            worker.Cancel(functions_pb2.CancelRequest(token=token), timeout=WAIT_S)
        assert {call.result(WAIT_S).kind for call in calls.values()} == {"CallAbandoned"}


def test_a_call_that_must_not_run_twice_says_that_it_may_have_run(pool: FunctionPool) -> None:
    pool.deploy("once", "app:appends", pool.directory, idempotent=False)
    with ThreadPoolExecutor(1) as callers:
        call = callers.submit(pool.client.call, "once", ["once-ran", 20], user_id=USER)
        while pool.client.find("once-ran", user_id=USER) is None:
            time.sleep(0.02)
        for name in list(pool.workers):
            if pool.status("once").running and not call.done():
                pool.workers.pop(name).kill()
                time.sleep(0.3)
        with pytest.raises(CallUncertain, match="not idempotent"):
            call.result(30)
    for name in ("w0", "w1", "w2"):
        if name not in pool.workers:
            pool.start_worker(name)
    pool.await_workers("calculate", 3)


def test_a_result_is_given_again_while_it_may(pool: FunctionPool) -> None:
    pool.deploy("cached", "app:calculate", pool.directory, cache_ttl_s=60.0)
    assert [pool.client.call("cached", [1, 2], user_id=USER) for _ in range(4)] == [3] * 4
    assert pool.status("cached").cached == 3


UNREADABLE = """
import sys

from taskworker.inside import WorkerError, worker


def digits(nested):
    if nested:
        try:
            return worker.call("digits", False)
        except WorkerError as error:
            return [error.kind, str(error)]
    sys.set_int_max_str_digits(0)
    return 10**5000
"""


def test_a_result_that_python_cannot_read_is_told_as_such(pool: FunctionPool, tmp_path: Path) -> None:
    (tmp_path / "unreadable.py").write_text(UNREADABLE)
    pool.deploy("digits", "unreadable:digits", tmp_path)
    with pytest.raises(FunctionFailed, match="too many digits"):
        pool.client.call("digits", [False], user_id=USER)
    with pytest.raises(FunctionFailed, match="too many digits"):
        list(pool.client.stream("digits", [False], user_id=USER))
    kind, text = pool.client.call("digits", [True], user_id=USER)
    assert kind == "FunctionFailed"
    assert "too many digits" in text


def test_the_answer_is_json(pool: FunctionPool) -> None:
    assert json.loads(pool.client.call_texts("calculate", ["1", "2"], {}, user_id=USER)) == 3


def test_functions_that_are_gone_are_not_kept_in_memory(pool: FunctionPool) -> None:
    before, during = bytes_in_memory(pool), []
    for number in range(2):
        pool.deploy("passing", "app:plain", pool.directory, concurrency=number + 1)  # another bundle each time
        assert pool.client.call("passing", [number, 1], user_id=USER) == number + 1
        during.append(bytes_in_memory(pool))
        pool.functions.undeploy("passing")
    assert before <= bytes_in_memory(pool) < min(during)


def bytes_in_memory(pool: FunctionPool) -> float:
    """What the pool keeps of small objects that were read lately."""
    with urllib.request.urlopen(str(pool.pool_process.announced["metrics"]), timeout=WAIT_S) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    (sample,) = [one for family in families for one in family.samples if one.name == "taskworker_hot_objects_bytes"]
    return float(sample.value)
