"""Taking more than one's share: memory, time, threads, descriptors, disk, output."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

from tests.sandbox.attacks.corpus import LIBC, Channel, attack

GIB = 1 << 30


@attack
def allocate_100_gigabytes(_: Channel) -> object:
    return bytearray(100 * GIB)


@attack
def allocate_bit_by_bit(_: Channel) -> object:
    kept = []
    while True:
        kept.append(bytearray(1 << 20))


@attack
def map_100_gigabytes(_: Channel) -> object:
    return mmap.mmap(-1, 100 * GIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


@attack
def allocate_by_libc(_: Channel) -> object:
    LIBC.malloc.restype = ctypes.c_void_p
    return LIBC.malloc(ctypes.c_size_t(100 * GIB))


@attack
def grow_a_string(_: Channel) -> object:
    text = "x" * 1000
    while True:
        text += text


@attack
def huge_integer(_: Channel) -> object:
    return (1 << (1 << 40)) and "computed"


@attack
def spin(_: Channel) -> object:
    while True:
        pass


@attack
def spin_in_c(_: Channel) -> object:
    return re.match(r"(a+)+$", "a" * 64 + "b")


@attack
def spin_and_ignore_the_limit(_: Channel) -> object:
    signal.signal(signal.SIGXCPU, signal.SIG_IGN)
    while True:
        pass


@attack
def spin_in_threads(_: Channel) -> object:
    def spin() -> NoReturn:
        while True:
            pass

    for _number in range(4):
        threading.Thread(target=spin, daemon=True).start()
    spin()


@attack
def sleep_for_ever(_: Channel) -> object:
    while True:
        time.sleep(1000)


@attack
def many_threads(_: Channel) -> object:
    threading.stack_size(32 << 10)
    started = 0
    try:
        for _number in range(100_000):
            threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
            started += 1
    except RuntimeError:
        pass
    time.sleep(1000)
    return started


@attack
def many_descriptors(_: Channel) -> object:
    opened = []
    try:
        while True:
            opened.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        return len(opened) if len(opened) > 64 else None


@attack
def many_pipes(_: Channel) -> object:
    opened = []
    try:
        while True:
            opened.append(os.pipe())
    except OSError:
        return len(opened) if len(opened) > 64 else None


@attack
def descriptor_with_a_high_number(_: Channel) -> object:
    return os.dup2(0, 100_000)


@attack
def fill_the_disk(_: Channel) -> object:
    written = 0
    try:
        for number in range(1000):
            with Path(f"file{number}").open("wb", buffering=0) as file:
                written += file.write(bytes(1 << 20))
    except OSError:
        pass
    return written if written > 64 << 20 else None


@attack
def one_large_file(_: Channel) -> object:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with Path("large").open("wb") as file:
        file.truncate(1 << 40)
    return "made"


@attack
def many_files(_: Channel) -> object:
    made = 0
    try:
        while True:
            Path(f"{made}").touch()
            made += 1
    except OSError:
        return made if made > 10_000 else None


@attack
def deep_directories(_: Channel) -> object:
    depth = 0
    try:
        while True:
            os.mkdir("d")
            os.chdir("d")
            depth += 1
    except OSError:
        return depth if depth > 10_000 else None


@attack
def fill_a_pipe_nobody_reads(_: Channel) -> object:
    _reader, writer = os.pipe()
    os.set_blocking(writer, False)
    written = 0
    try:
        while True:
            written += os.write(writer, bytes(1 << 16))
    except BlockingIOError:
        return written if written > 1 << 20 else None


@attack
def flood_output(_: Channel) -> object:
    line = "x" * 1000 + "\n"
    for _number in range(20_000):
        sys.stdout.write(line)
        sys.stderr.write(line)
    return None


@attack
def flood_output_for_ever(_: Channel) -> object:
    while True:
        os.write(1, bytes(1 << 16))


@attack
def deep_recursion(_: Channel) -> object:
    sys.setrecursionlimit(10**9)

    def deeper(depth: int) -> int:
        return sorted([depth], key=lambda _: deeper(depth + 1))[0]

    return deeper(0)


@attack
def core_dump(_: Channel) -> object:
    return ctypes.memset(0, 0, 1)
