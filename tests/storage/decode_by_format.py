"""Decode all chunks from the given volumes as docs/format.md describes: decode_by_format.py OUT VOLUME..."""

import sys
from collections import defaultdict
from pathlib import Path
from struct import unpack_from

import zfec  # type: ignore[import-untyped]
from blake3 import blake3

stripes: defaultdict[tuple[bytes, int, int], dict[int, tuple[int, bytes]]] = defaultdict(dict)
for segment in (path for volume in sys.argv[2:] for path in sorted(Path(volume).glob("*.seg"))):
    raw = segment.read_bytes()
    record_key, at = raw[24:56], raw.find(b"TwSh", 128)
    while at >= 0:
        head = raw[at : at + 96].ljust(96, b"\0")
        version, chunk_id, kind, k, n, slot, size, length, digest = unpack_from("<4xB32sBBBBII32s", head)
        payload = raw[at + 96 : at + 96 + length]
        authentic = version == 1 and blake3(head[:84], key=record_key).digest(12) == head[84:]
        intact = authentic and blake3(payload).digest() == digest
        if intact and kind == 1:
            stripes[chunk_id, k + 1, n + 1][slot] = size, payload
        at = raw.find(b"TwSh", at + (96 + length if intact else 96 if authentic else 1))
for (chunk_id, k, n), shards in stripes.items():
    slots = sorted(shards)[-k:]  # parity first, to check that it is right
    pieces = zfec.Decoder(k, n).decode([shards[slot][1] for slot in slots], slots) if len(slots) == k else []
    chunk = b"".join(pieces)[: shards[slots[0]][0]]
    if blake3(chunk).digest() == chunk_id:
        Path(sys.argv[1], chunk_id.hex()).write_bytes(chunk)
