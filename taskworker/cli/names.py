"""DNS names: the command resolve, and the pool's DNS options."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taskworker.cli.session import Session
from taskworker.cli.text import one_line

if TYPE_CHECKING:
    from taskworker.outbound.dns.names import DnsOptions
    from taskworker.outbound.dns.server import Listen

_PANEL = "Names"

DnsPort = Annotated[
    str | None,
    typer.Option(
        help="Also serve DNS, over UDP and TCP: names in hive; all others are forwarded (port 0: any free one).",
        metavar="[ADDR:]PORT",
        rich_help_panel=_PANEL,
    ),
]
DnsUpstream = Annotated[
    list[str] | None,
    typer.Option(
        help="Name server to ask about outside names; repeatable (default: the system's name servers).",
        metavar="ADDR[:PORT]",
        rich_help_panel=_PANEL,
    ),
]
DnsBlock = Annotated[
    list[Path] | None,
    typer.Option(
        help="File of names to block, with all names below them: one per line, or a hosts file; repeatable.",
        metavar="FILE",
        dir_okay=False,
        exists=True,
        rich_help_panel=_PANEL,
    ),
]
DnsAllowPrivate = Annotated[
    list[str] | None,
    typer.Option(
        help="An outside name that may have private addresses, with all names below it; repeatable.",
        metavar="NAME",
        rich_help_panel=_PANEL,
    ),
]


def dns_options(
    port: str | None, upstream: list[str] | None, block: list[Path] | None, allow_private: list[str] | None
) -> DnsOptions:
    """The pool's DNS options.

    Raises:
        InvalidArgument: an option is malformed or out of bounds.
    """
    from taskworker.outbound.dns.names import DnsOptions
    from taskworker.outbound.dns.policy import Policy, read_block_list
    from taskworker.outbound.dns.server import Listen
    from taskworker.outbound.dns.upstream import NameServer

    return DnsOptions(
        listen=None if port is None else Listen.parse(port),
        servers=tuple(NameServer.parse(one) for one in upstream or ()),
        policy=Policy((name for path in block or () for name in read_block_list(path)), allow_private or ()),
    )


def dns_document(address: Listen | None) -> dict[str, str]:
    """The DNS address, for JSON output."""
    return {} if address is None else {"dns": str(address)}


def dns_lines(address: Listen | None) -> list[str]:
    """The DNS address, for people."""
    if address is None:
        return []
    return [f"names at {address}: dig @{address.host} -p {address.port} NAME.worker.hive SRV"]


def resolve(
    session: Session,
    name: Annotated[str, typer.Argument(help="The name; for PTR, also an address.", metavar="NAME")],
    kind: Annotated[str, typer.Option("--type", help="A, AAAA, CNAME, MX, TXT, SRV, NS or PTR.", metavar="TYPE")] = "A",
    timeout: Annotated[
        float | None, typer.Option(help="Wait at most this many seconds.", metavar="SECONDS", min=0.001)
    ] = None,
) -> None:
    """Resolve a name through the pool: a name of its own zone, or any other.

    Examples:
        taskworker resolve worker_001.worker.hive
        taskworker resolve example.com --type MX
    """
    from taskworker.client import Client

    with Client(session.pool_address()) as client:
        records = client.resolve(name, kind, timeout_s=timeout)
    session.terminal.result(
        {"name": name, "type": kind.upper(), "records": records}, *(one_line(record) for record in records)
    )
