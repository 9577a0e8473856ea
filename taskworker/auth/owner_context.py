"""The context of a server's owner: whoever starts a server is its operator, and needs no token from anybody."""

from __future__ import annotations

import os
import pwd
import socket

from storage.errors import InvalidArgument
from taskworker.auth.contexts import Context, Contexts, reached_here
from taskworker.auth.rights import Right, Role, Scope
from taskworker.auth.trust import Trust
from taskworker.auth.users import Users, check_name
from taskworker.errors import Unauthenticated

_FOR_WORKERS = (Scope(Right.JOIN),)


def keep_owner_context(
    users: Users,
    server: str,
    address: str,
    contexts: Contexts | None = None,
    *,
    trust: Trust | None = None,
    has_workers: bool = False,
) -> str:
    """Make the user of this process an operator, whose token is in the context for the server's address.

    A token that was made at an earlier start is used again.

    Args:
        users: the server's users.
        server: id of the server.
        address: where it listens.
        contexts: where the context is kept; None: with this user's others.
        trust: how clients know the server; None: it does not use TLS.
        has_workers: whether workers of this login join it, which get a token of their own that lets them do no more.

    Returns:
        The operator's name.

    Raises:
        NotPrivate: others may read or change the contexts.
        FormatError: they are damaged.
        OSError: they cannot be written.
    """
    contexts = contexts or Contexts()
    owner = users.make_operator(login_name()).name
    former = next((one for one in contexts.all() if one.server == server), Context("", ""))
    token = _kept_or_new(users, owner, former.token, ())
    worker_token = _kept_or_new(users, owner, former.worker_token, _FOR_WORKERS) if has_workers else ""
    context = Context(reached_here(address), token, owner, server, worker_token=worker_token)
    contexts.put(context.with_trust(trust))
    return owner


def _kept_or_new(users: Users, owner: str, kept: str, scopes: tuple[Scope, ...]) -> str:
    """A token that was made at an earlier start, if it is still good, or a new one."""
    if kept and _is_valid(users, kept, owner, scopes):
        return kept
    what = "workers" if scopes else "context"
    return users.create_token(owner, scopes=scopes, label=f"{what} on {socket.gethostname()}").text


def login_name() -> str:
    """The name of the user that runs this process; ``uid-N`` if there is none, or no user may have it."""
    number = os.geteuid()
    try:
        name = pwd.getpwuid(number).pw_name
        check_name(name)
    except (KeyError, InvalidArgument):
        return f"uid-{number}"
    return name


def _is_valid(users: Users, token: str, owner: str, scopes: tuple[Scope, ...]) -> bool:
    try:
        principal = users.principal_of(token)
    except Unauthenticated:
        return False
    return (principal.user, principal.role, principal.scopes) == (owner, Role.OPERATOR, scopes)
