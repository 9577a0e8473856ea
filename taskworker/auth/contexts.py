"""The servers that a person of this machine uses, each with the token that it knows the person by, and how it is known.

They are in one private file, ``taskworker/contexts.json`` in ``$XDG_CONFIG_HOME``. Servers write the token of their
owner into it, ``taskworker login`` those that others gave out. Clients look up the token by the address that they call.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import json
import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from storage.errors import FormatError, InvalidArgument
from storage.system.private_files import read_private, write_private
from storage.system.private_paths import make_private_directory, open_private
from taskworker.auth.trust import SYSTEM, Trust

_FILE = Path("taskworker", "contexts.json")
_VERSION = 1
_LOOPBACKS = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "[::]": "[::1]"}
_FORMER = frozenset(("address", "token", "user", "server"))
_OWNED_MAX = 100
"""Contexts that servers wrote for their owners. Of more, the oldest ones are dropped."""


class Context(NamedTuple):
    """How to call a server.

    Attributes:
        address: where the server is.
        token: what it knows the caller by.
        user: the caller's name there.
        server: id of the server, if it wrote this itself; otherwise empty.
        authorities: certificates of the authorities that may vouch for the server, PEM; ``system``: those that this
            machine trusts; empty: the server does not use TLS, and is on this machine.
        name: the DNS name that the server's certificate must have; empty: the host of the address.
        asked_ms: when the server was last asked for its authorities, in milliseconds since 1970; empty: never.
        worker_token: what workers of this login show that join without tokens of their own; empty: the same token.
    """

    address: str
    token: str
    user: str = ""
    server: str = ""
    authorities: str = ""
    name: str = ""
    worker_token: str = ""
    asked_ms: str = ""

    @property
    def trust(self) -> Trust | None:
        """How the server is known; None: by its address only, without TLS."""
        if not self.authorities:
            return None
        return Trust("" if self.authorities == SYSTEM else self.authorities, self.name)

    def with_trust(self, trust: Trust | None) -> Context:
        """This context, for a server that is known so."""
        if trust is None:
            return self._replace(authorities="", name="")
        return self._replace(authorities=trust.authorities or SYSTEM, name=trust.name)


class _Kept(NamedTuple):
    current: str = ""
    contexts: tuple[Context, ...] = ()

    def encoded(self) -> bytes:
        every = [
            {name: text for name, text in context._asdict().items() if text} | {"token": context.token}
            for context in self.contexts
        ]
        # Releases without TLS read `contexts`, refuse what they do not know in it, and ignore `all`.
        former = [
            {name: text for name, text in context.items() if name in _FORMER}
            for context in every
            if "authorities" not in context
        ]
        document = {"version": _VERSION, "current": self.current, "contexts": former, "all": every}
        return json.dumps(document, indent=2).encode() + b"\n"

    @classmethod
    def parse(cls, raw: bytes) -> _Kept:
        """Inverse of :meth:`encoded`; raises ValueError. With msgspec, every short command would take longer."""
        found = json.loads(raw)
        if not isinstance(found, dict) or found.get("version") != _VERSION:
            raise ValueError("it is of another version")
        contexts = tuple(
            Context(**{name: text for name, text in one.items() if name in Context._fields})
            for one in (found["all"] if "all" in found else found["contexts"])
        )
        texts = [found["current"], *(text for context in contexts for text in context)]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("something in it is no text")
        return cls(found["current"], contexts)


def contexts_path() -> Path:
    """Where this user's contexts are."""
    return _path_in(os.environ.get("XDG_CONFIG_HOME", ""), os.environ.get("HOME", ""))


@lru_cache(maxsize=16)
def _path_in(given: str, _home: str) -> Path:
    return (Path(given) if given.startswith("/") else Path("~/.config").expanduser()) / _FILE


class Contexts:
    """The contexts in a file. Several processes may use it at the same time.

    Args:
        path: the file; None: this user's.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or contexts_path()

    @property
    def current(self) -> str:
        """The address to call if none is given; empty: none was chosen."""
        return self._read().current

    def all(self) -> list[Context]:
        """All contexts, the oldest first.

        Raises:
            NotPrivate: others may read or change the file.
            FormatError: it is damaged.
        """
        return list(self._read().contexts)

    def find(self, address: str) -> Context | None:
        """The context for an address; of several addresses, for the first that has one."""
        known = {context.address: context for context in self._read().contexts}
        return next(filter(None, map(known.get, map(plain_address, address.split(",")))), None)

    def put(self, context: Context, *, is_current: bool = False) -> None:
        """Add a context, in place of a former one for its address, or one that the same server wrote.

        Raises:
            OSError: the file cannot be written.
        """
        address = plain_address(context.address)
        if "," in address:
            raise InvalidArgument("a context is for one address: leave out the others")
        new = context._replace(address=address)
        with self._changing() as kept:
            others = [
                one
                for one in kept.contexts
                if one.address != address and not (context.server and one.server == context.server)
            ]
            owned = [one for one in others if one.server]
            dropped = set(owned[: max(0, len(owned) - _OWNED_MAX + 1)])
            left = tuple(one for one in others if one not in dropped)
            self._write(_Kept(current=address if is_current else kept.current, contexts=(*left, new)))

    def use(self, address: str) -> Context:
        """Make a context the one to use if no address is given.

        Raises:
            InvalidArgument: there is no context for this address.
        """
        with self._changing() as kept:
            found = next((one for one in kept.contexts if one.address == plain_address(address)), None)
            if found is None:
                raise InvalidArgument(f"there is no context for {address[:200]!r}; `taskworker login` makes one")
            self._write(kept._replace(current=found.address))
            return found

    def remove(self, address: str) -> bool:
        """Drop the context for an address; return whether there was one."""
        address = plain_address(address)
        with self._changing() as kept:
            left = tuple(one for one in kept.contexts if one.address != address)
            current = "" if kept.current == address else kept.current
            self._write(_Kept(current=current, contexts=left))
            return len(left) < len(kept.contexts)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[_Kept]:
        """What is kept, which no other process changes meanwhile."""
        make_private_directory(self.path.parent)
        descriptor = open_private(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield self._read()
        finally:
            os.close(descriptor)

    def _read(self) -> _Kept:
        raw = read_private(self.path)
        if raw is None:
            return _Kept()
        try:
            return _Kept.parse(raw)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise FormatError(f"{self.path} is damaged; move it away, and log in to your servers again") from None

    def _write(self, kept: _Kept) -> None:
        write_private(self.path, kept.encoded())


class Access(NamedTuple):
    """How to call a server now.

    Attributes:
        token: what to show; empty: nothing.
        trust: whom the connection must reach; None: it is not encrypted, and stays on this machine.
    """

    token: str = ""
    trust: Trust | None = None


class AccessTo:
    """How to call the server at an address, whenever it is asked for: contexts may change while a program runs.

    What is sent to other machines is encrypted, even if there is no context.

    Args:
        address: where the server is.
        path: returns the file with the contexts.
        as_worker: whether a worker calls, which needs no more rights than workers have.
    """

    def __init__(self, address: str, path: Callable[[], Path] = contexts_path, *, as_worker: bool = False) -> None:
        self._address = address
        self._as_worker = as_worker
        self._path = path
        self._without = Access(trust=None if all(map(is_on_this_machine, address.split(","))) else Trust())
        self._seen: tuple[object, ...] = ()
        self._access = self._without

    def __call__(self) -> Access:
        """How to call it; the same object as before if nothing has changed.

        Raises:
            NotPrivate: others may read or change the file of contexts.
            FormatError: it is damaged.
        """
        path = self._path()
        try:
            found = os.stat(path)  # noqa: PTH116 - it is asked at every call, and takes half the time of Path.stat
        except OSError:
            return self._without
        seen = (path, found.st_mtime_ns, found.st_ino, found.st_size, found.st_mode, found.st_uid)
        if seen != self._seen:
            access = self._read(path)
            self._access = self._access if access == self._access else access
            self._seen = seen
        return self._access

    def _read(self, path: Path) -> Access:
        context = Contexts(path).find(self._address)
        if context is None:
            return self._without
        if context.trust is None and self._without.trust is not None:
            return self._without  # one of the addresses is on another machine: the token would be sent there in clear
        token = context.worker_token if self._as_worker and context.worker_token else context.token
        return Access(token, context.trust)


def plain_address(address: str) -> str:
    """One form for all ways to write an address."""
    address = address.strip()
    if address.startswith("unix:"):
        return f"unix:{Path(address.removeprefix('unix:').removeprefix('//')).resolve()}"
    host, separator, port = address.rpartition(":")
    return f"127.0.0.1{separator}{port}" if host.lower() == "localhost" else address


def reached_here(address: str) -> str:
    """Where this machine reaches a server that listens at an address, which may stand for all addresses."""
    host, separator, port = address.rpartition(":")
    return f"{_LOOPBACKS.get(host, host)}{separator}{port}"


def is_on_this_machine(address: str) -> bool:
    """Whether nobody on another machine could listen to what is sent to an address."""
    address = address.strip()
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].removeprefix("[").removesuffix("]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
