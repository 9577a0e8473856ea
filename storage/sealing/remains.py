"""What is left of destroyed shredding keys, in the sealed form in which catalog and volumes have it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Literal

import msgspec

from storage.errors import FormatError, SealBroken
from storage.sealing.aead import SALT_BYTES, TAG_BYTES, decrypt, derived, encrypt, message_key
from storage.sealing.secret_trees import SecretTree, Seed, packed, unpacked
from storage.sealing.user_keys import KEY_ID_BYTES, UserKey

PARTS_MAX = 256
_PART_SEEDS = 200_000  # 7.6 MB, so that a part fits into one shard and one message
_PART_BYTES_MAX = 8 << 20
_PURPOSE = "TaskWorker 2026-11 shredding: remains"
_BOUND = b"TaskWorker shredding remains "

_KeyId = Annotated[bytes, msgspec.Meta(min_length=KEY_ID_BYTES, max_length=KEY_ID_BYTES)]
_Number = Annotated[int, msgspec.Meta(ge=0, le=PARTS_MAX)]


class RemainsPart(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A part of what is left of all destroyed shredding keys.

    Attributes:
        format: 1.
        key_id: names the shredding key that seals it.
        part: its number, from 0.
        parts: how many parts there are.
        salt: random bytes; no other part is sealed with them.
        sealed: pairs of a destroyed key's id, and seeds that are left of it, encrypted.
    """

    format: Literal[1]
    key_id: _KeyId
    part: _Number
    parts: _Number
    salt: Annotated[bytes, msgspec.Meta(min_length=SALT_BYTES, max_length=SALT_BYTES)]
    sealed: Annotated[bytes, msgspec.Meta(min_length=TAG_BYTES, max_length=_PART_BYTES_MAX)]


_Content = list[tuple[_KeyId, Annotated[bytes, msgspec.Meta(max_length=_PART_BYTES_MAX)]]]

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(RemainsPart).decode
_decode_content = msgspec.msgpack.Decoder(_Content).decode


def sealed_remains(key: UserKey, trees: Mapping[bytes, SecretTree], token_bytes: Callable[[int], bytes]) -> list[bytes]:
    """Return what is left of destroyed shredding keys as the bytes of its parts, none if nothing is left.

    Args:
        key: the shredding key that seals it.
        trees: by id of the destroyed key.
        token_bytes: source of random bytes.

    Raises:
        FormatError: there are more gaps between versions than are kept, 51 million.
    """
    contents = list(_contents(trees))
    if len(contents) > PARTS_MAX:
        raise FormatError("too many single versions were deleted for their secrets to be destroyed; ask for help")
    parts = []
    for number, content in enumerate(contents):
        salt = token_bytes(SALT_BYTES)
        bound = _bound(key.key_id, number, len(contents))
        sealed = encrypt(message_key(derived(key.secret, _PURPOSE), salt), _encode(content), bound)
        parts.append(_encode(RemainsPart(1, key.key_id, number, len(contents), salt, sealed)))
    return parts


def _contents(trees: Mapping[bytes, SecretTree]) -> Iterator[list[tuple[bytes, bytes]]]:
    """Divide trees into parts of bounded size."""
    content: list[tuple[bytes, bytes]] = []
    room = _PART_SEEDS
    for key_id, tree in sorted(trees.items()):
        seeds: list[Seed] = []
        for seed in tree:
            seeds.append(seed)
            room -= 1
            if not room:
                yield [*content, (key_id, packed(seeds))]
                content, seeds, room = [], [], _PART_SEEDS
        if seeds:
            content.append((key_id, packed(seeds)))
    if content:
        yield content


def decode_part(raw: bytes) -> RemainsPart:
    """Decode a part; refuse any but its canonical form.

    Raises:
        FormatError: it is malformed.
    """
    try:
        found = _decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"what is left of shredding keys is malformed: {error}") from error
    if _encode(found) != raw:
        raise FormatError("what is left of shredding keys is not in canonical form")
    return found


def opened_part(key: UserKey, part: RemainsPart) -> list[tuple[bytes, SecretTree]]:
    """Return the destroyed keys' ids, and what a part has of each.

    Args:
        key: the shredding key that seals the part.
        part: the part.

    Raises:
        SealBroken: it was changed.
        FormatError: it is malformed.
    """
    unwrap = message_key(derived(key.secret, _PURPOSE), part.salt)
    raw = decrypt(unwrap, part.sealed, _bound(part.key_id, part.part, part.parts))
    try:
        return [(key_id, unpacked(seeds)) for key_id, seeds in _decode_content(raw)]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SealBroken(f"what is left of shredding keys cannot be read: {error}") from error


def _bound(key_id: bytes, part: int, parts: int) -> bytes:
    return _BOUND + key_id + part.to_bytes(4, "little") + parts.to_bytes(4, "little")
