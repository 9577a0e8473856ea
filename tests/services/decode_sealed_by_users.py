"""Open files that users sealed, as docs/format.md describes: decode_sealed_by_users.py KEY USER OUT [NAME NOTE RAW]...

``NAME`` and ``NOTE`` are as the pool shows them, ``RAW`` is a file with what it stores. Chunks have 64 KiB.
"""

import sys
from base64 import b64decode, urlsafe_b64decode
from hmac import compare_digest
from pathlib import Path
from typing import Any

import msgspec
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESSIV

KEY = b64decode(next(line for line in Path(sys.argv[1]).read_text().splitlines() if not line.startswith("#")))
USER, OUT, CHUNK, FANOUT = sys.argv[2].encode(), Path(sys.argv[3]), 64 * 1024, 2048


def derived(secret: bytes, purpose: str, length: int = 32) -> bytes:
    return blake3(secret, derive_key_context=f"TaskWorker 2026-11 user's own key: {purpose}").digest(length)


def text(purpose: str, bound: bytes, sealed: str) -> bytes:
    raw = urlsafe_b64decode(sealed + "=" * (-len(sealed) % 4))
    return AESSIV(derived(KEY, purpose, 64)).decrypt(raw, [bound, USER])


def le64(value: int) -> bytes:
    return value.to_bytes(8, "little")


def sizes(size: int) -> list[int]:
    entries = [-(-size // (CHUNK - 16))]
    while entries[-1] > FANOUT:
        entries.append(-(-entries[-1] // FANOUT))
    return entries


def opened(raw: bytes, name: bytes, note: str) -> bytes:
    file_key = blake3(USER + b"\0" + name, key=derived(KEY, "files")).digest()
    head, mac = raw[-52:-32], raw[-32:]
    assert head[:12] == b"TwSealed" + CHUNK.to_bytes(4, "little")
    size = int.from_bytes(head[12:], "little")
    at = size + 16 * sizes(size)[0]
    levels = []
    for entries in sizes(size):
        levels.append(raw[at : at + 32 * entries])
        at += 32 * entries
    assert at == len(raw) - 52
    vouched = head + len(note).to_bytes(4, "little") + note.encode() + levels[-1]
    assert compare_digest(blake3(vouched, key=derived(file_key, "versions")).digest(), mac)
    for level in range(len(levels) - 1):
        for at in range(len(levels[level + 1]) // 32):
            page = levels[level][32 * FANOUT * at : 32 * FANOUT * (at + 1)]
            page_hash = blake3(bytes([level]) + le64(at) + page, key=derived(file_key, "pages of salts")).digest()
            assert compare_digest(page_hash, levels[level + 1][32 * at : 32 * at + 32])
    blocks = []
    for index in range(len(levels[0]) // 32):
        key = blake3(levels[0][32 * index : 32 * index + 32], key=derived(file_key, "blocks")).digest()
        sealed = raw[CHUNK * index : min(CHUNK * (index + 1), size + 16 * len(levels[0]) // 32)]
        blocks.append(AESGCM(key).decrypt(bytes(12), sealed, b"TaskWorker sealed block " + le64(index)))
    return b"".join(blocks)


for shown, note, path in zip(sys.argv[4::3], sys.argv[5::3], sys.argv[6::3], strict=True):
    noted: Any = (None, "")
    if note:
        noted = msgspec.msgpack.decode(text("notes", b"TaskWorker sealed note", note))
    name = text("names", b"TaskWorker sealed name", shown.split(".")[2])
    (OUT / name.decode()).write_bytes(opened(Path(path).read_bytes(), name, note) + noted[1].encode())
