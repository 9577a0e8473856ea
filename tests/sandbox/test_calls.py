"""Calls through the host: results, asks, output, failures, and what is private to a call."""

from __future__ import annotations

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from taskworker.sandbox import (
    CallCancelled,
    CallCrashed,
    CallDeadline,
    CallFailed,
    FunctionBroken,
    FunctionImage,
    LimitExceeded,
    Limits,
    SandboxHost,
    SandboxUnavailable,
    proof,
)
from taskworker.sandbox.frames import ANSWER_BYTES_MAX, FRAME_BYTES_MAX, FrameError
from taskworker.sandbox.inside import init
from tests.sandbox.bundles import ECHO, begin, program

RUNS = """
import asyncio, os, signal, sys, threading, time

def prepare(document):
    pass

def run(request, channel):
    return eval(compile(request, "request", "eval"), globals(), {"channel": channel})

def later(seconds, value):
    time.sleep(seconds)
    return value

def grow():
    kept = []
    while True:
        kept.append(bytearray(1 << 20))

def spin():
    while True:
        pass
"""


@pytest.fixture(scope="module")
def runs(bundles: Path) -> FunctionImage:
    return program(bundles, RUNS, limits=Limits(memory_bytes=64 << 20, cpu_s=1.0, wall_s=30.0))


def test_a_result_is_what_the_program_gives(host: SandboxHost, bundles: Path) -> None:
    image = program(bundles, ECHO)
    for request in (b"", b"x", bytes(range(256)) * 1000, bytes(2 << 20)):
        assert begin(host, image, request).result() == request


def test_a_call_says_what_it_took(host: SandboxHost, runs: FunctionImage) -> None:
    call = begin(host, runs, b"str(sum(range(3_000_000))).encode()")
    assert call.result() == b"4499998500000"
    assert 0.001 < call.cpu_s < 1.0
    assert call.wall_s >= call.cpu_s / 2
    assert 1 << 20 < call.peak_rss_bytes < 256 << 20
    assert not call.output_truncated


def test_the_document_and_the_code_are_there(host: SandboxHost, bundles: Path) -> None:
    source = """
import os, sys
import beside

def prepare(document):
    global seen
    seen = document + b" " + os.getcwd().encode() + b" " + sys.path[0].encode()

def run(request, channel):
    return seen + b" " + beside.NAME.encode()
"""
    image = program(bundles, source, document=b"the document")
    (image.root / "beside.py").write_text("NAME = 'beside'")
    assert begin(host, image).result() == b"the document /code /code beside"


def test_asks_of_several_threads_are_answered_at_the_same_time(host: SandboxHost, bundles: Path) -> None:
    source = """
from concurrent.futures import ThreadPoolExecutor

def prepare(document):
    pass

def run(request, channel):
    with ThreadPoolExecutor(8) as threads:
        return b" ".join(threads.map(channel.ask, [b"%d" % number for number in range(8)]))
"""
    all_there = threading.Barrier(8)

    def answer(ask: bytes) -> bytes:
        all_there.wait(20)  # none is answered before all are asked
        return ask * 2

    assert begin(host, program(bundles, source), answer=answer).result() == b"00 11 22 33 44 55 66 77"


def test_more_asks_than_may_be_under_way_take_turns(host: SandboxHost, bundles: Path) -> None:
    source = """
from concurrent.futures import ThreadPoolExecutor

def prepare(document):
    pass

def run(request, channel):
    with ThreadPoolExecutor(24) as threads:
        return b"".join(threads.map(channel.ask, [b"%d," % number for number in range(200)]))
"""
    assert begin(host, program(bundles, source)).result() == b"".join(b"%d," % number for number in range(200))


def test_more_bytes_of_asks_than_may_be_under_way_take_turns(host: SandboxHost, bundles: Path) -> None:
    source = """
from concurrent.futures import ThreadPoolExecutor

def prepare(document):
    pass

def run(request, channel):
    with ThreadPoolExecutor(6) as threads:
        return b" ".join(threads.map(channel.ask, [bytes(5 << 20)] * 6))
"""
    assert begin(host, program(bundles, source), answer=lambda ask: b"%d" % len(ask)).result() == b" ".join(
        [b"5242880"] * 6
    )


def test_a_result_may_come_in_parts(host: SandboxHost, bundles: Path) -> None:
    source = """
def prepare(document):
    pass

def run(request, channel):
    for number in range(int(request)):
        channel.item(b"%d" % number)
    return b"end"
"""
    items: list[bytes] = []
    assert (
        begin(host, program(bundles, source), b"1000", item=lambda item, _over: items.append(item)).result() == b"end"
    )
    assert items == [b"%d" % number for number in range(1000)]


def test_what_an_answer_raises_reaches_the_one_who_asks(host: SandboxHost, bundles: Path) -> None:
    source = """
from taskworker.sandbox.inside.channel import AskFailed

def prepare(document):
    pass

def run(request, channel):
    try:
        channel.ask(request)
    except AskFailed as error:
        return f"{error.type_name}|{len(error.text)}|{error.text[:20]}".encode()
"""

    def answer(ask: bytes) -> bytes:
        raise KeyError("no such thing" + "x" * int(ask))

    image = program(bundles, source)
    assert begin(host, image, b"0", answer=answer).result() == b"KeyError|15|'no such thing'"
    assert begin(host, image, b"9000000", answer=answer).result() == b"KeyError|15000|'no such thingxxxxxx"


def test_an_answer_too_large_is_a_failure_of_the_ask(host: SandboxHost, runs: FunctionImage) -> None:
    with pytest.raises(CallFailed, match="AskFailed: FrameError"):
        begin(host, runs, b"channel.ask(b'x')", answer=lambda _: bytes(ANSWER_BYTES_MAX + 1)).result()


def test_a_request_too_large_is_refused_before_it_is_sent(host: SandboxHost, runs: FunctionImage) -> None:
    with pytest.raises(FrameError, match="at most"):
        begin(host, runs, bytes(FRAME_BYTES_MAX + 1))


def test_output_arrives_whole_and_before_the_result(host: SandboxHost, runs: FunctionImage) -> None:
    got: list[tuple[str, bytes]] = []
    request = b"(print('one'), print('two', file=sys.stderr), print('x' * 50_000), b'done')[-1]"
    call = begin(host, runs, request, output=lambda name, data: got.append((name, data)))
    assert call.result() == b"done"
    assert b"".join(data for name, data in got if name == "stdout") == b"one\n" + b"x" * 50_000 + b"\n"
    assert b"".join(data for name, data in got if name == "stderr") == b"two\n"
    assert not call.output_truncated


def test_output_above_its_limit_is_dropped_and_the_call_goes_on(host: SandboxHost, bundles: Path) -> None:
    image = program(bundles, RUNS, limits=Limits(output_bytes=1000))
    got: list[bytes] = []
    call = begin(host, image, b"(print('x' * 5_000_000), b'done')[-1]", output=lambda _, data: got.append(data))
    assert call.result() == b"done"
    assert b"".join(got) == b"x" * 1000
    assert call.output_truncated


def test_what_the_import_prints_goes_nowhere_and_breaks_nothing(host: SandboxHost, bundles: Path) -> None:
    image = program(bundles, "print('x' * 1_000_000)\n" + ECHO)
    assert begin(host, image, b"x").result() == b"x"


def test_logging_set_up_at_import_goes_to_the_call(host: SandboxHost, bundles: Path) -> None:
    source = "import logging\nlogging.basicConfig(format='%(message)s')\n" + ECHO.replace(
        "return request", "logging.warning('heard')\n    return request"
    )
    got: list[tuple[str, bytes]] = []
    begin(host, program(bundles, source), output=lambda *said: got.append(said)).result()
    assert got == [("stderr", b"heard\n")]


def test_the_standard_library_works(host: SandboxHost, bundles: Path) -> None:
    source = """
import asyncio, base64, collections, csv, dataclasses, datetime, decimal, enum, hashlib, io, itertools, json
import logging, math, pathlib, random, re, sqlite3, statistics, tempfile, threading, uuid, zlib, zoneinfo
from concurrent.futures import ThreadPoolExecutor
import pydantic, cloudpickle

ZONES = ["UTC", "Europe/Berlin", "America/Argentina/Ushuaia"]

class Point(pydantic.BaseModel):
    x: int
    y: float = 0.5

def prepare(document):
    pass

async def both():
    loop = asyncio.get_running_loop()
    one, two = await asyncio.gather(asyncio.sleep(0.01, 1), asyncio.to_thread(lambda: 2))
    return one + two

def run(request, channel):
    with tempfile.NamedTemporaryFile("w+") as file:
        file.write("text")
        file.seek(0)
        text = file.read()
    with ThreadPoolExecutor(4) as pool:
        squares = list(pool.map(lambda n: n * n, range(5)))
    lock = threading.Lock()
    with lock:
        pass
    base = sqlite3.connect("file.db")
    base.execute("create table t (x)")
    base.execute("insert into t values (7)")
    base.commit()
    return json.dumps({
        "asyncio": asyncio.run(both()), "text": text, "squares": squares,
        "pydantic": Point.model_validate({"x": "3"}).model_dump(),
        "re": re.sub("a+", "b", "caat"), "math": math.isqrt(17),
        "cwd": str(pathlib.Path.cwd()) == tempfile.gettempdir(),
        "date": datetime.date(2026, 1, 31).isoformat(), "sqlite": base.execute("select x from t").fetchall(),
        "pickled": cloudpickle.loads(cloudpickle.dumps(lambda: 5))(), "hash": hashlib.sha256(b"").hexdigest()[:8],
        "zlib": zlib.decompress(zlib.compress(b"z")).decode(), "uuid": len(str(uuid.uuid4())),
        "zones": [str(datetime.datetime(2024, 7, 1, tzinfo=zoneinfo.ZoneInfo(zone))) for zone in ZONES],
        "more zones": len(zoneinfo.available_timezones()) > 400,
    }).encode()
"""
    assert json.loads(begin(host, program(bundles, source)).result()) == {
        "asyncio": 3,
        "text": "text",
        "squares": [0, 1, 4, 9, 16],
        "pydantic": {"x": 3, "y": 0.5},
        "re": "cbt",
        "math": 4,
        "cwd": True,
        "date": "2026-01-31",
        "sqlite": [[7]],
        "pickled": 5,
        "hash": "e3b0c442",
        "zlib": "z",
        "uuid": 36,
        "zones": ["2024-07-01 00:00:00+00:00", "2024-07-01 00:00:00+02:00", "2024-07-01 00:00:00-03:00"],
        "more zones": True,
    }


def test_calls_share_no_state_and_no_random_numbers(host: SandboxHost, bundles: Path) -> None:
    source = """
import os, random
calls = []

def prepare(document):
    pass

def run(request, channel):
    calls.append(request)
    left = os.listdir(".")
    open("file", "w").write("x")
    return f"{len(calls)} {left} {random.random()}".encode()
"""
    image = program(bundles, source)
    results = [begin(host, image).result().decode() for _ in range(5)]
    assert {result.rpartition(" ")[0] for result in results} == {"1 []"}
    assert len({result.rpartition(" ")[2] for result in results}) == 5


def test_many_calls_at_once_get_their_own_results(host: SandboxHost, bundles: Path) -> None:
    image = program(bundles, ECHO)
    requests = [str(number).encode() * 100 for number in range(200)]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(lambda request: begin(host, image, request).result(), requests)) == requests


@pytest.mark.parametrize(
    ("request_", "limit", "text"),
    [
        (b"grow()", "memory", "memory limit of 64 MiB exceeded"),
        (b"bytearray(1 << 40)", "memory", "memory limit of 64 MiB exceeded"),
        (b"spin()", "cpu", "cpu limit of 1 s exceeded"),
        (b"bytes(5 << 20)", "result", "result limit of 4 MiB exceeded"),
        (b"bytes(50 << 20)", "result", "result limit of 4 MiB exceeded"),
        (
            b"([threading.Thread(target=later, args=(9, 0)).start() for _ in range(40)], later(9, b''))[1]",
            "threads",
            "32",
        ),
    ],
)
def test_limits_end_a_call_and_say_which(
    host: SandboxHost, runs: FunctionImage, request_: bytes, limit: str, text: str
) -> None:
    call = begin(host, runs, request_)
    with pytest.raises(LimitExceeded, match=text) as raised:
        call.result()
    assert raised.value.limit == limit
    assert begin(host, runs, b"b'fine'").result() == b"fine"


def test_memory_below_the_limit_is_to_be_had(host: SandboxHost, runs: FunctionImage) -> None:
    assert begin(host, runs, b"str(len(bytearray(48 << 20))).encode()").result() == str(48 << 20).encode()


def test_as_many_threads_as_allowed_run(host: SandboxHost, bundles: Path) -> None:
    image = program(bundles, RUNS, limits=Limits(threads=16))
    request = b"([threading.Thread(target=later, args=(0.5, 0)).start() for _ in range(15)], later(0.6, b'ran'))[1]"
    assert begin(host, image, request).result() == b"ran"


def test_the_disk_is_as_large_as_allowed(host: SandboxHost, bundles: Path) -> None:
    image = program(bundles, RUNS, limits=Limits(disk_bytes=1 << 20))
    assert begin(host, image, b"str(open('a', 'wb').write(bytes(1_000_000))).encode()").result() == b"1000000"
    with pytest.raises(CallFailed, match="OSError"):
        begin(
            host,
            image,
            b"[open(n, 'wb', 0).write(bytes(900_000)) for n in 'ab'] and open('c', 'wb', 0).write(b'x' * 9999)",
        ).result()


def test_what_is_written_byte_by_byte_is_not_read_so(host: SandboxHost, runs: FunctionImage) -> None:
    pieces: list[bytes] = []
    written = 20_000
    request = b"b'%%d' %% sum(os.write(1, b'.') for _ in range(%d))" % written
    assert begin(host, runs, request, output=lambda _, piece: pieces.append(piece)).result() == b"%d" % written
    assert b"".join(pieces) == b"." * written
    assert len(pieces) < written / 4


def test_files_can_be_locked_and_databases_used(host: SandboxHost, bundles: Path) -> None:
    source = """
import fcntl, os, sqlite3

def prepare(document):
    pass

def tried(file, operation):
    try:
        fcntl.flock(file, operation | fcntl.LOCK_NB)
    except OSError as error:
        return type(error).__name__
    return "locked"

def run(request, channel):
    said = []
    with open("lock", "w+") as one, open("lock", "w+") as other, open("lock") as reader:
        said += [tried(one, fcntl.LOCK_EX), tried(other, fcntl.LOCK_EX), tried(reader, fcntl.LOCK_SH)]
        said += [tried(one, fcntl.LOCK_UN), tried(other.fileno(), fcntl.LOCK_SH), tried(reader, fcntl.LOCK_SH)]
        said += [tried(one, fcntl.LOCK_EX), tried(reader, fcntl.LOCK_EX), tried(one, 64)]
    with open(os.__file__) as shared:
        said += [tried(shared, fcntl.LOCK_EX)]
    with open("lock", "a") as again:
        said += [tried(again, fcntl.LOCK_SH)]
    for mode in ("delete", "wal"):
        one, other = sqlite3.connect(f"{mode}.db"), sqlite3.connect(f"{mode}.db", timeout=0)
        one.execute(f"pragma journal_mode = {mode}")
        with one:
            one.execute("create table t (x)")
        one.execute("insert into t values (1)")
        said += [other.execute("select count(*) from t").fetchone()]
        one.commit()
        said += [other.execute("select count(*) from t").fetchone()]
    return repr(said).encode()
"""
    free, taken = "locked", "BlockingIOError"
    expected = [free, taken, taken, free, free, free, taken, "OSError", "OSError", free, free]
    assert eval(begin(host, program(bundles, source)).result()) == [*expected, (0,), (1,), (0,), (1,)]


def test_a_call_has_the_time_that_is_less(host: SandboxHost, bundles: Path) -> None:
    image = program(bundles, RUNS, limits=Limits(wall_s=0.3))
    with pytest.raises(CallDeadline, match=r"0\.3 s"):
        begin(host, image, b"later(20, b'')").result()
    with pytest.raises(CallDeadline, match=r"0\.1 s"):
        begin(host, image, b"later(20, b'')", timeout_s=0.1).result()


def test_the_deadline_holds_while_an_ask_is_answered(host: SandboxHost, bundles: Path) -> None:
    image = program(bundles, RUNS, limits=Limits(wall_s=0.3))

    def slow(ask: bytes) -> bytes:
        time.sleep(1.0)
        return ask

    with pytest.raises(CallDeadline):
        begin(host, image, b"channel.ask(b'x')", answer=slow).result()


def test_a_call_whose_result_nobody_waits_for_ends_at_its_deadline(host: SandboxHost, bundles: Path) -> None:
    image = program(bundles, RUNS, limits=Limits(wall_s=0.3))
    call = begin(host, image, b"later(20, b'')")
    time.sleep(1.0)
    with pytest.raises(CallDeadline):
        call.result()


def test_cancelling_ends_a_call_from_another_thread(host: SandboxHost, runs: FunctionImage) -> None:
    call = begin(host, runs, b"later(25, b'')")
    threading.Timer(0.2, call.cancel).start()
    with pytest.raises(CallCancelled):
        call.result()
    call.cancel()
    assert begin(host, runs, b"b'fine'").result() == b"fine"


def test_ending_a_call_leaves_the_others_of_its_function(host: SandboxHost, runs: FunctionImage) -> None:
    """However the moment falls between two looks at the call: each is a hundredth of a second later than the last."""
    other = begin(host, runs, b"later(4, b'untouched')")
    for hundredth in range(20):
        call = begin(host, runs, b"later(25, b'')")
        timer = threading.Timer(hundredth / 100, call.cancel)
        timer.start()
        with pytest.raises(CallCancelled):
            call.result()
        timer.join()
    assert other.result() == b"untouched"


def test_how_a_process_ended_is_told(host: SandboxHost, runs: FunctionImage) -> None:
    with pytest.raises(CallCrashed, match="exited with code 3") as exited:
        begin(host, runs, b"os._exit(3)").result()
    assert (exited.value.exit_code, exited.value.signal) == (3, None)
    with pytest.raises(CallCrashed, match="SIGSEGV") as crashed:
        begin(host, runs, b"__import__('ctypes').string_at(0)").result()
    assert crashed.value.signal == 11


def test_how_many_processes_ended_is_told_to_each(host: SandboxHost, runs: FunctionImage) -> None:
    def code(number: int) -> int | None:
        with pytest.raises(CallCrashed) as exited:
            begin(host, runs, b"os._exit(%d)" % number).result()
        return exited.value.exit_code

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(code, range(1, 41))) == list(range(1, 41))


def test_what_the_program_raises_is_told(host: SandboxHost, runs: FunctionImage) -> None:
    with pytest.raises(CallFailed) as raised:
        begin(host, runs, b"{}['absent']").result()
    assert (raised.value.type_name, raised.value.text) == ("KeyError", "'absent'")


@pytest.mark.parametrize(
    "left",
    [
        "setattr(sys, 'stdout', None)",
        "setattr(sys, 'stderr', 5)",
        "setattr(sys, 'stdout', type('Ends', (), {'flush': lambda self: sys.exit(3)})())",
        "(sys.stdout.detach(), sys.stderr.close())",
    ],
)
def test_a_function_that_leaves_no_streams_has_a_result(host: SandboxHost, bundles: Path, left: str) -> None:
    image = program(bundles, f"import sys\n{ECHO}\n\ndef run(request, channel):\n    {left}\n    return request\n")
    assert begin(host, image, b"given").result() == b"given"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("import absent_module", "ModuleNotFoundError: No module named 'absent_module'"),
        ("def prepare(document: raise", "SyntaxError"),
        ("def prepare(document):\n    raise ValueError('unprepared')", "ValueError: unprepared"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import os\nos._exit(0)", "ended while its code was imported"),
        ("import ctypes\nctypes.string_at(0)", "ended while its code was imported"),
        ("kept = bytearray(1 << 40)", "MemoryError"),
        ("open('/tmp/x', 'w')\n", "OSError|PermissionError"),
        ("import threading, time\nthreading.Thread(target=time.sleep, args=(9,), daemon=True).start()", "threads"),
        ("import os, time\nif os.fork() == 0:\n    time.sleep(9)", "processes"),
    ],
)
def test_code_that_cannot_be_imported_is_told(host: SandboxHost, bundles: Path, source: str, text: str) -> None:
    image = program(bundles, source + "\n" + (ECHO if "def prepare" not in source else ""))
    with pytest.raises(FunctionBroken, match=text):
        host.warm(image)
    with pytest.raises(FunctionBroken, match=text):
        begin(host, image)


@pytest.mark.parametrize(
    ("source", "text"), [("raise ValueError('why')", "why"), ("import os; os._exit(0)", "imported")]
)
def test_why_code_cannot_be_imported_is_told_to_a_host_that_looks_late(
    bundles: Path, source: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive = proof.receive_with_descriptor

    def receive_late(connection: socket.socket, size: int) -> tuple[bytes, int, int]:
        message, pid, descriptor = receive(connection, size)
        give_up = time.monotonic() + 20
        while message.startswith(init.MOUNTED) and Path(f"/proc/{pid}").exists() and time.monotonic() < give_up:
            time.sleep(0.01)
        return message, pid, descriptor

    image = program(bundles, source)
    with closing(SandboxHost(bundles)) as host:  # which has no other function that it would wait for
        host.start()
        monkeypatch.setattr(proof, "receive_with_descriptor", receive_late)
        with pytest.raises(FunctionBroken, match=text):
            host.warm(image)


def test_a_bundle_elsewhere_is_refused(host: SandboxHost, tmp_path: Path) -> None:
    with pytest.raises(SandboxUnavailable, match="not a directory below"):
        host.warm(FunctionImage("elsewhere", tmp_path, b"", Limits()))


def test_views_say_what_is_warm(host: SandboxHost, runs: FunctionImage) -> None:
    call = begin(host, runs, b"later(0.5, b'')")
    [view] = [view for view in host.views() if view.key == runs.key]
    call.result()
    assert view.running == 1
    assert len(view.pids) == 2
    assert all(Path(f"/proc/{pid}").exists() for pid in view.pids)
    assert view.started <= view.used <= time.time()
    assert 1 << 20 < view.pss_bytes < 64 << 20
