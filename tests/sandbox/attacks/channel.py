"""The channel: garbage, floods, lies about lengths, wrong order."""

from __future__ import annotations

import os
import random
import socket
import struct
import time
from typing import NoReturn

from tests.sandbox.attacks.corpus import Channel, attack

CHANNEL = 3
HELLO, REQUEST, RESULT, FAILURE, ASK, ANSWER, ANSWER_FAILED, ITEM = range(1, 9)


def _send(kind: int, payload: bytes, length: int | None = None) -> None:
    _write(struct.pack("!BI", kind, len(payload) if length is None else length) + payload)


def _ask(number: int, content: bytes) -> None:
    _send(ASK, struct.pack("!I", number) + content)


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(CHANNEL, data) :]


def _socket() -> socket.socket:
    return socket.socket(fileno=os.dup(CHANNEL))


def _linger() -> NoReturn:
    while True:
        time.sleep(1000)


@attack
def garbage(_: Channel) -> object:
    _write(random.Random(1).randbytes(10_000))
    _linger()


@attack
def zeros(_: Channel) -> object:
    _write(bytes(4096))
    _linger()


@attack
def length_of_4_gibibytes(_: Channel) -> object:
    _send(RESULT, b"", 0xFFFF_FFFF)
    _linger()


@attack
def ask_of_4_gibibytes(_: Channel) -> object:
    _send(ASK, b"", 0xFFFF_FFFF)
    _linger()


@attack
def ask_above_the_limit(_: Channel) -> object:
    _send(ASK, b"", 6 << 20)
    _linger()


@attack
def unknown_kind(_: Channel) -> object:
    _send(99, b"x")
    _linger()


@attack
def second_hello(_: Channel) -> object:
    _send(HELLO, b"\0\1")
    _linger()


@attack
def hosts_kinds(_: Channel) -> object:
    _send(REQUEST, b"x")
    _linger()


@attack
def answer_to_nobody(_: Channel) -> object:
    _send(ANSWER, b"x")
    _linger()


@attack
def flood_of_asks(_: Channel) -> object:
    """Asks without waiting for answers."""
    number = 0
    while True:
        _ask(number := number + 1, b"x")


@attack
def asks_without_numbers(_: Channel) -> object:
    while True:
        _send(ASK, b"x")


@attack
def asks_of_one_number(_: Channel) -> object:
    while True:
        _ask(1, b"x")


@attack
def items_that_nobody_wants(_: Channel) -> object:
    _send(ITEM, b"[]")
    _linger()


@attack
def flood_of_results(_: Channel) -> object:
    _write(1000 * (struct.pack("!BI", RESULT, 1) + b"x"))
    _linger()


@attack
def flood_of_bytes(_: Channel) -> object:
    while True:
        _write(b"\x03" * (1 << 20))


@attack
def half_a_frame(_: Channel) -> object:
    _write(b"\x03\0\0")
    _linger()


@attack
def half_a_result(_: Channel) -> object:
    _send(RESULT, b"x" * 10, 100)
    os.close(CHANNEL)
    _linger()


@attack
def half_a_frame_and_gone(_: Channel) -> object:
    _write(b"\x05\0\0")
    os._exit(0)


@attack
def slow_drip(_: Channel) -> object:
    _write(struct.pack("!BI", RESULT, 1000))
    while True:
        _write(b"x")
        time.sleep(0.01)


@attack
def urgent_data(_: Channel) -> object:
    """Which a socket has beside its stream: a reader is woken up, and finds nothing."""
    with _socket() as channel:
        channel.send(b"x", socket.MSG_OOB)
    _linger()


@attack
def much_urgent_data(_: Channel) -> object:
    with _socket() as channel:
        while True:
            channel.send(b"x", socket.MSG_OOB)
            time.sleep(0.01)


@attack
def urgent_data_between_honest_asks(channel: Channel) -> object:
    with _socket() as urgent:
        for number in range(20):
            urgent.send(b"x", socket.MSG_OOB)  # one, until the answer: the first of two becomes one of the stream
            if channel.ask(b"%d" % number) != b"%d" % number:
                return "a wrong answer"
    return None


@attack
def descriptors_on_the_channel(_: Channel) -> object:
    """They would be closed, and all that this takes be done, by the reader."""
    with _socket() as channel:
        return socket.send_fds(channel, [b""], [0])


@attack
def descriptors_under_way_in_themselves(_: Channel) -> object:
    made = 0
    while made < 1000:
        here, there = socket.socketpair()
        made += socket.send_fds(here, [b"x"], [here.fileno(), there.fileno()])
    return made


@attack
def a_frame_byte_by_byte(_: Channel) -> object:
    _write(struct.pack("!BI", RESULT, 1 << 20))
    while True:
        _write(b"x")


@attack
def close_and_stay(_: Channel) -> object:
    os.close(CHANNEL)
    _linger()


@attack
def failure_that_cannot_be_read(_: Channel) -> object:
    _send(FAILURE, b"\0\xff\xff")
    _linger()


@attack
def failure_of_no_cause(_: Channel) -> object:
    _send(FAILURE, b"\x63\0\0")
    _linger()


@attack
def failure_in_no_encoding(_: Channel) -> object:
    _send(FAILURE, b"\0\0\1\xff\xfe\xfd")
    _linger()


@attack
def never_read_the_answer(channel: Channel) -> object:
    """Large answers that nobody takes: the worker's thread must not wait beyond the deadline."""
    number = 0
    while True:
        _ask(number := number + 1, b"large")
        time.sleep(0.05)


@attack
def many_honest_asks(channel: Channel) -> object:
    for number in range(200):
        if channel.ask(b"%d" % number) != b"%d" % number:
            return "a wrong answer"
    return None


@attack
def threads_that_ask(channel: Channel) -> object:
    import threading

    wrong: list[bytes] = []

    def ask(number: int) -> None:
        for step in range(20):
            question = b"%d-%d" % (number, step)
            if channel.ask(question) != question:
                wrong.append(question)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong


@attack
def forged_result_while_asking(_: Channel) -> object:
    _write(struct.pack("!BII", ASK, 5, 1) + b"x" + struct.pack("!BI", RESULT, 1) + b"y")
    _linger()
