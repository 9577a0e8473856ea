"""From shards back to the object: any k of them, as long as the object proves to be the right one."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, islice

from blake3 import blake3

from storage.erasure import code_for_key
from storage.errors import FormatError
from storage.formats.versions import decode_version
from storage.keys import Kind, StripeParts
from storage.shards import Shard

_COMBINATIONS_MAX = 5000  # enough for any 2 liars among 32 shards; bounded against hostile volumes


@dataclass(frozen=True, slots=True)
class Survivors:
    """Intact-looking shards of a stripe by slot, and the object's length they agree on."""

    payloads: dict[int, memoryview]
    length: int


def survivors_by_length(found: dict[int, Shard], k: int) -> list[Survivors]:
    """Shards grouped by the object length they claim, the largest group first.

    Args:
        found: the shards, by slot.
        k: how many of them make the object.
    """
    groups: dict[int, dict[int, memoryview]] = {}
    for slot, shard in found.items():
        if len(shard.payload) == -(-shard.object_length // k):
            groups.setdefault(shard.object_length, {})[slot] = memoryview(shard.payload)
    return sorted(
        (Survivors(payloads, length) for length, payloads in groups.items()), key=lambda group: -len(group.payloads)
    )


def solve(parts: StripeParts, survivors: Survivors) -> memoryview | None:
    """The padded object, from the first k shards that give it; None if no k of them do.

    Where intact-looking shards give a wrong object, other combinations of them are tried.
    """
    slots = sorted(survivors.payloads)
    for chosen in islice(combinations(slots, parts.k), _COMBINATIONS_MAX):
        data = _decode(parts.k, parts.n, survivors, chosen)
        # The padding, too: what a liar put there would make liars of the shards that are coded from it.
        if is_object(parts, data[: survivors.length]) and not any(data[survivors.length :]):
            return data
    return None


def _decode(k: int, n: int, survivors: Survivors, chosen: tuple[int, ...]) -> memoryview:
    """The padded object (k * shard length bytes) from k shards."""
    shard_length = -(-survivors.length // k)
    data = memoryview(bytearray(k * shard_length))
    cut = [data[slot * shard_length : (slot + 1) * shard_length] for slot in range(k)]
    for slot in chosen:
        if slot < k:
            cut[slot][:] = survivors.payloads[slot]
    missing = [slot for slot in range(k) if slot not in chosen]
    code_for_key(k, n).decode_into(
        [survivors.payloads[s] for s in chosen], list(chosen), missing, [cut[s] for s in missing]
    )
    return data


def is_object(parts: StripeParts, data: memoryview) -> bool:
    """Whether these bytes are what the id names. A version's id is the hash of the record in its object."""
    if parts.kind is not Kind.VERSION:
        return blake3(data).digest() == parts.object_id
    try:
        decode_version(bytes(data), parts.object_id)
    except FormatError:
        return False
    return True
