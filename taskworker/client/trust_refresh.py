"""Learns of the authorities that a server has added, before it drops the former ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from storage.clocks import wall_ms
from taskworker.auth.contexts import Context, Contexts
from taskworker.auth.identity import POOL_DNS_NAME
from taskworker.client.users import UserClient

DUE_MS = 12 * 3_600_000
"""How often a context is looked after while its server is used. Operators leave days between the steps."""


class Refreshed(NamedTuple):
    """What a server has told.

    Attributes:
        authorities: how many there are.
        is_changed: whether others were known before.
    """

    authorities: int
    is_changed: bool


def is_refreshable(context: Context) -> bool:
    """Whether a server is known by its own authority."""
    trust = context.trust
    return trust is not None and bool(trust.authorities) and trust.name == POOL_DNS_NAME


def asked_now(context: Context, now_ms: Callable[[], int] = wall_ms) -> Context:
    """A context whose server has just been asked for its authorities, or told them."""
    return context._replace(asked_ms=str(now_ms()))


def is_due(context: Context, now_ms: Callable[[], int] = wall_ms) -> bool:
    """Whether the server should be asked again. Contexts of its owner are kept by the server itself."""
    asked_ms = int(context.asked_ms) if context.asked_ms.isdecimal() else 0
    return is_refreshable(context) and not context.server and now_ms() - asked_ms > DUE_MS


def refresh(contexts: Contexts, context: Context) -> Refreshed:
    """Ask a server for its authorities, and keep them.

    Raises:
        StorageError: it does not answer, or is not trusted any more.
    """
    with UserClient(context.address) as client:
        found = client.authorities().authorities
    known = "".join(one.certificate for one in found)
    trust = context.trust
    assert trust is not None, "it is refreshable"
    contexts.put(asked_now(context.with_trust(trust._replace(authorities=known))))
    return Refreshed(len(found), known != trust.authorities)
