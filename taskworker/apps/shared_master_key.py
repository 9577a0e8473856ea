"""One master key for a pool's secrets and for the keys of its users' files."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from storage.sealing.master_keys import StoreKey, StoreKeys
from taskworker.errors import SecretsUnavailable
from taskworker.outbound.secrets.master_key import KeyRing, MasterKeySource

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SharedMasterKey:
    """A ``MasterKeySource`` whose former keys are kept until the users' keys are sealed with the current one, too.

    Args:
        source: keeps the keys.
        seal_again: seals the users' keys with the current key.
    """

    source: MasterKeySource
    seal_again: Callable[[StoreKeys], None]

    @property
    def name(self) -> str:
        """See ``MasterKeySource``."""
        return self.source.name

    def load(self) -> KeyRing | None:
        """See ``MasterKeySource``."""
        return self.source.load()

    def make(self) -> KeyRing:
        """See ``MasterKeySource``."""
        return self.source.make()

    def renew(self, ring: KeyRing) -> KeyRing:
        """See ``MasterKeySource``."""
        return self.source.renew(ring)

    def settle(self, ring: KeyRing) -> KeyRing:
        """See ``MasterKeySource``."""
        self.seal_again(_store_keys(ring))
        return self.source.settle(ring)


def given_keys(source: MasterKeySource, make: bool) -> StoreKeys | None:
    """Return the master keys for users' files; make the first one if there is none, and it is wanted.

    Raises:
        SecretsUnavailable: one shall be made, but the place where they are kept cannot be used.
    """
    try:
        ring = source.load()
        if ring is None and make:
            ring = source.make()
    except SecretsUnavailable as error:
        if make:
            raise
        log.warning("encrypted files, if there are any, cannot be read: %s", error)
        return None
    return None if ring is None else _store_keys(ring)


def _store_keys(ring: KeyRing) -> StoreKeys:
    return StoreKeys(StoreKey(ring.current.raw), tuple(StoreKey(key.raw) for key in ring.former))
