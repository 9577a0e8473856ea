"""Formats values for people: names in which nothing is hidden, sizes, rates, times."""

from __future__ import annotations

import json
import unicodedata
from datetime import UTC, datetime

# Control characters, line and paragraph separators, lone surrogates, and formatting characters such as those
# that change the direction of text.
_HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_TELLING_SIZE = 1 << 20  # below this, the rate says more about start-up than about throughput
_JOINERS = frozenset("\u200c\u200d")  # part of ordinary words in many scripts, and of emoji
_SHORT_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def visible(name: str) -> str:
    """A name in which backslashes and all characters that are not plainly visible are escaped."""
    return one_line(name.replace("\\", "\\\\"))


def one_line(text: str) -> str:
    """A text in which all characters that are not plainly visible are escaped."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_visible_character(character) for character in text)


def harmless(text: str) -> str:
    """A text of one or more lines; apart from line ends and tabs, whatever is not plainly visible is escaped.

    The parts that come from others are escaped where they are put in. This makes sure that none was forgotten.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(one if one in "\n\t" else _visible_character(one) for one in text)


def json_text(document: object, *, indent: int | None = None) -> str:
    """A document as JSON, in which whatever is not plainly visible is escaped, so that a terminal can show it."""
    text = json.dumps(document, ensure_ascii=False, indent=indent)
    if text.isascii():  # JSON itself escapes the control characters of ASCII, except for the last
        return text.replace("\x7f", "\\u007f")
    return "".join(_json_character(one) for one in text)


def _json_character(character: str) -> str:
    if character == "\n" or character in _JOINERS or unicodedata.category(character) not in _HIDDEN_CATEGORIES:
        return character
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def _visible_character(character: str) -> str:
    if character in _SHORT_ESCAPES:
        return _SHORT_ESCAPES[character]
    if character in _JOINERS or unicodedata.category(character) not in _HIDDEN_CATEGORIES:
        return character
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def size_text(size: int) -> str:
    """A number of bytes in binary units: ``64.0 MiB``."""
    if size < 1024:
        return f"{size} B"
    scaled = float(size)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        scaled /= 1024
        if scaled < 1023.95:
            return f"{scaled:.1f} {unit}"
    return f"{scaled / 1024:.1f} PiB"


def pace_text(size: int, seconds: float) -> str:
    """The time that ``size`` bytes took, and the rate if there were enough to tell: ``0.31 s, 206 MB/s``."""
    if size < _TELLING_SIZE:
        return f"{seconds:.2f} s"
    return f"{seconds:.2f} s, {size / 1e6 / max(seconds, 1e-6):,.0f} MB/s"


def time_text(time_ms: int) -> str:
    """A time in the reader's time zone; it comes from an author's clock, so it may be any number."""
    try:
        return datetime.fromtimestamp(time_ms / 1000, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, OSError, ValueError):
        return f"{time_ms} ms"


def duration_text(seconds: float) -> str:
    """A rounded time span: ``12 s``, ``3 min``, ``5 h``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{round(seconds / 3600)} h"


def plural(count: int, noun: str) -> str:
    """A count with its noun: ``1 file``, ``2 files``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
