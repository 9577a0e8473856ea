"""Values as text."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskworker.cli.text import harmless, json_text, one_line, pace_text, plural, size_text, time_text, visible


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("plain.txt", "plain.txt"),
        ("文件 é", "文件 é"),
        ("a\nb\tc\rd", "a\\nb\\tc\\rd"),
        ("back\\slash", "back\\\\slash"),
        ("\x1b[2J\x7f\x9b", "\\x1b[2J\\x7f\\x9b"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
        ("\u2028\U000e0041", "\\u2028\\U000e0041"),
        ("\udcff", "\\udcff"),
        ("👩\u200d👧", "👩\u200d👧"),
    ],
)
def test_visible(name: str, shown: str) -> None:
    assert visible(name) == shown
    assert visible(name).isprintable() or "\u200d" in name


def test_one_line_keeps_backslashes() -> None:
    assert one_line("'a\\\\b'\nc") == "'a\\\\b'\\nc"


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1048575, "1.0 MiB"), (1 << 20, "1.0 MiB"),
        (5 << 30, "5.0 GiB"), (3 << 40, "3.0 TiB"), (1 << 60, "1024.0 PiB"),
    ],
)  # fmt: skip
def test_sizes(size: int, shown: str) -> None:
    assert size_text(size) == shown


def test_paces_times_and_counts() -> None:
    assert pace_text(10, 0.5) == "0.50 s"
    assert pace_text(2_500_000_000, 0.5) == "0.50 s, 5,000 MB/s"
    assert pace_text(2_000_000, 0.0).endswith("MB/s")
    assert time_text(1 << 62) == f"{1 << 62} ms"
    assert len(time_text(0)) == 19
    assert (plural(1, "file"), plural(2000, "file")) == ("1 file", "2,000 files")


@given(st.text(), st.sampled_from([None, 2]))
def test_json_says_the_same_without_what_is_not_visible(text: str, indent: int | None) -> None:
    said = json_text({text: [text]}, indent=indent)
    assert json.loads(said) == {text: [text]}
    assert harmless(said) == said


def test_json_keeps_what_is_visible() -> None:
    assert (
        json_text("文é\u200d\u202e\x9b\x7f\u2028\U000e0041") == '"文é\u200d\\u202e\\u009b\\u007f\\u2028\\udb40\\udc41"'
    )


@given(st.text())
def test_what_is_printed_cannot_disturb_a_terminal(text: str) -> None:
    assert one_line(harmless(text).replace("\n", "").replace("\t", "")) == harmless(text).replace("\n", "").replace(
        "\t", ""
    )
