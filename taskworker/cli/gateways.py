"""The commands for gateways, which speak other protocols: s3."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taskworker.cli.exits import ExitCode, Failure
from taskworker.cli.help import Command, Group
from taskworker.cli.session import Session, with_session
from taskworker.cli.supervised import Supervised, watch_parent
from taskworker.cli.text import one_line

if TYPE_CHECKING:
    from taskworker.gateways.s3.accounts import Accounts

app = typer.Typer(
    cls=Group, no_args_is_help=True, rich_markup_mode="rich", help="Front doors that speak other protocols."
)


def s3(
    session: Session,
    listen: Annotated[
        str, typer.Option(help="Address to listen on: HOST:PORT (port 0: any free one).", metavar="ADDR")
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
    tls_cert: Annotated[
        Path | None, typer.Option(help="File with the gateway's certificate, PEM.", metavar="FILE", dir_okay=False)
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option(help="File with the private key of --tls-cert, PEM.", metavar="FILE", dir_okay=False),
    ] = None,
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
    supervised: Supervised = False,
) -> None:
    """Serve a pool's files by Amazon's S3 protocol until Ctrl-C. A file BUCKET/KEY is the object KEY of a bucket.

    Requests are signed with access keys: `taskworker token create --user U --s3` makes one. The gateway itself needs a
    token of an operator, which may be limited to the scope gateway.

    Examples:
        taskworker gateway s3
        taskworker --pool pool.example:50051 gateway s3 --listen 0.0.0.0:443 --tls-cert c.pem --tls-key k.pem
    """
    if (tls_cert is None) != (tls_key is None):
        raise Failure("--tls-cert and --tls-key belong together: give both, or none", ExitCode.USAGE)
    from taskworker.auth.contexts import is_on_this_machine

    if tls_cert is None and not is_on_this_machine(listen):
        raise Failure(
            f"refusing to listen on {one_line(listen)} without TLS: give --tls-cert and --tls-key", ExitCode.USAGE
        )
    try:
        from taskworker.gateways.s3.app import S3App
        from taskworker.gateways.s3.server import S3Server
    except ModuleNotFoundError as missing:
        raise Failure(
            f"the gateway needs {missing.name}: pip install 'taskworker[gateways]'", ExitCode.FAILED
        ) from None
    from storage.system.descriptors import raise_descriptor_limit

    raise_descriptor_limit()
    readers = dict(_pair(one) for one in public or ())
    gateway = S3App(_accounts(session, keys), domain=domain, public=readers)
    server = S3Server(gateway, listen, certificate=tls_cert, key=tls_key)
    url = f"{'http' if tls_cert is None else 'https'}://{server.address}"

    def ready() -> None:
        session.terminal.result(
            {"address": server.address, "url": url, "pid": os.getpid()}, f"serving S3 at {url}; Ctrl-C stops it"
        )

    watch_parent(wanted=supervised)
    server.run(ready)


def _accounts(session: Session, keys: Path | None) -> Accounts:
    from taskworker.client import Client
    from taskworker.gateways.s3.accounts import FileAccounts, PoolAccounts

    if keys is None:
        return PoolAccounts(session.pool_address())
    return FileAccounts(keys, Client(session.pool_address()))


def _pair(text: str) -> tuple[str, str]:
    bucket, equals, key_id = text.partition("=")
    if not bucket or not equals or not key_id:
        raise Failure(f"--public {one_line(text)}: give BUCKET=KEY-ID", ExitCode.USAGE)
    return bucket, key_id


for command in (s3,):
    app.command(command.__name__, cls=Command)(with_session(command))
