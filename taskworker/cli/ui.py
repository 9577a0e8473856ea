"""The command ui: signs this login in to the page of a server, in a browser."""

from __future__ import annotations

import html
import os
import tempfile
import webbrowser
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from taskworker.cli.exits import ExitCode, Failure
from taskworker.cli.gateways import needing_extra
from taskworker.cli.session import Session
from taskworker.cli.text import one_line

_TIMEOUT_S = 30.0
_MINUTES = 2


def ui(
    session: Session,
    at: Annotated[
        str,
        typer.Option(
            "--at",
            help="URL of a page that runs already, such as https://pool.example. It is sent your token, so it must be "
            "one that you trust.",
            metavar="URL",
        ),
    ] = "",
    ca_file: Annotated[
        Path | None,
        typer.Option(
            help="With --at: file with the certificate of the authority that vouches for the page, PEM.",
            metavar="FILE",
            dir_okay=False,
            exists=True,
        ),
    ] = None,
    listen: Annotated[
        str, typer.Option(help="Without --at: address on this machine to serve the page at.", metavar="ADDR")
    ] = "127.0.0.1:0",
    no_open: Annotated[
        bool, typer.Option("--no-open", help="Print the link only; open no browser.", show_default=False)
    ] = False,
) -> None:
    """See and use a pool with a browser: print a link that signs you in, and open it if there is a display.

    The link works once, within two minutes. Without --at, the page is served by this command, for this machine, until
    Ctrl-C.

    Examples:
        taskworker ui
        taskworker ui --at https://pool.example
    """
    address = session.pool_address()
    token = _token_for(address)
    if at:
        _show(session, _link_at(at.rstrip("/"), token, ca_file), wanted=not no_open)
        return
    if ca_file is not None:
        raise Failure("--ca-file is for --at", ExitCode.USAGE)
    _serve(session, address, token, listen, wanted=not no_open)


def _token_for(address: str) -> str:
    from taskworker.auth.contexts import AccessTo

    token = AccessTo(address)().token
    if not token:
        raise Failure(f"you have no token for {one_line(address)}; `taskworker login` keeps one", ExitCode.FAILED)
    return token


def _serve(session: Session, address: str, token: str, listen: str, *, wanted: bool) -> None:
    from storage.system.descriptors import raise_descriptor_limit
    from taskworker.auth.contexts import is_on_this_machine

    if not is_on_this_machine(listen):
        raise Failure(
            f"{one_line(listen)} can be reached by other machines: `taskworker gateway page` serves these",
            ExitCode.USAGE,
        )
    raise_descriptor_limit()
    with needing_extra():
        from taskworker.gateways.http_server import HttpServer
        from taskworker.gateways.page.app import PageApp
    from taskworker.client.pool import PoolClient
    from taskworker.client.users import UserClient

    with UserClient(address) as users:
        user = users.who_am_i().user
    app = PageApp(address, watcher=PoolClient(address))
    server = HttpServer(app, listen, on_stop=app.stop)

    def ready() -> None:
        _show(session, f"http://{server.address}/sign-in/{app.codes.make(token, user)}", wanted=wanted)

    server.run(ready)


def _link_at(page: str, token: str, ca_file: Path | None) -> str:
    import ssl

    import httpx

    from taskworker.auth.contexts import is_on_this_machine

    parts = urlsplit(page)
    is_plain = parts.scheme == "http"
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path or parts.query:
        raise Failure(f"{one_line(page)} is no URL of a page: give one such as https://pool.example", ExitCode.USAGE)
    if is_plain and not is_on_this_machine(f"{parts.hostname}:{parts.port or 80}"):
        raise Failure(f"refusing to send a token to {one_line(page)} without TLS: give an https URL", ExitCode.USAGE)
    verify = ssl.create_default_context(cafile=str(ca_file) if ca_file is not None else None)
    try:
        with httpx.Client(verify=verify, timeout=_TIMEOUT_S, trust_env=False) as client:
            answer = client.post(f"{page}/sign-in/link", headers={"authorization": f"Bearer {token}"})
        told = answer.json()
        if answer.status_code != 200:
            raise Failure(f"{one_line(page)} refuses: {one_line(str(told['problem']))}", ExitCode.FAILED)
        return page + str(told["path"])
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise Failure(f"no page answers at {one_line(page)}: {one_line(str(error))}", ExitCode.UNAVAILABLE) from None


def _opened(link: str) -> bool:
    """Have the browser open a link by a private file: other logins can read the arguments of its process.

    The file, in a directory of this login's, stays: the browser may read it later. The link works once.
    """
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "taskworker"
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=state, delete=False) as file:  # only its owner may read it
            file.write(f'<!doctype html><meta http-equiv="refresh" content="0;url={html.escape(link)}">')
        page = state / "sign-in.html"
        Path(file.name).replace(page)
    except OSError:
        return False  # the link is printed
    return webbrowser.open(page.as_uri())


def _show(session: Session, link: str, *, wanted: bool) -> None:
    has_display = bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    opened = wanted and has_display and _opened(link)
    session.terminal.result(
        {"url": link, "opened": opened},
        f"{link}\nsigns you in, once, within {_MINUTES} minutes{'; your browser opens it' if opened else ''}",
    )
