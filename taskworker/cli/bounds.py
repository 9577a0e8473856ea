"""The options that say what users of a server may do: --server-limits, --quota and --profiles."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from taskworker.cli.exits import ExitCode, Failure
from taskworker.cli.text import one_line

if TYPE_CHECKING:
    from collections.abc import Mapping

    from storage import ErasureProfile
    from taskworker.rpc.admission import ServerLimits
    from taskworker.services.storage_policy import StoragePolicy

ServerLimitsText = Annotated[
    str,
    typer.Option(
        "--server-limits",
        help="Limits on calls, such as calls=128,streams=64,message=4MiB,wait=30s,idle=600s,unfinished=32,checks=8,"
        "connections=4096,streams-each=1024,refusals=50 (the defaults; docs/reference/limits.md explains them).",
        metavar="LIMITS",
    ),
]
QuotaText = Annotated[
    str,
    typer.Option(
        "--quota",
        help="What each user may store, such as bytes=100GiB,files=1000000, unless `taskworker user quota` says "
        "otherwise; bytes count on all volumes together (default: no limit).",
        metavar="QUOTA",
    ),
]
ProfilesText = Annotated[
    str,
    typer.Option(
        "--profiles",
        help="The erasure profiles that users may choose, such as 4/6,1/3, or none (default: those of at most 32 "
        "shards that take at most 4 times a file's size).",
        metavar="K/N,...",
    ),
]

_FIELDS = {
    "calls": "calls",
    "streams": "streams",
    "message": "message_bytes",
    "wait": "message_s",
    "idle": "idle_s",
    "unfinished": "unfinished",
    "checks": "checks",
    "connections": "connections",
    "streams-each": "streams_each",
    "refusals": "refusals",
}
_AMOUNT = re.compile(r"([0-9]{1,18})([A-Za-z]*)")
_UNITS = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40, "PIB": 1 << 50}


def server_limits(text: str) -> ServerLimits:
    """Read ``--server-limits``."""
    from dataclasses import replace

    from taskworker.rpc.admission import ServerLimits
    from taskworker.rpc.limits import UNARY_BYTES_MOST

    given = {
        _FIELDS[name]: count_of(f"--server-limits {name}", value, is_time=_FIELDS[name].endswith("_s"))
        for name, value in _pairs("--server-limits", text, _FIELDS).items()
    }
    if given.get("message_bytes", 0) > UNARY_BYTES_MOST:
        raise Failure(f"--server-limits message: at most {UNARY_BYTES_MOST >> 20}MiB are allowed", ExitCode.USAGE)
    if not all(given.values()):
        raise Failure("--server-limits: no limit can be 0", ExitCode.USAGE)
    return replace(ServerLimits(), **given)


def storage_policy(quota: str, profiles: str) -> StoragePolicy:
    """Read ``--quota`` and ``--profiles``."""
    from storage.write.quotas import Quota
    from taskworker.services.storage_policy import StoragePolicy

    given = {
        name: count_of(f"--quota {name}", value)
        for name, value in _pairs("--quota", quota, {"bytes": "", "files": ""}).items()
    }
    return StoragePolicy(Quota(given.get("bytes"), given.get("files")), _profiles(profiles) if profiles else None)


def count_of(what: str, text: str, *, is_time: bool = False) -> int:
    """Read a number with a unit of bytes, or of seconds."""
    matched = _AMOUNT.fullmatch(text.strip())
    unit = matched.group(2) if matched else ""
    if matched is None or (unit not in ("", "s") if is_time else unit.upper() not in _UNITS):
        example = "a number of seconds, such as 30s" if is_time else "a number, such as 1000 or 4MiB"
        raise Failure(f"{what}={one_line(text)!r}: write {example}", ExitCode.USAGE)
    return int(matched.group(1)) * (1 if is_time else _UNITS[unit.upper()])


def _pairs(option: str, text: str, known: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for item in filter(None, (item.strip() for item in text.split(","))):
        name, separator, value = item.partition("=")
        if name not in known or not separator:
            raise Failure(f"{option} {one_line(item)!r}: write NAME=NUMBER, of {', '.join(known)}", ExitCode.USAGE)
        found[name] = value
    return found


def _profiles(text: str) -> frozenset[ErasureProfile]:
    from storage import ErasureProfile

    found: set[ErasureProfile] = set()
    for item in filter(None, (item.strip() for item in text.split(","))):
        k, _, n = item.partition("/")
        if item != "none":
            if not (k.isdecimal() and n.isdecimal() and len(k) < 4 and len(n) < 4):
                raise Failure(f"--profiles {one_line(item)!r}: write K/N, such as 4/6, or none", ExitCode.USAGE)
            found.add(ErasureProfile(int(k), int(n)))
    return frozenset(found)
