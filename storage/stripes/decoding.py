"""Decoding an object from any k of its shards, and checking that it is the right one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, islice

from blake3 import blake3

from storage.erasure import code_for_key
from storage.errors import FormatError
from storage.formats.versions import checked_outline
from storage.keys import Kind, StripeParts
from storage.shards import Shard

_COMBINATIONS_MAX = 5000  # enough for any 2 wrong shards among 32; a limit against hostile volumes
_COMBINATIONS_OF_CLIENT_MAX = 100


@dataclass(frozen=True, slots=True)
class Survivors:
    """Apparently intact shards of a stripe, by slot, and the object length on which they agree."""

    payloads: dict[int, memoryview]
    length: int


def survivors_by_length(found: dict[int, Shard], k: int) -> list[Survivors]:
    """Group shards by the object length that they claim, largest group first.

    Args:
        found: the shards, by slot.
        k: how many shards are needed for the object.
    """
    groups: dict[int, dict[int, memoryview]] = {}
    for slot, shard in found.items():
        if len(shard.payload) == -(-shard.object_length // k):
            groups.setdefault(shard.object_length, {})[slot] = memoryview(shard.payload)
    return sorted(
        (Survivors(payloads, length) for length, payloads in groups.items()), key=lambda group: -len(group.payloads)
    )


def solve(parts: StripeParts, survivors: Survivors, of_client: Collection[int] = ()) -> memoryview | None:
    """Decode the padded object from k shards; return None if no k of them give the right object.

    If some shards give a wrong object, other combinations are tried, up to `_COMBINATIONS_MAX`; few if a client wrote
    some of the shards itself, as one that writes what does not belong together should not cost much.

    Args:
        parts: what the key of the object's stripe says.
        survivors: the shards.
        of_client: the slots of those that are as a client wrote them.
    """
    slots = sorted(survivors.payloads)
    tried: Iterable[Sequence[int]] = combinations(slots, parts.k)
    if of_client:
        theirs, others = [at for at in slots if at in of_client], [at for at in slots if at not in of_client]
        whole = [each[: parts.k] for each in (theirs, others) if len(each) >= parts.k]
        tried = chain(whole, islice(tried, _COMBINATIONS_OF_CLIENT_MAX if others else 0))
    for chosen in islice(tried, _COMBINATIONS_MAX):
        data = _decode(parts.k, parts.n, survivors, chosen)
        # Wrong bytes in the padding would make good shards look wrong when they are compared with the encoded object.
        if is_object(parts, data[: survivors.length]) and not any(data[survivors.length :]):
            return data
    return None


def _decode(k: int, n: int, survivors: Survivors, chosen: Sequence[int]) -> memoryview:
    """Decode k shards to the padded object, of k * shard length bytes."""
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
    """Whether these bytes are the object with this id. A version's id is the hash of the record in its object."""
    if parts.kind is not Kind.VERSION:
        return blake3(data).digest() == parts.object_id
    try:
        checked_outline(bytes(data), parts.object_id)
    except FormatError:
        return False
    return True
