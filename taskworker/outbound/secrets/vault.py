"""The sealed secrets of a pool and their keys: reads, changes and re-wraps them atomically."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

from storage.errors import StorageError, StoreFull
from storage.sealing.master_keys import MasterKey, MasterKeys
from taskworker.auth.documents import Documents
from taskworker.errors import SecretsUnavailable
from taskworker.outbound.secrets.document import SealedSecret, SealedSecrets, key_id_of, opened, rewrapped_all, sealed
from taskworker.outbound.secrets.master_key import MasterKeySource

T = TypeVar("T")

log = logging.getLogger(__name__)

DOCUMENT = "pool-secrets"
DOCUMENT_BYTES_MAX = 16 << 20


class Vault:
    """The sealed secrets. Thread-safe. Reads the document for each use, so that changes by others are seen.

    Args:
        documents: where the sealed secrets are stored.
        source: where the master key is kept.
    """

    def __init__(self, documents: Documents, source: MasterKeySource) -> None:
        self._documents = documents
        self._source = source
        self._lock = threading.RLock()
        self._ring: MasterKeys | None = None
        self._read: tuple[bytes, SealedSecrets] | None = None

    def secrets(self) -> SealedSecrets:
        """All secrets as they are now.

        Raises:
            SecretsUnavailable: the master key is missing, is the wrong one, or is not kept safely.
            SecretDamaged: the document in the catalog was tampered with.
        """
        with self._lock:
            return self._secrets(self._keys())

    def master_key(self) -> MasterKey:
        """The current master key.

        Raises:
            SecretsUnavailable: it is missing, or is not kept safely.
        """
        with self._lock:
            return self._keys().current

    def change(self, edit: Callable[[dict[str, SealedSecret], MasterKey], T]) -> T:
        """Let ``edit`` change the secrets in place, and store them; if it raises, nothing is changed.

        Raises:
            SecretsUnavailable, SecretDamaged: as for :meth:`secrets`.
            StoreFull: all secrets together would be too large.
        """
        with self._lock:
            found = self._secrets(self._keys())
            edited = dict(found.by_name)
            outcome = edit(edited, found.key)
            document = sealed(edited.values(), found.key)
            if len(document) > DOCUMENT_BYTES_MAX:
                raise StoreFull(
                    f"the pool's secrets would take {len(document):,} bytes, of {DOCUMENT_BYTES_MAX:,} at most; remove "
                    "some, or make them smaller"
                )
            self._documents.save_document(DOCUMENT, document)
            return outcome

    def discard(self) -> None:
        """Delete all secrets, even unreadable ones."""
        with self._lock:
            self._documents.save_document(DOCUMENT, b"")

    def rotate(self) -> tuple[str, int]:
        """Make a new master key and wrap all data keys with it; returns the new key's id and the number of data keys.

        Secrets can be used meanwhile. First the new key is stored beside the old one, then everything is re-wrapped
        atomically, then the old key is deleted. After a crash at any point, all secrets are readable, and the next
        start completes the rotation.

        Raises:
            InvalidArgument: the pool cannot change the key where it is kept.
            SecretsUnavailable: the key cannot be read or written.
            SecretDamaged: a secret was tampered with.
        """
        with self._lock:
            ring = self._keys()
            found = self._secrets(ring)
            rewrapped_all(found, ring.current)  # fails before anything is changed, if something cannot be re-wrapped
            self._ring = ring = self._source.renew(ring)
            self._settle(ring)
            return ring.current.id.hex(), len(found.by_name)

    def _settle(self, ring: MasterKeys) -> None:
        """Re-wrap everything with the current key, then delete the others."""
        found = self._secrets(ring)
        if found.key is not ring.current:
            self._documents.save_document(DOCUMENT, rewrapped_all(found, ring.current))
        self._ring = self._source.settle(ring)

    def _keys(self) -> MasterKeys:
        if self._ring is not None:
            return self._ring
        ring = self._source.load()
        if ring is None:
            raw = self._document()
            if raw:
                raise SecretsUnavailable(
                    f"{self._source.name} is missing, and the pool's secrets are sealed under master key "
                    f"{key_id_of(raw)}: bring the key back; if it is lost, so are the values, and `taskworker secret "
                    "rm --all` makes room for new ones"
                )
            ring = self._source.make()
        self._ring = ring
        if ring.former:
            self._end_rotation(ring)
        return self._ring

    def _end_rotation(self, ring: MasterKeys) -> None:
        try:
            self._settle(ring)
        except StorageError as error:
            # Everything can be read with the stored keys; the next start or rotation retries.
            log.warning("a change of the master key is not complete yet: %s", error)

    def _secrets(self, ring: MasterKeys) -> SealedSecrets:
        raw = self._document()
        if self._read is None or self._read[0] != raw or ring.find(self._read[1].key.id) is None:
            self._read = raw, opened(raw, ring, self._source.name)
        return self._read[1]

    def _document(self) -> bytes:
        return self._documents.document(DOCUMENT) or b""
