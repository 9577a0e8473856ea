"""What is reached: addresses to listen on, contexts, servers, and certificates."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from storage.clocks import wall_ms
from storage.errors import InvalidArgument, StorageError
from taskworker.auth.contexts import Context, Contexts, reached_here
from taskworker.client.users import UserClient
from taskworker.doctor.findings import Finding, fine, problem, warning
from taskworker.errors import DeadlineExceeded, StorageUnavailable, Unauthenticated
from taskworker.rpc.serving import Endpoint
from taskworker.worker.member import load_member

_NEW_TOKEN = "start it with a new token to join with: taskworker worker token"
_ASKED_MAX = 32
_CONNECT_S = 1.0


class _BriefClient(UserClient):
    """Does not wait long for servers that are gone."""

    timeout_s = 5.0


def port(address: str) -> Iterator[Finding]:
    """Whether a server could listen at an address, or does already."""
    about = f"address {address}"
    try:
        endpoint = Endpoint.parse(address, secured=True)
        if endpoint.socket_file is not None:
            yield _socket_file(about, endpoint.socket_file)
            return
        _listen_at(address)
    except InvalidArgument as error:
        yield problem(about, str(error), "write HOST:PORT, or unix:PATH")
    except OSError as error:
        if error.errno == errno.EADDRINUSE and _is_known(address):
            yield fine(about, "a server of yours listens there")
        elif error.errno == errno.EADDRINUSE:
            yield warning(
                about, "something listens there already", "if that is no server of yours, choose another --listen"
            )
        else:
            yield problem(about, f"nothing can listen there: {error.strerror or error}", "choose another --listen")
    else:
        yield fine(about, "it is free")


def _listen_at(address: str) -> None:
    host, _, number = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    family, kind, _, _, place = socket.getaddrinfo(host, int(number), type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tried.bind(place)


def _socket_file(about: str, path: Path) -> Finding:
    if path.absolute().parent.is_dir():
        return fine(about, "its directory is there")
    return problem(about, f"there is no directory {path.absolute().parent}", "make it, or choose another --listen")


def _is_known(address: str) -> bool:
    with contextlib.suppress(StorageError, OSError):
        return Contexts().find(reached_here(address)) is not None
    return False


def contexts() -> Iterator[Finding]:
    """The login's contexts, and what their servers say."""
    kept = Contexts()
    about = f"contexts {kept.path}"
    try:
        found, current = kept.all(), kept.current
    except (StorageError, OSError) as error:
        yield problem(about, str(error), "without it, no server that asks for a token can be used")
        return
    yield fine(about, f"known servers: {len(found)}")
    away = 0
    for one in sorted(found, key=lambda each: each.address != current)[:_ASKED_MAX]:
        is_current = one.address == current
        told = _server(one, is_current=is_current)
        away += told is None
        if told is not None:
            yield told
    if away:
        yield fine(about, f"servers that this login started at some time, and that do not run now: {away}")


def _server(context: Context, *, is_current: bool) -> Finding | None:
    """What a server says; None: it does not run, and need not, as this login starts it when it is wanted."""
    about = f"server {context.address}"
    try:
        with _BriefClient(context.address) as client:
            who = client.who_am_i()
    except Unauthenticated as error:
        return problem(about, f"it does not accept your token: {error}", f"taskworker login {context.address}")
    except (StorageUnavailable, DeadlineExceeded) as error:
        if is_current:
            return warning(about, str(error), "start it, or choose another one: taskworker context use")
        if context.server:
            return None
        return warning(about, str(error), f"if it is gone for good: taskworker context rm {context.address}")
    except StorageError as error:
        return problem(about, str(error), "see docs/troubleshooting.md")
    return fine(about, f"it answers, and knows you as {who.user or 'somebody without a token'}")


def membership(directory: Path, now_ms: Callable[[], int] = wall_ms) -> Iterator[Finding]:
    """The certificate of a worker that joined with a token, in its directory."""
    about = f"worker {directory}"
    try:
        member = load_member(directory, now_ms)
    except (StorageError, OSError) as error:
        yield problem(about, str(error), _NEW_TOKEN)
        return
    if member is None:
        return
    lifetime = member.credentials.lifetime
    left_s = lifetime.end_s - now_ms() / 1000
    advice = "start the worker, which renews it; once it has expired, it needs a new token to join with"
    if member.credentials.problem:
        yield problem(about, member.credentials.problem, _NEW_TOKEN)
    elif left_s < (lifetime.end_s - lifetime.begin_s) / 4:
        yield warning(about, f"its certificate expires in {left_s / 3600:.1f} hours", advice)
    else:
        yield fine(about, f"its certificate is valid for {left_s / 3600:.1f} more hours")
    yield from _reachable(about, member.members_address)


def _reachable(about: str, address: str) -> Iterator[Finding]:
    host, _, number = address.rpartition(":")
    try:
        with socket.create_connection((host.removeprefix("[").removesuffix("]"), int(number)), timeout=_CONNECT_S):
            pass
    except (OSError, ValueError) as error:
        yield warning(
            about, f"its pool at {address} cannot be reached: {error}", "start the pool, or open its port in firewalls"
        )
    else:
        yield fine(about, f"its pool at {address} can be reached")
