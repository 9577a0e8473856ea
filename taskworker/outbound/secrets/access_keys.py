"""The secrets of access keys, sealed beside the pool's other secrets, which can have no such names."""

from __future__ import annotations

from collections.abc import Callable, Collection

from storage.clocks import wall_ms
from storage.sealing.master_keys import MasterKey
from taskworker.outbound.secrets.document import SealedSecret
from taskworker.outbound.secrets.sealing import Terms, seal
from taskworker.outbound.secrets.vault import Vault

_PREFIX = "access-key:"


def is_of_access_key(name: str) -> bool:
    """Whether this is the name of an access key's secret."""
    return name.startswith(_PREFIX)


class AccessKeySecrets:
    """Keeps the secrets of access keys. Thread-safe.

    All methods raise ``SecretsUnavailable`` if the master key cannot be used, and ``SecretDamaged`` if the catalog was
    tampered with.

    Args:
        vault: the sealed secrets.
        now_ms: milliseconds since 1970.
    """

    def __init__(self, vault: Vault, now_ms: Callable[[], int] = wall_ms) -> None:
        self._vault = vault
        self._now_ms = now_ms

    def keep(self, access_key_id: str, secret: str, *, others: Collection[str]) -> None:
        """Keep a secret, and of all other ones those of ``others``.

        Raises:
            StoreFull: all secrets together would be too large.
        """
        name, now_ms = _PREFIX + access_key_id, self._now_ms()

        def edit(kept: dict[str, SealedSecret], key: MasterKey) -> None:
            for one in [one for one in kept if is_of_access_key(one) and one.removeprefix(_PREFIX) not in others]:
                del kept[one]
            terms, record = seal(secret, Terms(name, 1, b"", now_ms, now_ms), key)
            kept[name] = SealedSecret(name, terms.version, terms.serial, record, key, terms)

        self._vault.change(edit)

    def find(self, access_key_id: str) -> str | None:
        """Return a secret; None if it is not there."""
        found = self._vault.secrets().by_name.get(_PREFIX + access_key_id)
        return None if found is None else found.value()

    def forget(self, access_key_ids: Collection[str]) -> None:
        """Drop secrets, if they are there."""

        def edit(kept: dict[str, SealedSecret], _key: MasterKey) -> None:
            for one in access_key_ids:
                kept.pop(_PREFIX + one, None)

        self._vault.change(edit)
