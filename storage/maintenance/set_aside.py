"""Records that a walk over the store cannot read: reported and set aside, while the work on the others goes on."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from storage.catalog import user_key
from storage.keys import Kind, ShardKey, StripeKey, kind_of, object_id_of, stripe_of
from storage.reports import DAMAGE_LISTED_MAX, Damage

log = logging.getLogger(__name__)

UNREADABLE = "unreadable"


class SetAside:
    """The versions that one walk could not read, and whose claims nothing must be concluded from.

    What such a version needs is not known, so a collect spares all that its owner has a claim on, and all manifest
    nodes, until the file was deleted.

    Args:
        report: keeps a note of damage, as ``Fleet.report`` does.

    Attributes:
        count: how many there are.
        damage: the first of them, for reports.
    """

    def __init__(self, report: Callable[[str, bytes, int, str], None]) -> None:
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
            stripe: of its version object.
            user_id: the owner; None: not known.
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
        """Tell of a record that cannot be read, and of which enough is known to do no harm."""
        if len(self.damage) < DAMAGE_LISTED_MAX:
            now_ms = time.time_ns() // 1_000_000
            self.damage.append(Damage(now_ms, UNREADABLE, object_id_of(stripe).hex(), -1, -1, text))
            self._report(UNREADABLE, stripe, -1, text)
            log.warning("set aside: %s", text)

    def needs(self, key: ShardKey) -> bool:
        """Whether a shard must be kept, whatever else is known: it is of a version set aside, or of a node."""
        return self.count > 0 and (kind_of(key) == Kind.NODE or stripe_of(key) in self._stripes)

    def spares(self, user: bytes) -> bool:
        """Whether what the user with this key has a claim on must be kept, whatever else is known."""
        return self._owner_unknown or user in self._owners
