"""Write the files of an encrypted store, as docs/format.md describes: decode_sealed_by_format.py OUT KEY VOLUME..."""

import sys
from base64 import b64decode
from collections import defaultdict
from pathlib import Path
from struct import pack, unpack_from
from typing import Any

import msgspec
import zfec  # type: ignore[import-untyped]
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

OUT, KEY_FILE, VOLUMES = Path(sys.argv[1]), Path(sys.argv[2]), [Path(volume) for volume in sys.argv[3:]]
unpack = msgspec.msgpack.decode


def derived(secret: bytes, purpose: str) -> bytes:
    return blake3(secret, derive_key_context=f"TaskWorker 2026-11 {purpose}").digest()


def opened(key: bytes, unique: bytes, sealed: bytes, bound: bytes) -> bytes:
    return AESGCM(blake3(unique, key=key).digest()).decrypt(bytes(12), sealed, bound)


stripes: defaultdict[tuple[int, bytes, int], dict[int, tuple[int, bytes]]] = defaultdict(dict)
for segment in (path for volume in VOLUMES for path in sorted(volume.glob("*.seg"))):
    raw = segment.read_bytes()
    at = raw.find(b"TwSh", 128)
    while at >= 0:
        head = raw[at : at + 96].ljust(96, b"\0")
        version, object_id, kind, k, n, slot, size, length, digest = unpack_from("<4xB32sBBBBII32s", head)
        payload = raw[at + 96 : at + 96 + length]
        authentic = version == 1 and blake3(head[:84], key=raw[24:56]).digest(12) == head[84:]
        intact = authentic and blake3(payload).digest() == digest
        if intact:
            stripes[kind, object_id, k + 1][slot] = size, payload
        at = raw.find(b"TwSh", at + (96 + length if intact else 96 if authentic else 1))
objects: dict[tuple[int, bytes], bytes] = {}
for (kind, object_id, k), shards in stripes.items():
    slots = sorted(shards)[-k:]
    if len(slots) == k:
        n = max(k + 1, max(slots) + 1)
        joined = b"".join(zfec.Decoder(k, n).decode([shards[slot][1] for slot in slots], slots))
        objects[kind, object_id] = joined[: shards[slots[0]][0]]

master = b64decode(next(line for line in KEY_FILE.read_text().splitlines() if not line.startswith("#")))
user_keys: dict[bytes, tuple[str, int, bytes]] = {}
for (kind, object_id), raw in objects.items():
    for key_id, master_id, salt, sealed in unpack(raw)[1] if kind == 5 and object_id[:16] == bytes(15) + b"\1" else []:
        if master_id == derived(master, "master key: id")[:8]:  # else a copy from before the master key was replaced
            wrap = derived(master, "master key: keys of users")
            user_keys[key_id] = unpack(opened(wrap, salt, sealed, b"TaskWorker user key " + key_id))
secrets = {(user, epoch): secret for user, epoch, secret in user_keys.values()}
seeds = {(key, 40, 0): derived(one[2], "shredding: root") for key, one in user_keys.items()}
for (kind, object_id), raw in objects.items():
    is_remains = kind == 5 and object_id[:16] == bytes(15) + b"\2"
    _, key_id, part, parts, salt, sealed = unpack(raw) if is_remains else [b""] * 6
    bound = b"TaskWorker shredding remains %b" % key_id + pack("<2I", part, parts) if key_id in user_keys else b""
    unwrap = derived(user_keys[key_id][2], "shredding: remains") if bound else b""
    for destroyed, some in unpack(opened(unwrap, salt, sealed, bound)) if bound else []:
        for seed in (some[at : at + 38] for at in range(0, len(some), 38)):
            seeds[destroyed, seed[0], int.from_bytes(seed[1:6], "big") >> seed[0]] = seed[6:]


def secret_of(key_id: bytes, leaf: int, level: int = 0) -> bytes:
    """The seed of a leaf, or of a node above it; KeyError if it was shredded."""
    if level > 40:
        raise KeyError(key_id)
    found = seeds.get((key_id, level, leaf >> level))
    return found or blake3(bytes([leaf >> level & 1]), key=secret_of(key_id, leaf, level + 1)).digest()


def content(kind: int, reference: bytes, user: str) -> bytes:
    sealed = objects[kind, reference[32:]]
    secret = secrets[user, int.from_bytes(sealed[-3:], "little")]
    bound = b"TaskWorker object " + bytes([kind]) + sealed[-4:]
    return opened(derived(secret, "user key: chunks and nodes"), reference[:32] + bytes([kind]), sealed[:-4], bound)


def chunks(children: bytes, height: int, user: str) -> bytes:
    references = [children[at : at + 64] for at in range(0, len(children), 64)]
    if height == 0:
        return b"".join(content(1, reference, user) for reference in references)
    return b"".join(chunks(unpack(content(2, one, user))[1], height - 1, user) for one in references)


heads: dict[bytes, tuple[int, Any, Any]] = {}
for (kind, _), raw in objects.items():
    record, root = map(bytes, unpack(raw)) if kind == 3 else (b"", b"")
    if record[:2] not in (b"\x9b\x03", b"\x9b\x05", b"\x9d\x06", b"\x9d\x07"):
        continue
    _, file_id, key_id, root_id, _, _, salt, fields, sequence, _, *named, _ = unpack(record)
    try:
        salt += secret_of(*named) if named else b""
    except KeyError:
        continue
    key = derived(user_keys[key_id][2], "user key: versions")
    shown = unpack(opened(key, salt + b"fields", fields, b"TaskWorker version fields" + file_id + root_id))
    manifest = unpack(opened(key, salt + b"root", root, b"TaskWorker version root" + file_id))
    heads[file_id] = max(heads.get(file_id, (0, None, None)), (sequence, shown, manifest), key=lambda one: one[0])
for _, (_, _, _, user, filename, _, _, _, *attributes), manifest in heads.values():
    Path(OUT, f"{user}-{filename}").write_bytes(chunks(manifest[7], manifest[6], user))
    for name, value in attributes[0] if attributes else ():
        Path(OUT, f"{user}-{filename}@{name}").write_bytes(value)
