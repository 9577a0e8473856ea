"""The commands for gateways, which speak other protocols: s3, and page for browsers."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from taskworker.cli.exits import ExitCode, Failure
from taskworker.cli.help import Command, Group
from taskworker.cli.metrics import Metrics, MetricsAddress, MetricsCert, MetricsKey, MetricsToken
from taskworker.cli.session import Session, with_session
from taskworker.cli.supervised import Supervised, watch_parent
from taskworker.cli.text import one_line

if TYPE_CHECKING:
    from taskworker.gateways.s3.accounts import Accounts

app = typer.Typer(
    cls=Group, no_args_is_help=True, rich_markup_mode="rich", help="Front doors that speak other protocols."
)

Certificate = Annotated[
    Path | None, typer.Option(help="File with the gateway's certificate, PEM.", metavar="FILE", dir_okay=False)
]
CertificateKey = Annotated[
    Path | None, typer.Option(help="File with the private key of --tls-cert, PEM.", metavar="FILE", dir_okay=False)
]


def s3(
    session: Session,
    listen: Annotated[
        str,
        typer.Option(
            help="Address to listen on: HOST:PORT (port 0: any free one), or `systemd`: the socket of a .socket unit.",
            metavar="ADDR",
        ),
    ] = "127.0.0.1:9000",
    keys: Annotated[
        Path | None,
        typer.Option(
            help="File with access keys, which only you may read, in place of those of the pool: "
            '{"KEY-ID": {"secret": "...", "user": "..."}}.',
            metavar="FILE",
            dir_okay=False,
        ),
    ] = None,
    tls_cert: Certificate = None,
    tls_key: CertificateKey = None,
    domain: Annotated[
        str,
        typer.Option(help="Serve BUCKET.DOMAIN as well as paths that begin with /BUCKET.", metavar="DOMAIN"),
    ] = "",
    public: Annotated[
        list[str] | None,
        typer.Option(
            help="A bucket that anybody may read, and the access key that such readers act by; repeatable.",
            metavar="BUCKET=KEY-ID",
        ),
    ] = None,
    lifecycle_interval: Annotated[
        float,
        typer.Option(
            min=0, help="Seconds between applications of buckets' lifecycle rules; 0: do not apply them.", metavar="S"
        ),
    ] = 3600.0,
    entity_tags: Annotated[
        Literal["md5", "random"],
        typer.Option(
            help="What the entity tags of objects above 64 KiB are: their MD5, as with Amazon, or random, which saves "
            "half of the gateway's processor time for putting large ones.",
        ),
    ] = "md5",
    metrics: MetricsAddress = "",
    metrics_cert: MetricsCert = None,
    metrics_key: MetricsKey = None,
    metrics_token: MetricsToken = None,
    supervised: Supervised = False,
) -> None:
    """Serve a pool's files by Amazon's S3 protocol until Ctrl-C. A file BUCKET/KEY is the object KEY of a bucket.

    Requests are signed with access keys: `taskworker token create --user U --s3` makes one. The gateway itself needs a
    token of an operator, which may be limited to the scope gateway.

    Examples:
        taskworker gateway s3
        taskworker --pool pool.example:50051 gateway s3 --listen 0.0.0.0:443 --tls-cert c.pem --tls-key k.pem
    """
    with needing_extra():
        from taskworker.gateways.http_server import HttpServer
        from taskworker.gateways.s3.app import S3App
        from taskworker.gateways.s3.expiring import BackgroundLifecycles, Lifecycles
    from storage.system.descriptors import raise_descriptor_limit
    from taskworker.cli.allocator import keep_freed_memory, keep_one_arena
    from taskworker.cli.turns import take_short_turns
    from taskworker.rpc.probing import unready_of

    listener = _listener(listen, tls_cert, tls_key)
    keep_one_arena()
    keep_freed_memory()
    take_short_turns()
    raise_descriptor_limit()
    readers = dict(_pair(one) for one in public or ())
    shown = Metrics(metrics, metrics_cert, metrics_key, metrics_token)
    accounts = _accounts(session, keys)
    lifecycles = BackgroundLifecycles(Lifecycles(accounts), lifecycle_interval) if lifecycle_interval else None
    gateway = S3App(
        accounts,
        domain=domain,
        public=readers,
        needs_md5=entity_tags == "md5",
        metrics=shown.requests("s3"),
        lifecycles=lifecycles,
    )
    server = HttpServer(gateway, listener, certificate=tls_cert, key=tls_key, half_close=True)
    url = f"{'http' if tls_cert is None else 'https'}://{server.address}"
    shown.show(lambda: (unready_of(session.pool_address()), {}))

    def ready() -> None:
        if lifecycles is not None:
            lifecycles.start()
        session.terminal.result(
            {"address": server.address, "url": url, "pid": os.getpid()} | shown.document(),
            f"serving S3 at {url}; Ctrl-C stops it",
            *shown.lines(),
        )

    watch_parent(wanted=supervised)
    try:
        server.run(ready)
    finally:
        shown.stop()


def check_tls(listen: str, cert: Path | None, key: Path | None, options: str = "--tls-cert and --tls-key") -> None:
    """Refuse to be reached by other machines without TLS.

    Raises:
        Failure: the options ask for that.
    """
    from taskworker.auth.contexts import is_on_this_machine

    if (cert is None) != (key is None):
        raise Failure(f"{options} belong together: give both, or none", ExitCode.USAGE)
    if cert is None and not is_on_this_machine(listen):
        raise Failure(f"refusing to listen on {one_line(listen)} without TLS: give {options}", ExitCode.USAGE)


def _listener(listen: str, cert: Path | None, key: Path | None) -> socket.socket:
    """The socket to listen at, unless that takes TLS and there is none."""
    from taskworker.gateways.listening import SYSTEMD, address_of, listening

    if listen != SYSTEMD:
        check_tls(listen, cert, key)
    listener = listening(listen)
    check_tls(address_of(listener), cert, key)
    return listener


@contextlib.contextmanager
def needing_extra() -> Iterator[None]:
    """Within this context, say how to install what a gateway needs if it is missing."""
    try:
        yield
    except ModuleNotFoundError as missing:
        raise Failure(
            f"the gateway needs {missing.name}: pip install 'taskworker[gateways]'", ExitCode.FAILED
        ) from None


def _accounts(session: Session, keys: Path | None) -> Accounts:
    from taskworker.client import Client
    from taskworker.gateways.s3.accounts import FileAccounts, PoolAccounts

    if keys is None:
        return PoolAccounts(session.pool_address())
    return FileAccounts(keys, Client(session.pool_address()))


def page(
    session: Session,
    listen: Annotated[
        str,
        typer.Option(
            help="Address to listen on: HOST:PORT (port 0: any free one), or `systemd`: the socket of a .socket unit.",
            metavar="ADDR",
        ),
    ] = "127.0.0.1:8080",
    tls_cert: Certificate = None,
    tls_key: CertificateKey = None,
    name: Annotated[
        list[str] | None,
        typer.Option(
            help="A host name that browsers use for the page, besides those in --tls-cert; repeatable. Requests for "
            "other names are refused.",
            metavar="HOST",
        ),
    ] = None,
    supervised: Supervised = False,
) -> None:
    """Serve a page on which people see and use a pool with a browser, until Ctrl-C.

    People sign in with their tokens, or with a link that `taskworker ui` makes, and can do there what their tokens
    allow, and nothing else. The gateway itself needs no token. If this login has one that may see the pool's status,
    the page's charts also show times at which nobody looked.

    Examples:
        taskworker gateway page
        taskworker --pool pool.example:50051 gateway page --listen 0.0.0.0:443 --tls-cert c.pem --tls-key k.pem
    """
    from storage.system.descriptors import raise_descriptor_limit

    listener = _listener(listen, tls_cert, tls_key)
    raise_descriptor_limit()
    with needing_extra():
        from taskworker.gateways.http_server import HttpServer
        from taskworker.gateways.page.app import PageApp
        from taskworker.gateways.page.names import names_in
    from taskworker.auth.contexts import AccessTo
    from taskworker.client.pool import PoolClient

    address = session.pool_address()
    names = [*(name or ()), *(names_in(tls_cert) if tls_cert is not None else ())]
    watcher = PoolClient(address) if AccessTo(address)().token else None
    app = PageApp(address, names=names, is_secure=tls_cert is not None, watcher=watcher)
    server = HttpServer(app, listener, certificate=tls_cert, key=tls_key, on_stop=app.stop)
    url = f"{'http' if tls_cert is None else 'https'}://{server.address}"

    def ready() -> None:
        session.terminal.result(
            {"address": server.address, "url": url, "pid": os.getpid()},
            f"serving the page at {url}; `taskworker ui --at {url}` makes a link to sign in with; Ctrl-C stops it",
        )

    watch_parent(wanted=supervised)
    server.run(ready)


def _pair(text: str) -> tuple[str, str]:
    bucket, equals, key_id = text.partition("=")
    if not bucket or not equals or not key_id:
        raise Failure(f"--public {one_line(text)}: give BUCKET=KEY-ID", ExitCode.USAGE)
    return bucket, key_id


for command in (s3, page):
    app.command(command.__name__, cls=Command)(with_session(command))
