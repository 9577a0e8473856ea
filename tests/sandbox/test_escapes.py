"""The escape corpus: programs that try to get out or to do harm, with no guard in Python at all."""

from __future__ import annotations

import importlib
import json
import pkgutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyseccomp
import pytest

from taskworker.sandbox import (
    CallCrashed,
    CallDeadline,
    CallFailed,
    FunctionImage,
    LimitExceeded,
    Limits,
    ProtocolViolation,
    SandboxError,
    SandboxHost,
)
from tests.sandbox import attacks
from tests.sandbox.attacks.corpus import ATTACKS
from tests.sandbox.bundles import begin, corpus, program

for _module in pkgutil.iter_modules(attacks.__path__):
    importlib.import_module(f"{attacks.__name__}.{_module.name}")

LIMITS = Limits(memory_bytes=128 << 20, cpu_s=0.6, wall_s=20.0, open_files=64, output_bytes=1 << 20)
LINGER_S = 0.5
"""Of attacks that would never end: long enough for them to do what they do."""
SYSTEM_CALLS = """
    mount umount2 fsopen open_tree move_mount mount_setattr fspick chroot pivot_root unshare setns clone clone3
    socket keyctl add_key request_key bpf perf_event_open userfaultfd io_uring_setup init_module finit_module
    delete_module kexec_load reboot swapon acct syslog quotactl clock_settime settimeofday adjtimex sethostname
    setdomainname iopl ioperm modify_ldt personality shmget msgget semget mq_open prctl seccomp ioprio_set
    socketpair fcntl ioctl move_pages migrate_pages process_madvise mbind vmsplice open_by_handle_at
    name_to_handle_at memfd_create memfd_secret inotify_init1 fanotify_init execveat tkill tgkill rt_sigqueueinfo
    timer_create
    pidfd_open pidfd_send_signal pidfd_getfd ptrace process_vm_readv process_vm_writev kcmp setfsuid capset capget
    flock getsockopt fsync fdatasync sync_file_range msync fadvise64
"""
NEWER_SYSTEM_CALLS = {"statmount": 457, "listmount": 458, "memfd_secret": 447, "process_madvise": 440}
"""The same on all architectures; libseccomp may be older than they are."""

ENDS_BY: dict[str, type[SandboxError] | tuple[type[SandboxError], ...]] = {
    "allocate_100_gigabytes": LimitExceeded,
    "allocate_bit_by_bit": LimitExceeded,
    "grow_a_string": LimitExceeded,
    "huge_integer": LimitExceeded,
    "spin": LimitExceeded,
    "spin_in_c": LimitExceeded,
    "spin_and_ignore_the_limit": LimitExceeded,
    "spin_in_threads": LimitExceeded,
    "many_threads": LimitExceeded,
    "threads_that_start_threads": LimitExceeded,
    "sleep_for_ever": CallDeadline,
    "ignore_every_signal": CallDeadline,
    "flood_output_for_ever": (LimitExceeded, CallDeadline),
    "deep_recursion": (CallCrashed, LimitExceeded, CallFailed),
    "core_dump": CallCrashed,
    "crash": CallCrashed,
    "abort": CallCrashed,
    "exit_early": CallCrashed,
    "exit_by_exception": CallFailed,
    "x32_system_calls": CallCrashed,
    "i386_system_calls": CallCrashed,
    "garbage": ProtocolViolation,
    "zeros": ProtocolViolation,
    "length_of_4_gibibytes": ProtocolViolation,
    "ask_of_4_gibibytes": ProtocolViolation,
    "ask_above_the_limit": ProtocolViolation,
    "unknown_kind": ProtocolViolation,
    "second_hello": ProtocolViolation,
    "hosts_kinds": ProtocolViolation,
    "answer_to_nobody": ProtocolViolation,
    "flood_of_asks": (ProtocolViolation, CallDeadline),
    "asks_without_numbers": ProtocolViolation,
    "asks_of_one_number": (ProtocolViolation, CallDeadline),
    "items_that_nobody_wants": ProtocolViolation,
    "flood_of_results": ProtocolViolation,
    "flood_of_bytes": ProtocolViolation,
    "failure_that_cannot_be_read": ProtocolViolation,
    "failure_of_no_cause": ProtocolViolation,
    "failure_in_no_encoding": ProtocolViolation,
    "forged_result_while_asking": ProtocolViolation,
    "half_a_frame": CallDeadline,
    "slow_drip": CallDeadline,
    "a_frame_byte_by_byte": CallDeadline,
    "urgent_data": CallDeadline,
    "much_urgent_data": (ProtocolViolation, CallDeadline),  # the first of two that wait becomes one of the stream
    "never_read_the_answer": CallDeadline,
    "half_a_result": CallCrashed,
    "half_a_frame_and_gone": CallCrashed,
    "close_and_stay": CallCrashed,
}
"""How the host reports attacks that do not end by themselves. The others are refused, or get nothing."""
INNOCENT = """
import json

def prepare(document):
    pass

def run(request, channel):
    numbers = json.loads(request)
    return json.dumps([sum(numbers), channel.ask(b"INNOCENT-REQUEST").decode()]).encode()
"""


@dataclass
class Innocent:
    """Somebody else's function, called all the time meanwhile."""

    host: SandboxHost
    image: FunctionImage
    calls: int = 0
    wrong: list[object] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self.stop.wait(0.01):
            try:
                result = json.loads(begin(self.host, self.image, json.dumps([self.calls, 1]).encode()).result())
            except SandboxError as error:
                self.wrong.append(error)
            else:
                if result != [self.calls + 1, "INNOCENT-REQUEST"]:
                    self.wrong.append(result)
            self.calls += 1


@pytest.fixture(scope="module")
def attacked(host: SandboxHost, bundles: Path) -> FunctionImage:
    numbers = {name: pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name) for name in SYSTEM_CALLS.split()}
    known = {name: number for name, number in numbers.items() if number >= 0}
    image = corpus(bundles, json.dumps(known | NEWER_SYSTEM_CALLS).encode(), LIMITS)
    host.warm(image)
    return image


@pytest.fixture(scope="module")
def innocent(host: SandboxHost, bundles: Path) -> Iterator[Innocent]:
    innocent = Innocent(host, program(bundles, INNOCENT))
    thread = threading.Thread(target=innocent.run)
    thread.start()
    yield innocent
    innocent.stop.set()
    thread.join()
    assert innocent.calls > 0
    assert innocent.wrong == []


def answer(ask: bytes) -> bytes:
    return bytes(4 << 20) if ask == b"large" else ask


@pytest.mark.parametrize("name", ATTACKS)
def test_the_kernel_holds(name: str, host: SandboxHost, attacked: FunctionImage, innocent: Innocent) -> None:
    expected = ENDS_BY.get(name)
    lingers = expected is not None and issubclass(CallDeadline, expected)
    timeout_s = LINGER_S if lingers else None
    if expected is not None:
        with pytest.raises(expected):
            begin(host, attacked, name.encode(), timeout_s=timeout_s, answer=answer).result()
    else:
        said = begin(host, attacked, name.encode(), answer=answer).result()
        assert said.startswith((b"refused", b"nothing")), said
    assert innocent.wrong == []


def test_attacks_are_many() -> None:
    assert len(ATTACKS) >= 80
    assert ENDS_BY.keys() <= ATTACKS.keys()


def test_after_all_attacks_the_function_still_answers(host: SandboxHost, attacked: FunctionImage) -> None:
    assert begin(host, attacked, b"read_shadow_through_parents").result().startswith(b"refused: FileNotFoundError")
