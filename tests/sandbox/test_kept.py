"""Processes that serve calls of one owner one after another, and what ends them."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pyseccomp
import pytest

from taskworker.sandbox import (
    CallDeadline,
    CallFailed,
    CallRefused,
    FunctionImage,
    Keep,
    LimitExceeded,
    Limits,
    ProtocolViolation,
    SandboxHost,
)
from taskworker.sandbox.frames import Cause
from taskworker.sandbox.kept import IDLE_S, KEPT_MAX
from tests.sandbox.bundles import begin, program
from tests.sandbox.conftest import Clock

SOURCE = """
import ctypes
import os
import signal
import threading
import time

from taskworker.sandbox.frames import Cause
from taskworker.sandbox.inside.channel import CallFailure

calls = 0
kept = []

def prepare(document):
    global timer_create
    timer_create = int(document or 0)

def refuse(cause):
    raise CallFailure(Cause(cause), "ValueError", "no")

def spin(seconds):
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass

RESULT = b"\\x03\\0\\0\\0\\x06(9, 0)"

def done_and(*more):
    os.write(3, RESULT)  # and the call goes on
    time.sleep(0.3)
    for act in more:
        act()
    time.sleep(3600)

def timer():
    event = (ctypes.c_char * 64)(*bytes(12), 1)  # SIGEV_NONE
    assert not ctypes.CDLL(None).syscall(timer_create, 1, event, ctypes.byref(ctypes.c_int()))

def alarm(seconds):
    signal.setitimer(signal.ITIMER_REAL, seconds)

def files(count):
    for number in range(count):
        open(f"file {number}", "w").close()

def spin_on():
    signal.signal(signal.SIGXCPU, signal.SIG_IGN)
    spin(3600)

def sleeps():
    threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()

def run(request, channel):
    global calls
    calls += 1
    return repr((calls, eval(request))).encode()
"""
LIMITS = Limits(wall_s=20.0, memory_bytes=64 << 20, cpu_s=1.0, output_bytes=1000, disk_bytes=4 << 20)
TIMER_CREATE = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, "timer_create")
DEADLINE_S = 60.0
KEEP = Keep(calls=1000, seconds=600.0)


def told(host: SandboxHost, image: FunctionImage, code: bytes = b"0", owner: str = "ann") -> tuple[int, object]:
    return eval(begin(host, image, code, owner=owner).result())  # type: ignore[no-any-return]


def image_of(bundles: Path, keep: Keep = KEEP) -> FunctionImage:
    return program(bundles, SOURCE, limits=LIMITS, keep=keep, document=b"%d" % TIMER_CREATE)


def wait_until(met: Callable[[], bool]) -> None:
    until = time.monotonic() + DEADLINE_S
    while not met():
        assert time.monotonic() < until
        time.sleep(0.02)


def kept(host: SandboxHost, image: FunctionImage) -> int:
    return next(view.kept for view in host.views() if view.key == image.key)


def _add(pieces: list[bytes], _stream: str, piece: bytes) -> None:
    pieces.append(piece)


def test_one_process_serves_an_owner_s_calls(host: SandboxHost, bundles: Path) -> None:
    image = image_of(bundles)
    pids = {told(host, image, b"os.getpid()", owner="one")[1] for _ in range(50)}
    assert len(pids) == 1
    assert told(host, image, owner="one")[0] == 51


def test_owners_share_no_process(host: SandboxHost, bundles: Path) -> None:
    image = image_of(bundles)
    for owner in ("x", "y", ""):
        assert told(host, image, b"kept.append(1)", owner=f"apart {owner}")[0] == 1
    assert told(host, image, b"kept", owner="apart x") == (2, [1])
    with ThreadPoolExecutor(8) as callers:
        seen = list(callers.map(lambda n: told(host, image, b"kept.append(%d) or set(kept)" % n, f"{n}"), range(8)))
        seen += callers.map(lambda n: told(host, image, b"kept.append(%d) or set(kept)" % n, f"{n}"), range(8))
    assert [found for _, found in seen] == [{n} for n in range(8)] * 2


def test_calls_of_one_owner_at_the_same_time_have_processes_of_their_own(host: SandboxHost, bundles: Path) -> None:
    image = image_of(bundles)
    code = b"(channel.ask(b'') and 0) or os.getpid()"
    with ThreadPoolExecutor(3) as callers:
        calls = [begin(host, image, code, owner="many") for _ in range(3)]
        assert len({eval(result)[1] for result in callers.map(lambda call: call.result(), calls)}) == 3


def test_a_process_that_is_not_kept_serves_once(host: SandboxHost, bundles: Path) -> None:
    image = program(bundles, SOURCE, limits=LIMITS)
    assert [told(host, image)[0] for _ in range(3)] == [1, 1, 1]


def test_a_process_serves_so_many_calls_and_so_long(host: SandboxHost, bundles: Path, clock: Clock) -> None:
    few = image_of(bundles, Keep(calls=3, seconds=600.0))
    assert [told(host, few)[0] for _ in range(7)] == [1, 2, 3, 1, 2, 3, 1]
    brief = image_of(bundles, Keep(calls=1000, seconds=20.0))
    assert [told(host, brief)[0] for _ in range(2)] == [1, 2]
    clock.ahead_s += 20.1
    assert told(host, brief)[0] == 1


def test_a_process_waits_for_a_minute_at_most(host: SandboxHost, bundles: Path, clock: Clock) -> None:
    image = image_of(bundles)
    assert told(host, image, owner="rarely")[0] == 1
    assert kept(host, image) > 0
    clock.ahead_s += IDLE_S + 0.1
    wait_until(lambda: kept(host, image) == 0)
    assert told(host, image, owner="rarely")[0] == 1


@pytest.mark.parametrize(
    ("code", "raised"),
    [
        (b"threading.Thread(target=time.sleep, args=(60,), daemon=True).start()", None),
        (b"print('x' * 2000)", None),
        (b"kept.append(bytearray(40 << 20)) or 0", None),
        (b"[kept.append(os.open('.', os.O_RDONLY)) for _ in range(40)] and 0", None),
        (b"open('large', 'wb').write(bytes(3 << 20)) and 0", None),
        (b"files(200)", None),
        (b"timer()", None),
        (b"bytearray(1 << 30)", LimitExceeded),
        (b"spin(5)", LimitExceeded),
        (b"1 / 0", CallFailed),
        (b"os._exit(3)", Exception),
    ],
)
def test_a_call_that_misbehaves_ends_its_process(
    host: SandboxHost, bundles: Path, code: bytes, raised: type[Exception] | None
) -> None:
    image = image_of(bundles)
    owner = repr(code)
    assert told(host, image, owner=owner)[0] == 1
    if raised is None:
        assert told(host, image, code, owner=owner)[0] == 2
    else:
        with pytest.raises(raised):
            told(host, image, code, owner=owner)
    assert told(host, image, owner=owner)[0] == 1


@pytest.mark.parametrize("cause", [Cause.ARGUMENTS, Cause.EXCEPTION, Cause.RESULT])
def test_what_the_function_raises_is_no_misbehaviour(host: SandboxHost, bundles: Path, cause: Cause) -> None:
    image = image_of(bundles)
    owner = cause.name
    assert told(host, image, owner=owner)[0] == 1
    with pytest.raises(CallRefused, match="ValueError: no") as refused:
        told(host, image, b"refuse(%d)" % cause, owner=owner)
    assert refused.value.cause is cause
    assert told(host, image, owner=owner)[0] == 3


def test_a_call_that_is_ended_ends_its_process(host: SandboxHost, bundles: Path) -> None:
    image = image_of(bundles)
    assert told(host, image, owner="late")[0] == 1
    with pytest.raises(CallDeadline):
        begin(host, image, b"time.sleep(60)", owner="late", timeout_s=0.1).result()
    assert told(host, image, owner="late")[0] == 1


def test_limits_are_those_of_each_call(host: SandboxHost, bundles: Path) -> None:
    image = image_of(bundles)
    for number in range(4):  # 2 s of processor time, where a call may take 1
        call = begin(host, image, b"spin(0.5)", owner="busy")
        assert eval(call.result())[0] == number + 1
        assert 0.4 < call.cpu_s < 1.0


def test_what_a_call_prints_is_its_own(host: SandboxHost, bundles: Path) -> None:
    image = image_of(bundles)
    for number in range(3):
        printed: list[bytes] = []
        begin(host, image, b"print(%d)" % number, owner="prints", output=functools.partial(_add, printed)).result()
        assert b"".join(printed) == b"%d\n" % number


def test_what_comes_between_two_calls_ends_the_process(host: SandboxHost, bundles: Path) -> None:
    image = image_of(bundles)
    forge = b"os.write(3, b'\\x03\\0\\0\\0\\x06(9, 0)') and 0"
    with contextlib.suppress(ProtocolViolation):  # where both results come at once
        assert told(host, image, forge, owner="forger") == (9, 0)
    time.sleep(0.2)  # its second result has come by then
    assert told(host, image, owner="forger")[0] == 1


def test_a_process_that_takes_no_answers_is_not_kept(host: SandboxHost, bundles: Path) -> None:
    """The thread that sends one would wait for it as long as it is kept."""
    image = image_of(bundles)
    ask, result = b"\\x05\\0\\0\\0\\x04\\0\\0\\0\\1", b"\\x03\\0\\0\\0\\x06(9, 0)"
    unread = b"[os.write(3, b'%s'), time.sleep(0.3), os.write(3, b'%s'), time.sleep(60)]" % (ask, result)
    with contextlib.suppress(ProtocolViolation):  # where the answer is not even begun with by then
        assert begin(host, image, unread, owner="deaf", answer=lambda ask: bytes(4 << 20)).result() == b"(9, 0)"
    assert told(host, image, owner="deaf")[0] == 1


def test_as_many_are_kept_as_may_be(host: SandboxHost, bundles: Path) -> None:
    image = image_of(bundles)
    for number in range(KEPT_MAX + 8):
        assert told(host, image, owner=f"owner {number}")[0] == 1
    assert told(host, image, owner=f"owner {KEPT_MAX + 7}")[0] == 2


def test_what_a_call_leaves_within_bounds_is_there_for_the_owner_s_next_one(host: SandboxHost, bundles: Path) -> None:
    image = image_of(bundles)
    little = b"kept.extend([os.open('.', os.O_RDONLY) for _ in range(9)]) or open('mine', 'wb').write(bytes(1 << 20))"
    assert told(host, image, little, owner="leaves") == (1, 1 << 20)
    assert told(host, image, b"(len(kept), os.listdir('.'))", owner="leaves") == (2, (9, ["mine"]))
    assert told(host, image, b"(len(kept), os.listdir('.'))", owner="another") == (1, (0, []))


def test_an_alarm_of_one_call_does_not_come_in_the_next(host: SandboxHost, bundles: Path) -> None:
    image = image_of(bundles)
    assert told(host, image, b"alarm(0.3)", owner="alarmed") == (1, None)
    assert told(host, image, b"time.sleep(0.6)", owner="alarmed") == (2, None)


@pytest.mark.parametrize(
    "act",
    [
        "lambda: os.write(1, b'of whom?')",
        "lambda: os.write(2, b'of whom?')",
        "spin_on",
        "sleeps",
        "lambda: os._exit(0)",
        "lambda: os.write(3, RESULT)",
        "lambda: os.write(3, b'\\x05\\0\\0\\0\\x04\\0\\0\\0\\1')",  # an ask
    ],
)
def test_a_process_that_acts_between_two_calls_is_ended(host: SandboxHost, bundles: Path, act: str) -> None:
    """Each call has said that it is done: what comes after that must not be the next one's."""
    image = program(bundles, SOURCE + f"# {act}", limits=LIMITS, keep=KEEP)
    asked: list[bytes] = []

    def answer(ask: bytes) -> bytes:
        asked.append(ask)
        return b""

    call = begin(host, image, f"done_and({act})".encode(), answer=answer)
    assert call.result() == b"(9, 0)"
    wait_until(lambda: not kept(host, image))
    printed: list[bytes] = []
    assert eval(begin(host, image, b"0", output=functools.partial(_add, printed)).result()) == (1, 0)
    assert (printed, asked) == ([], [])


def test_a_process_that_waits_makes_room_for_another_owner_s_call(host: SandboxHost, bundles: Path) -> None:
    image = program(bundles, SOURCE, limits=Limits(threads=4000), keep=KEEP)  # so that there is one at a time
    for owner in ("first", "second", "first"):
        assert told(host, image, owner=owner)[0] == 1


def test_output_is_bounded_for_each_call(host: SandboxHost, bundles: Path) -> None:
    image = image_of(bundles)
    for number in range(1, 4):
        call = begin(host, image, b"print('x' * 600)", owner="talks")
        assert eval(call.result())[0] == number
        assert not call.output_truncated


@contextlib.contextmanager
def call_under_way(host: SandboxHost, image: FunctionImage) -> Iterator[tuple[Future[bytes], threading.Event]]:
    """A call of ann's that asks something, and the event that it waits for to be answered."""
    go_on = threading.Event()

    def answer(_ask: bytes) -> bytes:
        assert go_on.wait(DEADLINE_S)
        return b"answered"

    with ThreadPoolExecutor(1) as caller:
        yield caller.submit(begin(host, image, b"channel.ask(b'')", owner="ann", answer=answer).result), go_on


def test_an_image_that_is_called_no_more_ends_when_its_calls_have_ended(host: SandboxHost, bundles: Path) -> None:
    image = program(bundles, SOURCE + "# replaced", limits=LIMITS, keep=KEEP)
    assert told(host, image, owner="ann")[0] == told(host, image, owner="bob")[0] == 1
    with call_under_way(host, image) as (call, go_on):
        host.end_when_idle(image.key)
        wait_until(lambda: not kept(host, image))  # of all users
        assert {image.key} <= host.keys()
        go_on.set()
        assert call.result() == b"(2, b'answered')"
    wait_until(lambda: not {image.key} & host.keys())
    assert told(host, image, owner="ann")[0] == 1
    host.end_when_idle("unknown")


def test_an_image_that_was_to_end_and_is_warmed_again_stays(host: SandboxHost, bundles: Path) -> None:
    image = program(bundles, SOURCE + "# warmed again", limits=LIMITS, keep=KEEP)
    with call_under_way(host, image) as (call, go_on):
        host.end_when_idle(image.key)
        host.warm(image)
        go_on.set()
        assert call.result() == b"(1, b'answered')"
    assert told(host, image, owner="ann")[0] == 2


@pytest.mark.parametrize(("code", "left"), [(b"0", 3), (b"kept.append(bytearray(20 << 20)) or 0", 1)])
def test_those_that_wait_are_bounded_in_all_functions_together(bundles: Path, code: bytes, left: int) -> None:
    images = [program(bundles, SOURCE + f"# {number}", limits=LIMITS, keep=KEEP) for number in range(2)]
    with contextlib.closing(SandboxHost(bundles, kept_max=3, kept_bytes_max=30 << 20)) as host:
        host.start()
        for owner in ("first", "second", "last"):
            for image in images:
                assert told(host, image, code, owner=owner) == (1, 0)
        wait_until(lambda: sum(kept(host, image) for image in images) == left)
        assert told(host, images[1], owner="last")[0] == 2
        assert told(host, images[0], owner="first")[0] == 1


def test_a_process_whose_result_is_refused_serves_no_further_call(bundles: Path, host: SandboxHost) -> None:
    """It may have been written by code that goes on, and would have the next call wait for it."""
    image = program(bundles, SOURCE, limits=LIMITS, keep=KEEP)

    def check(result: bytes) -> None:
        raise ValueError(f"unreadable: {result!r}")

    assert told(host, image) == (1, 0)
    with pytest.raises(ValueError, match="unreadable"):
        begin(host, image, b"done_and()", owner="ann", check=check).result()
    assert told(host, image) == (1, 0)
    assert told(host, image) == (2, 0)
