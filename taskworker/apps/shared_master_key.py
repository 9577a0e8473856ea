"""One master key for a pool's secrets and for the keys of its users' files."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from storage.sealing.master_keys import MasterKeys
from taskworker.errors import SecretsUnavailable
from taskworker.outbound.secrets.master_key import MasterKeySource
from taskworker.pool.node_pool import NodePool

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SharedMasterKey:
    """A ``MasterKeySource`` whose former keys are kept until the users' keys are sealed with the current one, too.

    Args:
        source: keeps the keys.
        seal_again: seals the users' keys with the current key.
        needs_rebuild: whether the catalog is lost, and has yet to be rebuilt.
    """

    source: MasterKeySource
    seal_again: Callable[[MasterKeys], None]
    needs_rebuild: Callable[[], bool]

    @property
    def name(self) -> str:
        """See ``MasterKeySource``."""
        return self.source.name

    @property
    def file(self) -> Path | None:
        """See ``MasterKeySource``."""
        return self.source.file

    def load(self) -> MasterKeys | None:
        """See ``MasterKeySource``."""
        return self.source.load()

    def make(self) -> MasterKeys:
        """See ``MasterKeySource``. A new key would take the place of the lost pool's, which its files may need."""
        if self.needs_rebuild():
            raise SecretsUnavailable(
                f"{self.name} is missing, and the catalog has yet to be rebuilt: if the lost pool encrypted its files, "
                "stop this one, bring the key back (`taskworker secret import-key`), and start again; if it did not, "
                "a new key is made after the rebuild"
            )
        return self.source.make()

    def renew(self, ring: MasterKeys) -> MasterKeys:
        """See ``MasterKeySource``."""
        return self.source.renew(ring)

    def settle(self, ring: MasterKeys) -> MasterKeys:
        """See ``MasterKeySource``."""
        self.seal_again(ring)
        return self.source.settle(ring)


def given_keys(source: MasterKeySource, make: bool) -> MasterKeys | None:
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
    return ring


def note_kept_elsewhere(source: MasterKeySource, pool: NodePool) -> None:
    """Note that there is a copy of the master key outside the pool, if the pool is given the key and keeps none."""
    key_id = pool.store.upkeep.keys.master_id
    if source.file is None and key_id and not pool.key_copies.copied_ms(key_id):
        pool.key_copies.note(key_id)
