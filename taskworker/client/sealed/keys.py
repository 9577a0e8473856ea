"""A user's own keys, and what follows from them: sealed names and notes, and the keys of each file.

Names and notes are sealed with AES-SIV (RFC 5297), so that the same name is sealed to the same text and can be looked
up. A block of a file has a key of its own, made from the hash of its content and position.
"""

from __future__ import annotations

import binascii
import hmac
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator
from typing import Annotated

import msgspec
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from storage.errors import InvalidArgument, KeyRequired, SealBroken
from storage.limits import FILENAME_BYTES_MAX, NOTE_BYTES_MAX, BytesLike
from storage.sealing.aead import decrypt, derived, encrypt, message_key
from storage.sealing.master_keys import MasterKey, MasterKeys
from taskworker.client.sealed.layout import FOOTER_BYTES, FORMAT, Layout
from taskworker.client.sealed.names import PREFIX, key_in

_CONTEXT = "TaskWorker 2026-11 user's own key: "
_ID_BYTES = 8
_SIV_BYTES = 16
_SIV_KEY_BYTES = 64
_NAME = b"TaskWorker sealed name"
_NOTE = b"TaskWorker sealed note"
_BLOCK = b"TaskWorker sealed block "
_MAC_BYTES = 32

_ID_CHARACTERS = 11  # 8 bytes
NAME_BYTES_MAX = (FILENAME_BYTES_MAX - len(PREFIX) - _ID_CHARACTERS - 1) * 3 // 4 - _SIV_BYTES
"""Bytes of a name that can be sealed: sealed, it must not be longer than any name may be."""
NOTE_SEALED_BYTES_MAX = NOTE_BYTES_MAX * 3 // 4 - _SIV_BYTES - 40
"""Bytes of a note that can be sealed; 40 are for the SHA-256 beside it, and the framing."""

_WITH_AUTHOR = re.compile(r"([A-Za-z0-9_-]*) ?(\(by .+\))?", re.DOTALL)

_Hash = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class Note(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a version's note field has, sealed.

    Attributes:
        sha256: that of the content, if the author gave it.
        text: the note.
        goes_on: whether later versions of the file are still to be stored anew with this key, so that the file under
            the former key is the right one until they are.
    """

    sha256: _Hash | None
    text: str
    goes_on: bool = False


_encode_note = msgspec.msgpack.Encoder().encode
_note_decoder = msgspec.msgpack.Decoder(Note)


class OwnKey:
    """A user's own key; its ``repr`` shows only its id.

    Args:
        key: 32 random bytes, as in a key file.
    """

    __slots__ = ("_files", "_names", "_notes", "id")

    def __init__(self, key: MasterKey) -> None:
        self.id = _text(derived(key.raw, _CONTEXT + "id", _ID_BYTES))
        self._names = derived(key.raw, _CONTEXT + "names", _SIV_KEY_BYTES)
        self._notes = derived(key.raw, _CONTEXT + "notes", _SIV_KEY_BYTES)
        self._files = derived(key.raw, _CONTEXT + "files")

    def __repr__(self) -> str:
        return f"<OwnKey {self.id}>"

    @property
    def prefix(self) -> str:
        """How the sealed names of all files of this key begin."""
        return f"{PREFIX}{self.id}."

    def sealed_name(self, user_id: str, filename: str) -> str:
        """Seal the name of a user's file.

        Raises:
            InvalidArgument: it is too long.
        """
        plain = filename.encode()
        if len(plain) > NAME_BYTES_MAX:
            raise InvalidArgument(
                f"filename has {len(plain)} bytes of UTF-8, at most {NAME_BYTES_MAX} are allowed with a key of one's "
                "own, as a sealed name is longer; shorten it"
            )
        return self.prefix + _text(AESSIV(self._names).encrypt(plain, [_NAME, user_id.encode()]))

    def opened_name(self, user_id: str, file_id: str, sealed: str) -> str:
        """Inverse of :meth:`sealed_name`; the id is for messages.

        Raises:
            KeyRequired: it is sealed with another key.
            SealBroken: it is not sealed, or was changed, or is the name of another user's file.
        """
        if required_key(file_id, sealed) != self.id:
            raise KeyRequired(f"file {file_id} is sealed with the key {key_in(sealed)}, and {self.id} was given")
        try:
            plain = AESSIV(self._names).decrypt(_bytes(sealed[len(self.prefix) :]), [_NAME, user_id.encode()])
            return plain.decode()
        except (InvalidTag, ValueError):
            raise SealBroken(f"the sealed name of file {file_id} was changed, or is another user's") from None

    def sealed_note(self, user_id: str, note: str, sha256: str | None, *, goes_on: bool = False) -> str:
        """Seal what is noted of a version; empty if there is nothing to note. See :class:`Note`.

        Raises:
            InvalidArgument: the note is too long.
        """
        if not note and sha256 is None and not goes_on:
            return ""
        size = len(note.encode())
        if size > NOTE_SEALED_BYTES_MAX:
            raise InvalidArgument(
                f"note has {size} bytes, at most {NOTE_SEALED_BYTES_MAX} are allowed with a key of one's own"
            )
        noted = [bytes.fromhex(sha256) if sha256 else None, note]
        plain = _encode_note([*noted, True] if goes_on else noted)
        return _text(AESSIV(self._notes).encrypt(plain, [_NOTE, user_id.encode()]))

    def opened_note(self, user_id: str, file_id: str, field: str) -> tuple[Note, str]:
        """What is noted of a version, and who stored it according to the pool, such as ``(by bob)``.

        Raises:
            SealBroken: it was changed.
        """
        sealed, author = divided(field)
        if not sealed:
            return Note(None, ""), author
        try:
            plain = AESSIV(self._notes).decrypt(_bytes(sealed), [_NOTE, user_id.encode()])
            return _note_decoder.decode(plain), author
        except (InvalidTag, ValueError, msgspec.DecodeError):
            raise SealBroken(f"a sealed note of file {file_id} was changed") from None

    def of_file(self, user_id: str, filename: str) -> FileKeys:
        """The keys of a user's file of this name."""
        return FileKeys(message_key(self._files, user_id.encode() + b"\0" + filename.encode()))


class FileKeys:
    """The keys of one file: of its blocks, and of what proves which blocks are its content.

    Args:
        secret: 32 bytes, those of no other file.
    """

    __slots__ = ("_blocks", "_pages", "_root", "_salts")

    def __init__(self, secret: bytes) -> None:
        self._salts = derived(secret, _CONTEXT + "salts of blocks")
        self._blocks = derived(secret, _CONTEXT + "blocks")
        self._pages = derived(secret, _CONTEXT + "pages of salts")
        self._root = derived(secret, _CONTEXT + "versions")

    def salt(self, index: int, plain: BytesLike) -> bytes:
        """The salt of a block: different for every content and position, and of no meaning to others."""
        return blake3(index.to_bytes(8, "little"), key=self._salts).update(plain).digest()

    def sealed(self, index: int, salt: bytes, plain: BytesLike) -> bytes:
        """Seal a block."""
        return encrypt(message_key(self._blocks, salt), plain, _BLOCK + index.to_bytes(8, "little"))

    def opened(self, index: int, salt: bytes, raw: BytesLike) -> bytes:
        """Open a block.

        Raises:
            SealBroken: it is another block, or was changed.
        """
        return decrypt(message_key(self._blocks, salt), raw, _BLOCK + index.to_bytes(8, "little"))

    def page_hash(self, level: int, number: int, page: BytesLike) -> bytes:
        """The hash of a page of salts (level 0), or of hashes of pages (above)."""
        return blake3(bytes([level]) + number.to_bytes(8, "little"), key=self._pages).update(page).digest()

    def footer(self, layout: Layout, note: str, root_page: BytesLike) -> bytes:
        """The last bytes of a version."""
        head = _head(layout)
        return head + self._mac(head, note, root_page)

    def check_footer(self, layout: Layout, note: str, root_page: BytesLike, footer: BytesLike) -> None:
        """Check the last bytes of a version.

        Raises:
            SealBroken: they are not those of a version of this file with this size and note, or were changed.
        """
        head = bytes(footer[:-_MAC_BYTES])
        if head[: len(FORMAT)] != FORMAT:
            raise SealBroken("the file is not sealed, or was changed, or has a format that this release does not know")
        mac = self._mac(head, note, root_page)
        if head != _head(layout) or not hmac.compare_digest(mac, bytes(footer[-_MAC_BYTES:])):
            raise SealBroken("the file is not what was stored: its size, note, content or name was changed")

    def _mac(self, head: bytes, note: str, root_page: BytesLike) -> bytes:
        noted = note.encode()
        return blake3(head + len(noted).to_bytes(4, "little") + noted, key=self._root).update(root_page).digest()


def required_key(file_id: str, sealed: str) -> str:
    """Return the id of the key in a sealed name; the file's id is for messages.

    Raises:
        SealBroken: the name is not sealed.
    """
    key_id = key_in(sealed)
    if key_id is None:
        raise SealBroken(f"file {file_id} is not sealed with a key; to read it, give none")
    return key_id


def divided(field: str) -> tuple[str, str]:
    """A version's note field: what its author sealed, and what the pool added about who that is."""
    match = _WITH_AUTHOR.fullmatch(field)
    if match is None:
        raise SealBroken("a version's note is not sealed; was it stored without the key?")
    return match[1], match[2] or ""


class OwnKeys:
    """A user's own keys: new files are sealed with the current one, and each file is opened with its own.

    Args:
        current: the key for new files.
        former: the keys that it replaces, newest first.

    Raises:
        InvalidArgument: a key is there twice.
    """

    __slots__ = ("_by_id", "current", "former")

    def __init__(self, current: OwnKey, *former: OwnKey) -> None:
        self.current = current
        self.former = former
        self._by_id = {key.id: key for key in (current, *former)}
        if len(self._by_id) <= len(former):
            raise InvalidArgument("a key is in the key file twice; remove one of the two lines")

    def __iter__(self) -> Iterator[OwnKey]:
        """Yield all keys, newest first."""
        yield from (self.current, *self.former)

    def key_of(self, file_id: str, sealed: str) -> OwnKey:
        """Return the key of the file with this sealed name; the id is for messages.

        Raises:
            KeyRequired: it is none of these.
            SealBroken: the name is not sealed.
        """
        key_id = required_key(file_id, sealed)
        if key_id not in self._by_id:
            given = " and ".join(key.id for key in self)
            raise KeyRequired(f"file {file_id} is sealed with the key {key_id}, and {given} was given")
        return self._by_id[key_id]

    def opened_name(self, user_id: str, file_id: str, sealed: str) -> str:
        """See :meth:`OwnKey.opened_name`."""
        return self.key_of(file_id, sealed).opened_name(user_id, file_id, sealed)


def own_keys(keys: MasterKeys) -> OwnKeys:
    """Return the keys that a key file has.

    Raises:
        InvalidArgument: it has one twice.
    """
    return OwnKeys(OwnKey(keys.current), *map(OwnKey, keys.former))


def _head(layout: Layout) -> bytes:
    return FORMAT + layout.chunk_size.to_bytes(4, "little") + layout.size.to_bytes(8, "little")


assert len(FORMAT) + 4 + 8 + _MAC_BYTES == FOOTER_BYTES


def _text(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    try:
        return urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error as error:
        raise ValueError(str(error)) from error
