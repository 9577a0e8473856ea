"""The records on volumes that have the users' keys of a store, and what is left of destroyed shredding keys."""

from __future__ import annotations

from blake3 import blake3

from storage.formats.manifest import object_id
from storage.keys import ID_BYTES, Kind, shard_key
from storage.shards import Shard
from storage.stripes.stripes import metadata_stripe

_HASH_BYTES = 16
# Right after the ids of marks, so that they are found without a full scan. No hash begins with so many zeros.
_ZEROS = bytes(ID_BYTES - _HASH_BYTES - 1)
_KEYS, _REMAINS, _END = _ZEROS + b"\1", _ZEROS + b"\2", _ZEROS + b"\3"
KEYS_IDS = (_KEYS, _REMAINS)
"""Begin and end of the ids of the users' keys."""
REMAINS_IDS = (_REMAINS, _END)
"""Begin and end of the ids of what is left of shredding keys."""


def keys_record(raw: bytes) -> Shard:
    """Return the record of the users' keys."""
    return _record(_KEYS, raw)


def remains_record(raw: bytes) -> Shard:
    """Return the record of a part of what is left of shredding keys."""
    return _record(_REMAINS, raw)


def _record(prefix: bytes, raw: bytes) -> Shard:
    identifier = prefix + object_id(raw)[:_HASH_BYTES]
    return Shard(shard_key(metadata_stripe(Kind.MARK, identifier, 1), 0), len(raw), blake3(raw).digest(), raw)
