"""The sealed secrets of a pool and the keys to them: read as they are now, changed in one step, wrapped anew."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Protocol, TypeVar

from storage.errors import StorageError, StoreFull
from taskworker.errors import SecretsUnavailable
from taskworker.outbound.secrets.document import SealedSecret, SealedSecrets, key_id_of, opened, rewrapped_all, sealed
from taskworker.outbound.secrets.master_key import KeyRing, MasterKey, MasterKeySource

T = TypeVar("T")

log = logging.getLogger(__name__)

DOCUMENT = "pool-secrets"
DOCUMENT_BYTES_MAX = 16 << 20


class Documents(Protocol):
    """The part of a catalog (``storage.catalog.Catalog``) that secrets need."""

    def document(self, name: str) -> bytes | None:
        """What was kept under a name."""

    def save_document(self, name: str, raw: bytes) -> None:
        """Durably keep a document, all of it or, if that fails, nothing."""


class Vault:
    """Thread-safe. The document is looked at anew for each use, so that what others do to it is seen.

    Args:
        documents: where the sealed secrets are.
        source: where the master key is.
    """

    def __init__(self, documents: Documents, source: MasterKeySource) -> None:
        self._documents = documents
        self._source = source
        self._lock = threading.RLock()
        self._ring: KeyRing | None = None
        self._read: tuple[bytes, SealedSecrets] | None = None

    def secrets(self) -> SealedSecrets:
        """All of them as they are now.

        Raises:
            SecretsUnavailable: the master key is missing, another one, or not kept as it must be.
            SecretDamaged: what the catalog holds was changed.
        """
        with self._lock:
            return self._secrets(self._keys())

    def change(self, edit: Callable[[dict[str, SealedSecret], MasterKey], T]) -> T:
        """Have ``edit`` change the secrets by name, in place, and keep them; if it raises, nothing is changed.

        Raises:
            SecretsUnavailable, SecretDamaged: as :meth:`secrets`.
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
        """Give up all secrets, readable or not."""
        with self._lock:
            self._documents.save_document(DOCUMENT, b"")

    def rotate(self) -> tuple[str, int]:
        """Make a new master key and wrap all data keys by it; the new key's id, and how many those were.

        Secrets can be used meanwhile. First the new key is kept besides the old one, then all is wrapped anew in
        one step, then the old key is forgotten: a crash anywhere leaves all readable, and the next start ends it.

        Raises:
            InvalidArgument: the key comes from where the pool cannot change it.
            SecretsUnavailable: the key cannot be read or written.
            SecretDamaged: a secret was changed.
        """
        with self._lock:
            ring = self._keys()
            found = self._secrets(ring)
            rewrapped_all(found, ring.current)  # refuses what could not be wrapped anew, before anything is changed
            self._ring = ring = self._source.renew(ring)
            self._settle(ring)
            return ring.current.id, len(found.by_name)

    def _settle(self, ring: KeyRing) -> None:
        """Bring everything under the current key, then forget the others."""
        found = self._secrets(ring)
        if found.key is not ring.current:
            self._documents.save_document(DOCUMENT, rewrapped_all(found, ring.current))
        self._ring = self._source.settle(ring)

    def _keys(self) -> KeyRing:
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

    def _end_rotation(self, ring: KeyRing) -> None:
        try:
            self._settle(ring)
        except StorageError as error:
            # All is readable with the keys that are there; the next start, or rotation, tries again.
            log.warning("a change of the master key is not at its end yet: %s", error)

    def _secrets(self, ring: KeyRing) -> SealedSecrets:
        raw = self._document()
        if self._read is None or self._read[0] != raw or ring.find(self._read[1].key.id) is None:
            self._read = raw, opened(raw, ring, self._source.name)
        return self._read[1]

    def _document(self) -> bytes:
        return self._documents.document(DOCUMENT) or b""
