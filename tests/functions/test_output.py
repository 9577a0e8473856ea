"""What a call prints, as lines: however it comes in pieces, and however much of it there is."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from taskworker.calls.call import LINE_CHARS_MAX, LINES_MAX, OutputLine
from taskworker.calls.large_reports import conversion_permit
from taskworker.calls.redaction import MARK, Redactor
from taskworker.functions.hosting.output import Output


def texts(lines: list[OutputLine], stream: str = "stdout") -> list[str]:
    return [line.text for line in lines if line.stream == stream]


@pytest.mark.parametrize("most", [1, 2, 7, 4096])
def test_lines_are_the_same_however_they_come_in_pieces(most: int) -> None:
    chance = random.Random(most)
    printed = {"stdout": "one\n\ntwö\r\nthree\n".encode() * 50 + b"the end", "stderr": b"\xff\n" * 99}
    left, output = dict(printed), Output()
    while any(left.values()):
        stream = chance.choice([name for name, rest in left.items() if rest])
        size = chance.randint(1, most)
        output.add(stream, left[stream][:size])
        left[stream] = left[stream][size:]
    lines = output.lines(Redactor())
    assert texts(lines) == ["one", "", "twö", "three"] * 50 + ["the end"]
    assert texts(lines, "stderr") == ["\N{REPLACEMENT CHARACTER}"] * 99
    assert [line.time_ms for line in lines] == sorted(line.time_ms for line in lines)
    assert output.lines(Redactor()) == []


def test_a_line_without_an_end_costs_no_more_than_others() -> None:
    """In pieces of a byte: if each looked at all before it, this would take many minutes."""
    output = Output()
    for _ in range(1 << 19):
        output.add("stdout", b".")
    [line] = output.lines(Redactor())
    assert line.text == "." * LINE_CHARS_MAX + "..."


def test_of_many_lines_the_first_are_kept_and_the_number_of_others_is_told() -> None:
    output = Output()
    for _ in range(4):
        output.add("stdout", b"x\n" * LINES_MAX)
    lines = output.lines(Redactor())
    assert texts(lines) == ["x"] * LINES_MAX
    dropped = f"{3 * LINES_MAX:,} more lines were dropped"
    assert texts(lines, "event") == [f"{dropped}: only the first 16,384 of a call are kept"]


def test_secrets_are_taken_out_before_a_line_is_cut_and_of_each_line() -> None:
    redactor, output = Redactor(), Output()
    redactor.add("sesame, open")
    redactor.add("a value of\nseveral lines")
    for piece in (
        b"ses",
        b"ame, open\n",
        b"." * (LINE_CHARS_MAX - 4) + b"sesame, open\n",
        b"a value of\nseveral lines\n",
    ):
        output.add("stdout", piece)
    found = texts(output.lines(redactor))
    assert found == [MARK, "." * (LINE_CHARS_MAX - 4) + MARK, MARK, MARK]


def test_reports_of_many_lines_are_converted_a_few_at_a_time_and_others_do_not_wait() -> None:
    """Many threads at that would keep the interpreter from those that others wait for."""

    def lines(count: int) -> int:
        output = Output()
        output.add("stdout", b"line\n" * count)
        return len(output.lines(Redactor()))

    with ThreadPoolExecutor(2) as threads, ExitStack() as held:
        held.enter_context(conversion_permit(LINES_MAX))
        assert threads.submit(lines, LINES_MAX).result(30) == LINES_MAX
        held.enter_context(conversion_permit(LINES_MAX))
        waiting = threads.submit(lines, LINES_MAX)
        for _ in range(10):
            assert threads.submit(lines, 100).result(30) == 100
        assert not waiting.done()
        held.close()
        assert waiting.result(30) == LINES_MAX
