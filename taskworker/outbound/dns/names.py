"""Resolves names in a thread of its own, for the pool's services and, if enabled, as a DNS server."""

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

from storage.clocks import wall_ms
from storage.errors import InvalidArgument, PermissionDenied
from taskworker.errors import DeadlineExceeded, NameNotFound, NameServersUnavailable
from taskworker.outbound.dns.answers import Answer
from taskworker.outbound.dns.budget import ReplyBudget
from taskworker.outbound.dns.directory import Directory
from taskworker.outbound.dns.policy import Policy
from taskworker.outbound.dns.resolver import NamesUse, Resolver
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
    """Options for resolving and serving names.

    Attributes:
        listen: address to serve DNS on; None: no DNS server, but the pool's services still resolve names.
        servers: name servers to forward to; none: the system's.
        policy: which names and answers to refuse.
        excess_bytes_per_s: by how many bytes a second UDP replies to one network may exceed their questions.
        stale_after_s: seconds to wait for a fresh answer while there is a stale one.
        tcp_idle_s: seconds after which an idle TCP client is disconnected.

    Raises:
        InvalidArgument: the server would forward to itself.
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
            raise InvalidArgument(f"--dns-upstream {listen} is this server's own address; name another server")


@dataclass(frozen=True, slots=True)
class Lookup:
    """The records of a name as texts, at least one, and for how many seconds they are valid."""

    records: tuple[str, ...]
    ttl_s: int


class Names:
    """Resolves names from :meth:`start` until :meth:`stop`. Thread-safe.

    Args:
        directory: lists what is in the pool.
        options: the options.
        clock_s: monotonic seconds.
        now_ms: milliseconds since 1970.
    """

    def __init__(
        self,
        directory: Directory,
        options: DnsOptions | None = None,
        *,
        clock_s: Callable[[], float] = time.monotonic,
        now_ms: Callable[[], int] = wall_ms,
    ) -> None:
        chosen = self._options = options or DnsOptions()
        self._resolver = Resolver(
            Zone(directory, clock_s, serial=(now_ms() // 1000) & 0xFFFFFFFF),
            chosen.policy,
            Upstream(chosen.servers),
            clock_s=clock_s,
            stale_after_s=chosen.stale_after_s,
        )
        budget = ReplyBudget(chosen.excess_bytes_per_s, clock_s)
        self._server = DnsServer(self._resolver, budget, clock_s=clock_s, idle_s=chosen.tcp_idle_s)
        self._thread = threading.Thread(target=self._run, name="dns", daemon=True)
        self.address: Listen | None = None
        """The address of the DNS server, once it is running."""

    def start(self) -> None:
        """Start resolving, and serving if enabled.

        Raises:
            StorageUnavailable: the DNS address is taken; nothing is started then.
        """
        self._loop = asyncio.new_event_loop()
        self._thread.start()
        try:
            self._wait(self._start())
        except BaseException:
            self._end()
            raise

    def stop(self) -> None:
        """Stop; pending questions are dropped."""
        if self._thread.is_alive():
            self._wait(self._stop())
            self._end()

    def resolve(self, text: str, kind: str = "A", *, timeout_s: float | None = None) -> Lookup:
        """Look a name up.

        Args:
            text: the name; for PTR, an address is accepted.
            kind: one of ``KINDS``.
            timeout_s: seconds to wait at most.

        Raises:
            InvalidArgument: it is not a name, or there is no such kind.
            NameNotFound: the name does not exist, or has no such records.
            PermissionDenied: the name is blocked, or it is an outside name that resolves to a private address.
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

    @property
    def use(self) -> NamesUse:
        """How questions were answered up to now."""
        return self._resolver.use()

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
        self._loop.run_until_complete(asyncio.sleep(0))  # sockets are closed in the next iteration of the loop
        self._loop.close()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _wait(self, work: Coroutine[Any, Any, ResultT], timeout_s: float | None = None) -> ResultT:
        """Run ``work`` in the event loop, from another thread.

        Raises:
            TimeoutError: it took longer than ``timeout_s``, and was cancelled.
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
    """Parse a type of records.

    Raises:
        InvalidArgument: it is not one of ``KINDS``.
    """
    if text.upper() not in KINDS:
        raise InvalidArgument(f"records of type {text[:20]!r} cannot be looked up; choose one of {', '.join(KINDS)}")
    return RdataType[text.upper()]


def parse_name(text: str, kind: RdataType = RdataType.A) -> Name:
    """Parse a name, which is always taken as absolute; for PTR, convert an address to its name.

    Raises:
        InvalidArgument: it is not a name.
    """
    if not text or len(text) > _NAME_MAX:
        raise InvalidArgument(f"a name has 1 to {_NAME_MAX} characters, not {len(text)}")
    if kind == RdataType.PTR:
        try:
            return dns.reversename.from_address(str(ip_address(text)))
        except ValueError:
            pass  # try it as a name
    try:
        return from_text(text)
    except (dns.exception.DNSException, UnicodeError) as error:
        raise InvalidArgument(f"{text[:80]!r} is no domain name: {error}") from None


def shown(name: Name) -> str:
    """A name in readable form."""
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
    # In other zones, the strings of a TXT record form one text (RFC 7208, 3.3); in the pool's zone, they are entries.
    between = b" " if answer.authoritative else b""
    return Lookup(tuple(_text(record, between) for record in sorted(found)), int(found.ttl))


def _text(record: Rdata, between: bytes) -> str:
    """A record in a form for programs: names without the trailing dot, texts without quotes."""
    if isinstance(record, TXT):
        return between.join(record.strings).decode(errors="backslashreplace")
    return record.to_text(style=_STYLE)
