"""Who has what callers show: tokens of users, and links to files."""

from __future__ import annotations

from typing import Protocol

from taskworker.auth.link_tokens import is_link
from taskworker.auth.rights import Principal
from taskworker.auth.sharing import Sharing


class KnowsTokens(Protocol):
    """Knows tokens."""

    def principal_of(self, text: str) -> Principal:
        """Return who has this token; raise Unauthenticated if nobody has."""

    def user_of(self, text: str) -> str:
        """Return the user whose token this is, be it valid or not; empty: nobody's."""


class Bearers:
    """Knows tokens and links.

    Args:
        users: knows the tokens.
        sharing: knows the links.
    """

    def __init__(self, users: KnowsTokens, sharing: Sharing) -> None:
        self._users = users
        self._sharing = sharing

    def principal_of(self, text: str) -> Principal:
        """Return who has this token or link; raise Unauthenticated if nobody has."""
        return self._sharing.principal_of_link(text) if is_link(text) else self._users.principal_of(text)

    def user_of(self, text: str) -> str:
        """Return the user whose token this is, be it valid or not; empty: nobody's, as links are."""
        return "" if is_link(text) else self._users.user_of(text)
