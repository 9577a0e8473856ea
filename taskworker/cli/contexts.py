"""The command login, and the commands for contexts: ls, use, rm, refresh."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taskworker.cli.exits import ExitCode, Failure
from taskworker.cli.help import Command, Group
from taskworker.cli.session import Session, with_session
from taskworker.cli.streams import check_input
from taskworker.cli.text import one_line

if TYPE_CHECKING:
    from taskworker.auth.trust import Trust

_TOKEN_CHARACTERS_MAX = 16_384  # of an identity token

app = typer.Typer(
    cls=Group, no_args_is_help=True, rich_markup_mode="rich", help="The servers that you use, and your tokens for them."
)

Address = Annotated[str, typer.Argument(help="Address of the server.", metavar="ADDR")]


def login(
    session: Session,
    address: Address,
    token: Annotated[
        str | None,
        typer.Option(
            help="The token (env: TASKWORKER_TOKEN; else the command asks for it, or reads it from standard input). "
            "Others on this machine can see options.",
            metavar="TOKEN",
        ),
    ] = None,
    identity: Annotated[
        bool,
        typer.Option(
            "--identity",
            help="What is given is an identity token (JWT) of the server's OpenID Connect provider; it is traded for a "
            "token that is valid for 12 hours.",
            show_default=False,
        ),
    ] = False,
    ca_file: Annotated[
        Path | None,
        typer.Option(
            help="File with the certificate of the authority that vouches for the server, PEM.",
            metavar="FILE",
            dir_okay=False,
            exists=True,
        ),
    ] = None,
    ca_hash: Annotated[
        str,
        typer.Option(
            help="SHA-256 of that certificate, as the server's operator tells it (`taskworker pool` shows it); it is "
            "checked before the token is sent.",
            metavar="sha256:HEX",
        ),
    ] = "",
) -> None:
    """Keep a token that the operator of a server gave you. From then on, all programs of yours send it to that server.

    The token is only sent to this machine, or over TLS to a server that proves who it is: by the authority given here,
    or else by one that this machine trusts.

    Examples:
        taskworker login 127.0.0.1:50051 < token.txt
        taskworker login pool.example.org:50051 --ca-hash sha256:55d21a...e9 < token.txt
    """
    from taskworker.auth.contexts import Access, Context, Contexts, plain_address
    from taskworker.client.trust_refresh import asked_now
    from taskworker.client.users import UserClient

    if ca_file is not None and ca_hash:
        raise Failure("--ca-file and --ca-hash exclude each other: give one", ExitCode.USAGE)
    trust = _trust_in(address, ca_file, ca_hash)
    text = (token or os.environ.get("TASKWORKER_TOKEN") or _asked()).strip()
    if not text:
        raise Failure("no token is given: write it into standard input, or name it with --token")
    if identity:
        with UserClient(address, access=Access("", trust)) as client:
            text = client.log_in(text)
    with UserClient(address, access=Access(text, trust)) as client:
        who = client.who_am_i()
    contexts = Contexts()
    contexts.put(asked_now(Context(address, text, who.user).with_trust(trust)), is_current=True)
    limits = f", limited to {' '.join(who.scopes)}" if who.scopes else ""
    session.terminal.result(
        {
            "address": plain_address(address),
            "user": who.user,
            "role": who.role,
            "scopes": who.scopes,
            "encrypted": trust is not None,
        },
        f"{one_line(address)} knows you as {one_line(who.user)}, with the role {who.role}{one_line(limits)}; commands "
        "without --pool work on it now",
    )


def _trust_in(address: str, ca_file: Path | None, ca_hash: str) -> Trust | None:
    """How the server at an address is known; None: it is on this machine, and does not use TLS."""
    from taskworker.auth.contexts import is_on_this_machine, plain_address
    from taskworker.auth.trust import Trust
    from taskworker.client.trusting import known_by_authority, known_by_hash, shows_certificates

    if ca_file is not None:
        return known_by_authority(address, ca_file.read_bytes())
    if ca_hash:
        return known_by_hash(address, ca_hash)
    if not is_on_this_machine(plain_address(address)) or shows_certificates(address):
        return Trust()
    return None


def _asked() -> str:
    check_input()
    if sys.stdin.isatty():
        typed: str = typer.prompt("Token", hide_input=True, err=True)
        return typed
    return sys.stdin.buffer.read(_TOKEN_CHARACTERS_MAX).decode("ascii", "replace")


def ls(session: Session) -> None:
    """List the servers that you have tokens for, but never a token.

    Examples:
        taskworker context ls
    """
    from taskworker.auth.contexts import Contexts

    contexts = Contexts()
    current, found = contexts.current, contexts.all()
    session.terminal.result(
        [
            {
                "address": one.address,
                "user": one.user,
                "current": one.address == current,
                "owned": bool(one.server),
                "encrypted": one.trust is not None,
            }
            for one in found
        ],
        *(
            f"{'*' if one.address == current else ' '} {one_line(one.address)}  {one_line(one.user)}"
            f"{'  (yours)' if one.server else ''}{'  TLS' if one.trust else ''}"
            for one in found
        ),
        *([] if found else ["no contexts yet; `taskworker login ADDR` makes one, and so does starting a server"]),
    )


def use(session: Session, address: Address) -> None:
    """Let commands without --pool work on this server.

    Examples:
        taskworker context use 127.0.0.1:50051
    """
    from taskworker.auth.contexts import Contexts

    chosen = Contexts().use(address)
    session.terminal.result(
        {"address": chosen.address, "user": chosen.user}, f"commands without --pool work on {one_line(chosen.address)}"
    )


def rm(session: Session, address: Address) -> None:
    """Forget a server and your token for it. The token stays valid until it is revoked.

    Examples:
        taskworker context rm 127.0.0.1:50051
    """
    from taskworker.auth.contexts import Contexts

    if not Contexts().remove(address):
        raise Failure(f"there is no context for {one_line(address)}", ExitCode.NOT_FOUND)
    session.terminal.result({"address": address, "removed": True}, f"{one_line(address)} is forgotten")


def refresh(
    session: Session,
    address: Annotated[str | None, typer.Argument(help="Only this server.", metavar="[ADDR]")] = None,
) -> None:
    """Learn of the certificate authorities that servers have added, before they drop the former ones.

    Other commands do so, too, twice a day, for the server that they use. Servers that do not answer are named, and stay
    as they are.

    Examples:
        taskworker context refresh
    """
    from storage.errors import StorageError
    from taskworker.auth.contexts import Contexts, plain_address
    from taskworker.client.trust_refresh import is_refreshable
    from taskworker.client.trust_refresh import refresh as refresh_one

    contexts, told, failed = Contexts(), [], 0
    for one in contexts.all():
        if not is_refreshable(one) or (address and plain_address(address) != one.address):
            continue
        try:
            found = refresh_one(contexts, one)
        except StorageError as error:
            failed += 1
            session.terminal.error(f"{one_line(one.address)}: {error}")
            continue
        told.append({"address": one.address, "authorities": found.authorities, "changed": found.is_changed})
    session.terminal.result(
        told, *(f"{one_line(str(one['address']))}: {'changed' if one['changed'] else 'unchanged'}" for one in told)
    )
    if failed:
        raise Failure(f"{failed} servers could not be asked", ExitCode.UNAVAILABLE)


app.command("refresh", cls=Command)(with_session(refresh))
app.command("ls", cls=Command)(with_session(ls))
app.command("use", cls=Command)(with_session(use))
app.command("rm", cls=Command)(with_session(rm))
