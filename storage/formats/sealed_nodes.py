"""Nodes of sealed manifests: how they are named and stored, and how they are opened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from storage.errors import KeyRequired
from storage.formats.manifest import (
    LoadNode,
    Manifest,
    NameNode,
    RootNode,
    named_by_hash,
    object_id,
    plain_id,
    stored_id,
)
from storage.formats.versions import StoredVersion, read_version
from storage.keys import Kind
from storage.sealing.objects import opened, sealed
from storage.sealing.user_keys import KeyFinder, UserKey, UserKeys

LoadObject = Callable[[bytes], bytes]
"""Returns the stored bytes of the node with this id, or raises."""


def node_namer(key: UserKey | None) -> NameNode:
    """Return a function that names nodes, and seals them with ``key`` if there is one."""
    if key is None:
        return named_by_hash

    def name(raw: bytes) -> tuple[bytes, bytes]:
        identifier = object_id(raw)
        stored = sealed(key, Kind.NODE, identifier, raw)
        return identifier + object_id(stored), stored

    return name


def manifest_over(root: RootNode, keys: UserKeys | None, load: LoadObject) -> Manifest:
    """Return a manifest whose stored nodes ``load`` returns.

    Args:
        root: the root.
        keys: the owner's keys; only needed for a sealed manifest.
        load: loads stored nodes.

    Raises:
        KeyRequired: the manifest is sealed, and there are no keys.
    """
    return Manifest(root, _opening(keys, load) if root.is_sealed else load)


def manifest_of(stored: StoredVersion, load: LoadObject) -> Manifest:
    """Return the manifest of a version; see :func:`manifest_over`."""
    return manifest_over(stored.root, stored.keys, load)


@dataclass(frozen=True, slots=True)
class VersionReader:
    """Reads versions and their manifests, sealed or not.

    Attributes:
        keys: finds the keys of sealed versions.
        load: loads stored nodes.
    """

    keys: KeyFinder
    load: LoadObject

    def version(self, raw: bytes, version_id: bytes) -> StoredVersion:
        """See :func:`~storage.formats.versions.read_version`."""
        return read_version(raw, version_id, self.keys)

    def manifest(self, stored: StoredVersion) -> Manifest:
        """See :func:`manifest_of`."""
        return manifest_of(stored, self.load)


def _opening(keys: UserKeys | None, load: LoadObject) -> LoadNode:
    if keys is None:
        raise KeyRequired("the file is encrypted, and no key was given: give the store's key")

    def load_node(reference: bytes) -> bytes:
        return bytes(opened(keys, Kind.NODE, plain_id(reference), load(stored_id(reference))))

    return load_node
