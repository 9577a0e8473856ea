"""Gives each version a secret, without which it cannot be read, and finds it again.

A shredding key gives a secret to each version in turn; the keys are among the users' keys, as those of a user of its
own. When a key is destroyed, what is left of it has the secrets of the versions that stay; see
:mod:`storage.sealing.secret_trees`. The catalog has this in parts, as documents, and so has every volume.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping, Set

from blake3 import blake3

from storage.catalog import Catalog
from storage.errors import FormatError, KeyRequired, SealBroken
from storage.formats.sealed_versions import SecretName, VersionSecret
from storage.sealing.keyring import Keyring
from storage.sealing.remains import PARTS_MAX, RemainsPart, decode_part, opened_part
from storage.sealing.secret_trees import LeafSet, SecretTree, joined, packed
from storage.sealing.user_keys import KEY_ID_BYTES, UserKey
from storage.shards import Shard
from storage.write.key_records import remains_record

log = logging.getLogger(__name__)

SHREDDING_USER = "system:shredding"  # no user can have this name
_LEAVES = "shredding-leaves"
_REMAINS = "shredding-remains"
_RESERVED = 1 << 16
_RUN_LEVEL = 7  # secrets are made 128 at a time
_NUMBER_BYTES = 8


class VersionSecrets:
    """The secrets of a store's versions. Thread-safe, but only one thread at a time may call :meth:`take`.

    Args:
        catalog: the store's catalog.
        keyring: the users' keys.
        changing: held while keys are changed.

    Attributes:
        records: the records that every volume has besides the users' keys.
        is_lacking: whether the volumes may have more of what is left of destroyed keys than is known here.
        changes: how often what is left of destroyed keys has changed, or a rebuild has begun.
    """

    def __init__(self, catalog: Catalog, keyring: Keyring, changing: threading.RLock) -> None:
        self._catalog = catalog
        self._keyring = keyring
        self._changing = changing
        self._current: UserKey | None = None
        self._next = self._limit = 0  # leaves of the current key: the next one, and that which is not reserved
        self._run: list[bytes] = []  # secrets of the leaves before and after the next one
        self._whole: dict[bytes, SecretTree] = {}  # of keys that are there
        self._remains: dict[bytes, SecretTree] = {}  # of keys that were destroyed
        self._parts: tuple[bytes, ...] = ()
        self.records: tuple[Shard, ...] = ()
        self.is_lacking = True
        self.changes = 0

    def load(self) -> None:
        """Read what the catalog has, which must be open.

        Raises:
            FormatError: what is left of shredding keys is damaged; the volumes have it, too.
        """
        leaves = self._catalog.document(_LEAVES) or b""
        key_id = leaves[:KEY_ID_BYTES]
        if len(leaves) == KEY_ID_BYTES + _NUMBER_BYTES and self._keyring.has(key_id):
            # What was reserved and not used stays unused, as a crash may have left versions on volumes.
            self._current = self._keyring.find(key_id)
            self._next = self._limit = int.from_bytes(leaves[KEY_ID_BYTES:], "big")
        count = int.from_bytes(self._catalog.document(_REMAINS) or b"", "big")
        parts = [self._catalog.document(_part_name(number)) or b"" for number in range(min(count, PARTS_MAX))]
        trees, unopened = self._trees_in(map(decode_part, parts))
        if unopened:
            raise FormatError(f"{unopened} parts of what is left of shredding keys cannot be opened")
        self.use_remains(tuple(parts), trees)

    # -- secrets ---------------------------------------------------------------------------------

    def secret_of(self, key_id: bytes, leaf: int) -> bytes:
        """See :class:`~storage.sealing.user_keys.KeyFinder`."""
        tree = self._whole.get(key_id) or self._remains.get(key_id)
        if tree is None:
            try:
                tree = self._tree_of(key_id)
            except KeyRequired:
                tree = self._remains.get(key_id)  # it may have been destroyed just now
                if tree is None:
                    raise
        secret = tree.secret(leaf)
        if secret is None:
            raise _lacking() if self.is_lacking else _shredded()
        return secret

    def _tree_of(self, key_id: bytes) -> SecretTree:
        if self._keyring.is_destroyed(key_id):
            raise _lacking() if self.is_lacking else _shredded()
        key = self._keyring.find(key_id)
        if key.user_id != SHREDDING_USER:
            raise FormatError("a version names a key that is no shredding key")
        tree = SecretTree.whole(key.secret)
        with self._changing:
            if self._keyring.has(key_id):  # else it has just been destroyed
                self._whole[key_id] = tree
        return tree

    @property
    def is_ready(self) -> bool:
        """Whether there is a key that gives secrets to new versions."""
        return self._current is not None

    def use(self, key: UserKey) -> None:
        """Give secrets of this key, which is new, from now on. Nobody may call :meth:`take` meanwhile."""
        self._current, self._next, self._limit, self._run = key, 0, 0, []

    def take(self) -> VersionSecret:
        """Return a secret that no other version gets, nor has got before a crash."""
        key = self._current
        assert key is not None, "a key was made first"
        if self._next >= self._limit:
            limit = self._next + _RESERVED
            self._catalog.save_document(_LEAVES, key.key_id + limit.to_bytes(_NUMBER_BYTES, "big"))
            self._limit = limit
        leaf = self._next
        at = leaf % (1 << _RUN_LEVEL)
        if not at:
            self._run = self._tree_of(key.key_id).run(leaf, _RUN_LEVEL)
        self._next += 1
        return VersionSecret(SecretName(key.key_id, leaf), self._run[at])

    # -- destroying ------------------------------------------------------------------------------

    def former(self, key: UserKey) -> frozenset[bytes]:
        """The ids of all shredding keys except one."""
        return self._keyring.keys_of(SHREDDING_USER).ids - {key.key_id}

    def cut_to(self, former: Set[bytes], kept: Mapping[bytes, LeafSet]) -> dict[bytes, SecretTree]:
        """Return what is left of keys once these and others are destroyed, by id of the key.

        Args:
            former: ids of keys to destroy.
            kept: the versions that stay, by id of the key.
        """
        trees = self._remains | {key_id: SecretTree.whole(self._keyring.find(key_id).secret) for key_id in former}
        left = {key_id: tree.cut_to(kept[key_id]) for key_id, tree in trees.items() if key_id in kept}
        return {key_id: tree for key_id, tree in left.items() if len(tree)}

    @property
    def known(self) -> frozenset[bytes]:
        """The ids of all keys that give, or gave, secrets."""
        return self._keyring.keys_of(SHREDDING_USER).ids | self._remains.keys()

    def documents(self, parts: tuple[bytes, ...]) -> dict[str, bytes]:
        """The documents that have these parts."""
        named = {_part_name(number): b"" for number in range(len(self._parts))}
        named |= {_part_name(number): raw for number, raw in enumerate(parts)}
        return named | {_REMAINS: len(parts).to_bytes(2, "big")}

    def offer(self, parts: tuple[bytes, ...]) -> None:
        """Have these parts on the volumes, too."""
        self.records = tuple(map(remains_record, (*self._parts, *parts)))

    def withdraw(self) -> None:
        """Have on the volumes only what is used now, as before :meth:`offer`."""
        with self._changing:
            self.records = tuple(map(remains_record, self._parts))

    def use_remains(self, parts: tuple[bytes, ...], trees: Mapping[bytes, SecretTree]) -> None:
        """Use what is left of destroyed keys, as parts and as trees, in the place of all before."""
        with self._changing:
            self._remains = dict(trees)
            self._parts = parts
            self.records = tuple(map(remains_record, parts))
            self.is_lacking = False
            self.changes += 1

    def forget_destroyed(self) -> None:
        """Forget the keys that are not among the users' keys any more."""
        with self._changing:
            self._whole = {key_id: tree for key_id, tree in self._whole.items() if self._keyring.has(key_id)}

    # -- rebuild ---------------------------------------------------------------------------------

    def found(self, parts: Iterable[RemainsPart]) -> dict[bytes, SecretTree] | None:
        """Return what is left of keys by these parts and by those that are known; None if these add nothing."""
        found, _ = self._trees_in(part for part in parts if self._keyring.has(part.key_id))
        known = self._remains
        trees = {
            key_id: joined(tree for trees in (known, found) if (tree := trees.get(key_id)) is not None)
            for key_id in known.keys() | found.keys()
            if not self._keyring.has(key_id)
        }
        is_new = any(packed(tree) != packed(known.get(key_id, ())) for key_id, tree in trees.items())
        return trees if is_new else None

    def begin_anew(self) -> None:
        """Give secrets of a new key after this, since it is not known which ones other versions have."""
        with self._changing:
            self._catalog.save_document(_LEAVES, b"")
            self._current = None
            self.changes += 1

    def is_of_no_use(self, part: RemainsPart) -> bool:
        """Whether everything that a part of a volume has is known here, or was destroyed.

        If it has more, what is known here is lacking from now on.
        """
        with self._changing:  # else keys may be half replaced
            if self._keyring.is_destroyed(part.key_id):
                return True
            if not self._keyring.has(part.key_id):
                return False
            has_all = self._has_all_of(part)
            self.is_lacking = self.is_lacking or not has_all
            return has_all

    def _has_all_of(self, part: RemainsPart) -> bool:
        """Whether everything that a part has is known here; also if it cannot be opened."""
        trees, _ = self._trees_in([part])
        return all(
            self._keyring.has(key_id) or all(map(self._remains.get(key_id, SecretTree(())).covers, tree))
            for key_id, tree in trees.items()
        )

    def _trees_in(self, parts: Iterable[RemainsPart]) -> tuple[dict[bytes, SecretTree], int]:
        """What parts have, by id of the destroyed key, and how many cannot be opened.

        All volumes have the same parts, so one that was opened already is passed over.
        """
        found: dict[bytes, list[SecretTree]] = {}
        seen: set[bytes] = set()
        unopened = 0
        for part in parts:
            identifier = blake3(part.sealed).digest()
            if identifier in seen:
                continue
            try:
                for key_id, tree in opened_part(self._keyring.find(part.key_id), part):
                    found.setdefault(key_id, []).append(tree)
                seen.add(identifier)
            except (KeyRequired, SealBroken) as error:
                unopened += 1
                log.warning("a part of what is left of shredding keys is left out: %s", error)
        return {key_id: joined(trees) for key_id, trees in found.items()}, unopened


def _part_name(number: int) -> str:
    return f"{_REMAINS}-{number}"


def _shredded() -> KeyRequired:
    return KeyRequired("the version was shredded: it was deleted, and its secret destroyed")


def _lacking() -> KeyRequired:
    return KeyRequired(
        "the secret of the version is not known here, unless it was shredded: volumes that are away may have it"
    )
