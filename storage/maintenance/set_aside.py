"""Reports records that a walk over the store cannot read, and sets them aside so that the walk can continue."""

from __future__ import annotations

import logging
from collections.abc import Callable

from storage.catalog import user_key
from storage.keys import Kind, ShardKey, StripeKey, kind_of, object_id_of, stripe_of
from storage.reports import DAMAGE_LISTED_MAX, Damage

log = logging.getLogger(__name__)

UNREADABLE = "unreadable"


class SetAside:
    """The versions that a walk could not read, so that nothing may be concluded about their claims.

    It is unknown what such a version needs, so a collect spares everything that its owner has claims on, and all
    manifest nodes, until the file is deleted.

    Args:
        report: records damage, like ``Fleet.report``.
        now_ms: milliseconds since 1970.

    Attributes:
        count: number of versions set aside.
        damage: the first of them, for reports.
    """

    def __init__(self, report: Callable[[str, bytes, int, str], None], now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._report = report
        self._stripes: set[StripeKey] = set()
        self._owners: set[bytes] = set()
        self._owner_unknown = False
        self.count = 0
        self.damage: list[Damage] = []

    def __bool__(self) -> bool:
        return self.count > 0

    def add(self, stripe: StripeKey, user_id: str | None, text: str) -> None:
        """Set a version aside.

        Args:
            stripe: stripe of its version object.
            user_id: the owner; None: unknown.
            text: what is wrong, and what to do.
        """
        self.count += 1
        self._stripes.add(stripe)
        if user_id is None:
            self._owner_unknown = True
        else:
            self._owners.add(user_key(user_id.encode()))
        self.report(stripe, text)

    def report(self, stripe: StripeKey, text: str) -> None:
        """Report an unreadable record about which enough is known to go on safely."""
        if len(self.damage) < DAMAGE_LISTED_MAX:
            self.damage.append(Damage(self._now_ms(), UNREADABLE, object_id_of(stripe).hex(), -1, -1, text))
            self._report(UNREADABLE, stripe, -1, text)
            log.warning("set aside: %s", text)

    def needs(self, key: ShardKey) -> bool:
        """Whether a shard must be kept in any case: it belongs to a version set aside, or to a node."""
        return self.count > 0 and (kind_of(key) == Kind.NODE or stripe_of(key) in self._stripes)

    def spares(self, user: bytes) -> bool:
        """Whether everything that the user with this key has claims on must be kept."""
        return self._owner_unknown or user in self._owners
