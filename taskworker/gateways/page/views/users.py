"""Users and their tokens: who there is, what they store, and what operators do about it."""

from __future__ import annotations

from typing import Any

from storage.errors import InvalidArgument
from taskworker.auth.rights import Right, Role
from taskworker.gateways.page.rendering import url
from taskworker.gateways.page.sessions import Notice
from taskworker.gateways.page.viewing import Action, Asked, Done, View
from taskworker.readable import one_line

_EVERY_S = 5.0
_TOKENS = 200
_LASTING: dict[str, tuple[str, float | None]] = {
    "day": ("a day", 86400.0),
    "month": ("30 days", 30 * 86400.0),
    "year": ("a year", 365 * 86400.0),
    "ever": ("until it is revoked", None),
}


def load_all(asked: Asked) -> dict[str, Any]:
    """All users."""
    return {
        "users": asked.acting.users().users(),
        "roles": [str(role) for role in Role],
        "may_operate": asked.principal.has(Right.OPERATE),
    }


def load(asked: Asked) -> dict[str, Any]:
    """One user."""
    users = asked.acting.users()
    name = asked.field("name")
    found = next((one for one in users.users() if one.user == name), None)
    if found is None:
        raise InvalidArgument(f"there is no user {name[:200]!r}; the user may have been removed")
    tokens = users.tokens(name)
    return {
        "user": found,
        "tokens": list(reversed(tokens))[:_TOKENS],
        "token_count": len(tokens),
        "own_token": asked.principal.token,
        "lasting": _LASTING,
        "may_operate": asked.principal.has(Right.OPERATE),
    }


def add(asked: Asked) -> Done:
    """Add a user."""
    name = asked.field("name")
    made = asked.acting.users().add(name, asked.field("role"))
    return _done(name, f"{name} is added, {made.role}; make a token, and give it to {name}")


def remove(asked: Asked) -> Done:
    """Remove a user."""
    name = asked.field("name")
    tokens = asked.acting.users().remove(name)
    return Done("/users", Notice(one_line(f"{name} is removed, and {tokens} tokens ended; the files stay")))


def create_token(asked: Asked) -> Done:
    """Make a token, and show it this once."""
    name = asked.field("name")
    try:
        _, ttl_s = _LASTING[asked.field("expires")]
    except KeyError:
        raise InvalidArgument("say for how long the token is valid") from None
    text, _ = asked.acting.users().create_token(
        name, scopes=asked.field("scopes").split(), ttl_s=ttl_s, label=asked.field("label")
    )
    notice = Notice(one_line(f"a new token of {name}; it is not shown again"), secret=text)
    return Done(url("/user", name=name), notice)


def revoke(asked: Asked) -> Done:
    """End a token."""
    name = asked.field("name")
    ended = asked.acting.users().revoke(asked.field("token_id"))
    return _done(name, f"token {ended.token_id} of {name} is revoked")


def _done(name: str, text: str) -> Done:
    return Done(url("/user", name=name), Notice(one_line(text)))


VIEWS = (
    View("/users", "Users", "users.html", ("users",), load_all, "users", Right.AUDIT, every_s=_EVERY_S),
    View("/user", "User", "user.html", ("user",), load, "users", every_s=_EVERY_S),
)
ACTIONS = (
    Action("/user/add", add),
    Action("/user/remove", remove),
    Action("/user/token", create_token),
    Action("/user/revoke", revoke),
)
