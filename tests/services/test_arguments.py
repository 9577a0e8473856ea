"""A client refuses what a store would: before anything is sent, and with the same error."""

from __future__ import annotations

from collections.abc import Iterator
from io import StringIO
from typing import Any

import pytest

from storage import FileStorage, InvalidArgument
from taskworker import Client
from tests.storage.test_arguments import BAD, NOT_WHOLE

USER = "ada"

METHODS: dict[str, tuple[str, ...]] = {
    "push": (
        "source",
        "filename",
        "user_id",
        "profile",
        "chunk_size",
        "time_ms",
        "note",
        "sha256",
        "progress",
        "timeout_s",
    ),
    "get": ("file_id", "user_id", "version_id", "offset", "length"),
    "download": ("file_id", "target", "user_id", "version_id", "offset", "length"),
    "open": ("file_id", "user_id", "version_id"),
    "diff": ("file_id", "source", "user_id", "base_version_id", "changed"),
    "revise": ("file_id", "source", "user_id", "base_version_id", "changed", "sha256", "time_ms", "note"),
    "apply": ("file_id", "diff", "user_id", "sha256", "time_ms", "note"),
    "synchronize": ("file_id", "user_id", "have_version_id", "diff"),
    "sync": ("file_id", "path", "user_id", "base_version_id"),
    "stat": ("file_id", "user_id", "version_id"),
    "find": ("filename", "user_id"),
    "history": ("file_id", "user_id", "limit", "before"),
    "list_files": ("user_id", "prefix", "after", "limit"),
    "iter_files": ("user_id", "prefix"),
    "delete": ("file_id", "user_id"),
    "delete_files": ("file_ids", "user_id"),
    "call": ("function", "args", "kwargs", "user_id"),
    "stream": ("function", "args", "kwargs", "user_id"),
    "call_texts": ("function", "args", "kwargs", "user_id"),
    "stream_texts": ("function", "args", "kwargs", "user_id"),
    "deploy": ("name", "entry", "user_id", "directory", "include", "requirements", "dry_run"),
    "logs": ("function", "call_id", "since_ms", "tail", "follow"),
    "resolve": ("name", "type"),
    "share": ("name", "with_user", "user_id", "write", "ttl_s"),
    "unshare": ("name", "with_user", "user_id"),
    "shares": ("user_id",),
    "create_link": ("file_id", "user_id", "version_id", "ttl_s"),
    "links": ("user_id",),
    "revoke_link": ("link_id", "user_id"),
    "linked": ("timeout_s",),
    "stats": ("timeout_s",),
    "scrub": ("progress",),
    "repair": ("progress",),
    "collect": ("progress", "grace_s"),
    "rebuild": ("progress",),
}

BAD_HERE: dict[str, tuple[Any, ...]] = BAD | {
    "offset": BAD["start"],
    "length": BAD["start"],
    "timeout_s": BAD["grace_s"],
    "changed": (
        *([(0.0, 1)], [(0, True)], [(0, -1)], [(-1, 1)], [("0", 1)], [(10**5000, 1)], [(0, 1, 2)], [(0,)], [0], ["ab"]),
        *(5, True, "ab", b"ab", object()),
    ),
    "target": (5, None, True, b"path", object(), StringIO(), "a\0b", [b""]),
    "source": (*BAD["source"], 5, None, True, object(), StringIO("text")),
    "args": ("text", b"text", 5, True, object(), [object()], [float("nan")], None),
    "kwargs": ("text", 5, True, [1], object(), {1: 2}, {"a": object()}),
    "entry": BAD["prefix"],
    "directory": (7, b"path", None, "a\0b"),
    "include": ("text", b"text", 5, None, [5], [b"text"]),
    "requirements": (7, b"path", True, "a\0b"),
    "dry_run": (1, "yes", None),
    "follow": (1, "yes", None),
    "call_id": BAD["prefix"],
    "with_user": BAD["prefix"],
    "link_id": BAD["prefix"],
    "write": (1, "yes", None),
    "ttl_s": tuple(one for one in BAD["grace_s"] if one is not None),
    "since_ms": (*NOT_WHOLE, -1),
    "tail": (*NOT_WHOLE, -1),
    "path": (7, b"path", None, "a\0b"),
    "function": BAD["prefix"],
    "name": BAD["prefix"],
    "type": BAD["prefix"],
}
_SHARING = ("share", "unshare", "shares", "create_link", "links", "revoke_link")
MAY_BE_LEFT_OUT = {("push", "filename"), ("synchronize", "diff")} | {(method, "user_id") for method in _SHARING}


def _answered(answer: object) -> None:
    """Have an answer begin that comes in parts."""
    if isinstance(answer, Iterator):
        next(answer)


@pytest.mark.parametrize("method", METHODS)
def test_what_a_method_cannot_take_it_refuses(client: Client, store: FileStorage, method: str) -> None:
    version = store.push(bytes(200_000), filename="file", user_id=USER)
    needed: dict[str, dict[str, Any]] = {
        "push": {"source": b"x", "filename": "new"},
        "download": {"target": "/nowhere/at/all"}, "diff": {"source": b"y"},
        "revise": {"source": b"y"}, "find": {"filename": "file"}, "resolve": {"name": "a.b"}, "call": {"function": "f"},
        "stream": {"function": "f"}, "call_texts": {"function": "f", "args": [], "kwargs": {}},
        "stream_texts": {"function": "f", "args": [], "kwargs": {}}, "logs": {"function": "f"},
        "deploy": {"name": "f", "entry": "a:b"},
        "share": {"name": "file", "with_user": "bob"}, "unshare": {"name": "file"}, "revoke_link": {"link_id": "0"},
        "synchronize": {"have_version_id": version.version_id},
        "sync": {"path": "/nowhere", "base_version_id": version.version_id},
        "apply": {"diff": store.diff(version.file_id, b"y", user_id=USER)},
    }  # fmt: skip
    good = dict(needed.get(method, {}))
    if "file_id" in METHODS[method]:
        good["file_id"] = version.file_id
    if "file_ids" in METHODS[method]:
        good["file_ids"] = [version.file_id]
    if "user_id" in METHODS[method]:
        good["user_id"] = USER
    for name in METHODS[method]:
        for bad in BAD_HERE[name]:
            if bad is None and (method, name) in MAY_BE_LEFT_OUT:
                continue
            with pytest.raises(InvalidArgument):
                _answered(getattr(client, method)(**good | {name: bad}))
    assert store.counts().versions == 1


def test_a_client_itself() -> None:
    addresses: tuple[Any, ...] = (7, b"127.0.0.1:1", None, "")
    for address in addresses:
        with pytest.raises(InvalidArgument):
            Client(address)
    limits: tuple[Any, ...] = (True, "1", -1, float("nan"))
    for limit in limits:
        with pytest.raises(InvalidArgument):
            Client("127.0.0.1:1", timeout_s=limit)
