"""What compiled packages depend on: the Python version, the machine, the C library."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from storage.errors import InvalidArgument

_TAG = re.compile(r"(\d{1,2})\.(\d{1,3})-([a-z0-9_]{1,32})-(glibc|musl)(\d{1,3})\.(\d{1,4})")
_VERSION = re.compile(r"(\d+)\.(\d+)")
_MUSL_TIMEOUT_S = 10


@dataclass(frozen=True, slots=True, order=True)
class Platform:
    """A platform that packages are built for.

    Attributes:
        python: major and minor version of CPython.
        machine: such as ``x86_64``.
        libc: ``glibc`` or ``musl``.
        libc_version: major and minor.
    """

    python: tuple[int, int]
    machine: str
    libc: str
    libc_version: tuple[int, int]

    @classmethod
    def of(cls, tag: str) -> Platform:
        """Parse a tag.

        Raises:
            InvalidArgument: it is not a platform tag.
        """
        found = _TAG.fullmatch(tag)
        if found is None:
            raise InvalidArgument(f"{tag[:80]!r} is not a platform; write it as 3.12-x86_64-glibc2.36")
        return cls((int(found[1]), int(found[2])), found[3], found[4], (int(found[5]), int(found[6])))

    @property
    def tag(self) -> str:
        """The tag, such as ``3.12-x86_64-glibc2.36``."""
        python, libc = (".".join(map(str, version)) for version in (self.python, self.libc_version))
        return f"{python}-{self.machine}-{self.libc}{libc}"

    def runs(self, other: Platform) -> bool:
        """Whether packages for ``other`` run here: a C library runs programs built for its earlier versions."""
        here, there = (self.python, self.machine, self.libc), (other.python, other.machine, other.libc)
        return here == there and other.libc_version <= self.libc_version


def best_of(tags: Collection[str], here: Platform) -> str | None:
    """The one of these platforms that runs here with the latest C library; None if none runs here."""
    able = [one for one in map(Platform.of, tags) if here.runs(one)]
    return max(able).tag if able else None


def to_cover(platforms: Collection[Platform]) -> list[Platform]:
    """The fewest platforms such that packages built for them run on all of these."""
    return sorted(one for one in set(platforms) if not any(one.runs(other) for other in platforms if other != one))


@cache
def own_platform() -> Platform | None:
    """This machine's platform; None if it is not Linux with CPython."""
    version = _libc_version()
    if sys.platform != "linux" or sys.implementation.name != "cpython" or version is None:
        return None
    libc, (major, minor) = version
    return Platform(sys.version_info[:2], platform.machine().lower(), libc, (major, minor))


def _libc_version() -> tuple[str, tuple[int, int]] | None:
    name, text = platform.libc_ver()
    if name != "glibc":
        name, text = "musl", _musl_says()
    found = _VERSION.search(text)
    return None if found is None else (name, (int(found[1]), int(found[2])))


def _musl_says() -> str:
    """What musl's loader prints when started without a program; empty if there is no such loader."""
    for loader in Path("/lib").glob("ld-musl-*.so.1"):
        said = subprocess.run([loader], capture_output=True, text=True, timeout=_MUSL_TIMEOUT_S, check=False).stderr
        return said.partition("Version")[2]
    return ""
