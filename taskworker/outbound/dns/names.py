"""Resolving names in a thread of its own, for the pool's services and, where wanted, as a DNS server."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import Any, TypeVar

import dns.exception
import dns.reversename
from dns.edns import EDECode
from dns.name import Name
from dns.rcode import Rcode
from dns.rdata import Rdata, RdataStyle
from dns.rdatatype import RdataType
from dns.rdtypes.ANY.TXT import TXT

from storage.errors import InvalidArgument, PermissionDenied
from taskworker.errors import DeadlineExceeded, NameNotFound, NameServersUnavailable
from taskworker.outbound.dns.answers import Answer
from taskworker.outbound.dns.budget import ReplyBudget
from taskworker.outbound.dns.directory import Directory
from taskworker.outbound.dns.policy import Policy
from taskworker.outbound.dns.resolver import Resolver
from taskworker.outbound.dns.server import DnsServer, Listen
from taskworker.outbound.dns.text import from_text
from taskworker.outbound.dns.upstream import NameServer, Upstream
from taskworker.outbound.dns.zone import Zone

KINDS = ("A", "AAAA", "CNAME", "MX", "TXT", "SRV", "NS", "PTR")
_WAIT_S = 10.0
_STYLE = RdataStyle(omit_final_dot=True)
_NAME_MAX = 1024

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class DnsOptions:
    """How names are resolved and served.

    Attributes:
        listen: where to serve them; None: nowhere, the pool's own services resolve them all the same.
        servers: name servers that the rest is asked of; none: the system's.
        policy: what is not answered.
        excess_bytes_per_s: how much larger than their questions UDP replies to one network may be.
        stale_after_s: how long a fresh answer is waited for while there is an old one.
        tcp_idle_s: after so long without a question, or an answer to come, a TCP client is sent away.

    Raises:
        InvalidArgument: the server would ask itself.
    """

    listen: Listen | None = None
    servers: tuple[NameServer, ...] = ()
    policy: Policy = field(default_factory=Policy)
    excess_bytes_per_s: float = 4 << 20
    stale_after_s: float = 1.8
    tcp_idle_s: float = 10.0

    def __post_init__(self) -> None:
        listen = self.listen
        if listen is not None and any((one.address, one.port) == (listen.host, listen.port) for one in self.servers):
            raise InvalidArgument(f"--dns-upstream {listen} is where this server listens itself; name another server")


@dataclass(frozen=True, slots=True)
class Lookup:
    """The records of a name as texts, at least one, and for how many seconds they hold."""

    records: tuple[str, ...]
    ttl_s: int


class Names:
    """Resolves names from :meth:`start` until :meth:`stop`. Thread-safe.

    Args:
        directory: who is in the pool.
        options: how.
        clock_s: monotonic seconds.
    """

    def __init__(
        self, directory: Directory, options: DnsOptions | None = None, *, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        chosen = self._options = options or DnsOptions()
        self._resolver = Resolver(
            Zone(directory, clock_s, serial=int(time.time()) & 0xFFFFFFFF),
            chosen.policy,
            Upstream(chosen.servers),
            clock_s=clock_s,
            stale_after_s=chosen.stale_after_s,
        )
        budget = ReplyBudget(chosen.excess_bytes_per_s, clock_s)
        self._server = DnsServer(self._resolver, budget, clock_s=clock_s, idle_s=chosen.tcp_idle_s)
        self._thread = threading.Thread(target=self._run, name="dns", daemon=True)
        self.address: Listen | None = None
        """Where names are served, once they are."""

    def start(self) -> None:
        """Begin.

        Raises:
            StorageUnavailable: the address to serve on is taken; nothing runs then.
        """
        self._loop = asyncio.new_event_loop()
        self._thread.start()
        try:
            self._wait(self._start())
        except BaseException:
            self._end()
            raise

    def stop(self) -> None:
        """End; questions under way are dropped."""
        if self._thread.is_alive():
            self._wait(self._stop())
            self._end()

    def resolve(self, text: str, kind: str = "A", *, timeout_s: float | None = None) -> Lookup:
        """Look a name up.

        Args:
            text: the name; for PTR an address will do.
            kind: one of ``KINDS``.
            timeout_s: how long to wait at most.

        Raises:
            InvalidArgument: no name, or no such kind.
            NameNotFound: it does not exist, or has no such records.
            PermissionDenied: it is blocked, or is an outside name that means a private address.
            NameServersUnavailable: no name server answers.
            DeadlineExceeded: ``timeout_s`` ran out.
        """
        wanted = parse_kind(kind)
        name = parse_name(text, wanted)
        wait_s = min(_WAIT_S, _WAIT_S if timeout_s is None else timeout_s)
        try:
            found = self._wait(self._resolver.resolve(name, wanted), wait_s)
        except TimeoutError:
            raise DeadlineExceeded(f"{shown(name)} could not be resolved within {wait_s:.3g} s") from None
        return _lookup(name, wanted, found.answer)

    async def _start(self) -> None:
        if self._options.listen is not None:
            port = await self._server.start(self._options.listen)
            self.address = replace(self._options.listen, port=port)

    async def _stop(self) -> None:
        if self.address is not None:
            await self._server.stop()
        self._resolver.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.run_until_complete(asyncio.sleep(0))  # their sockets are closed in the next turn of the loop
        self._loop.close()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _wait(self, work: Coroutine[Any, Any, ResultT], timeout_s: float | None = None) -> ResultT:
        """Have the loop do ``work``; from any other thread.

        Raises:
            TimeoutError: not within ``timeout_s``; it is given up then.
        """
        if not self._thread.is_alive():
            work.close()
            raise NameServersUnavailable("names are not resolved any more: the pool is shutting down")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(timeout_s)
        except concurrent.futures.CancelledError:
            raise NameServersUnavailable("names are not resolved any more: the pool is shutting down") from None
        finally:
            future.cancel()


def parse_kind(text: str) -> RdataType:
    """The type of records that a text names.

    Raises:
        InvalidArgument: none of ``KINDS``.
    """
    if text.upper() not in KINDS:
        raise InvalidArgument(f"records of type {text[:20]!r} cannot be asked for; choose one of {', '.join(KINDS)}")
    return RdataType[text.upper()]


def parse_name(text: str, kind: RdataType = RdataType.A) -> Name:
    """The name in a text, always absolute; for PTR, the one that an address has.

    Raises:
        InvalidArgument: it is none.
    """
    if not text or len(text) > _NAME_MAX:
        raise InvalidArgument(f"a name has 1 to {_NAME_MAX} characters, not {len(text)}")
    if kind == RdataType.PTR:
        try:
            return dns.reversename.from_address(str(ip_address(text)))
        except ValueError:
            pass  # a name, then
    try:
        return from_text(text)
    except (dns.exception.DNSException, UnicodeError) as error:
        raise InvalidArgument(f"{text[:80]!r} is no domain name: {error}") from None


def shown(name: Name) -> str:
    """A name for people."""
    return name.to_text(omit_final_dot=True)


def _lookup(name: Name, kind: RdataType, answer: Answer) -> Lookup:
    if answer.trouble in (EDECode.BLOCKED, EDECode.FILTERED):
        raise PermissionDenied(answer.text)
    if answer.rcode == Rcode.NXDOMAIN:
        raise NameNotFound(f"there is no name {shown(name)}")
    if answer.rcode != Rcode.NOERROR:
        raise NameServersUnavailable(answer.text or f"looking up {shown(name)} failed ({answer.rcode.name})")
    found = answer.records_of(kind)
    if found is None:
        raise NameNotFound(f"{shown(name)} exists, but has no {kind.name} records")
    # Elsewhere the strings of a record are pieces of one text (RFC 7208, 3.3); in the pool's zone, notes of their own.
    between = b" " if answer.authoritative else b""
    return Lookup(tuple(_text(record, between) for record in sorted(found)), int(found.ttl))


def _text(record: Rdata, between: bytes) -> str:
    """A record as a program wants it: names without the dot at their end, texts without quotes."""
    if isinstance(record, TXT):
        return between.join(record.strings).decode(errors="backslashreplace")
    return record.to_text(style=_STYLE)
