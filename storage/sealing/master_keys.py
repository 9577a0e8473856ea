"""Master keys: 32 random bytes, kept outside the store, which seal the keys of its users."""

from __future__ import annotations

import base64
import binascii
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from storage.errors import InvalidArgument, KeyRequired
from storage.sealing.aead import KEY_BYTES, derived
from storage.system.private_files import read_private, write_private

_WRAP = "TaskWorker 2026-11 master key: keys of users"
_ID = "TaskWorker 2026-11 master key: id"
_ID_BYTES = 8
_FILE_BYTES_MAX = 4096
_HEADER = "# TaskWorker: the key of an encrypted store. Without it, nothing in the store can be read; keep a copy.\n"


class StoreKey:
    """A master key; its ``repr`` shows only its id.

    Args:
        raw: 32 random bytes.

    Raises:
        InvalidArgument: it has another length.
    """

    __slots__ = ("id", "raw", "wrap")

    def __init__(self, raw: bytes) -> None:
        if len(raw) != KEY_BYTES:
            raise InvalidArgument(f"a key has {KEY_BYTES} random bytes, not {len(raw)}")
        self.raw = raw
        self.id = derived(raw, _ID, _ID_BYTES)
        self.wrap = derived(raw, _WRAP)

    def __repr__(self) -> str:
        return f"<StoreKey {self.id.hex()}>"

    def text(self) -> str:
        """The key in base64."""
        return base64.b64encode(self.raw).decode()


@dataclass(frozen=True, slots=True)
class StoreKeys:
    """The current master key, and the former ones that it replaces."""

    current: StoreKey
    former: tuple[StoreKey, ...] = ()

    def find(self, key_id: bytes) -> StoreKey | None:
        """Return the key with this id; None if it is not here."""
        return next((key for key in (self.current, *self.former) if key.id == key_id), None)


def read_key_file(path: Path) -> StoreKeys:
    """Read a key file: keys in base64, one on each line, the current one first.

    Raises:
        KeyRequired: there is none, or it has no key, or it cannot be opened.
        NotPrivate: others may read it.
    """
    try:
        content = read_private(path, _FILE_BYTES_MAX)
    except OSError as error:
        raise KeyRequired(f"the key file {path} cannot be read: {error.strerror}") from error
    if content is None:
        raise KeyRequired(
            f"there is no key file {path}; for a new store, make one: (umask 077; head -c {KEY_BYTES} /dev/urandom | "
            f"base64 > {path})"
        )
    lines = [line.strip() for line in content.decode("utf-8", "replace").splitlines()]
    keys = [_key_of_text(line, path) for line in lines if line and not line.startswith("#")]
    if not keys:
        raise _no_key(path)
    return StoreKeys(keys[0], tuple(keys[1:]))


def store_keys(key: bytes | str | os.PathLike[str] | StoreKeys | None) -> StoreKeys | None:
    """Return the keys that a caller gives: the bytes of one, a key file, or keys.

    Raises:
        KeyRequired, NotPrivate: see :func:`read_key_file`.
        InvalidArgument: it is not a key.
    """
    if key is None or isinstance(key, StoreKeys):
        return key
    if isinstance(key, bytes):
        return StoreKeys(StoreKey(key))
    return read_key_file(Path(key))


def new_key_file(path: str | os.PathLike[str]) -> StoreKeys:
    """Write a random key to a new file that only its owner may read, and return it.

    Raises:
        InvalidArgument: there is such a file already.
        OSError: it cannot be written.
    """
    if os.path.lexists(path):
        raise InvalidArgument(f"{path} exists already; a key that a store needs must not be replaced")
    keys = StoreKeys(new_store_key())
    write_key_file(Path(path), keys)
    return keys


def write_key_file(path: Path, keys: StoreKeys) -> None:
    """Write keys to a file that only its owner may read, in place of what was there."""
    text = _HEADER + "".join(f"{key.text()}\n" for key in (keys.current, *keys.former))
    write_private(path, text.encode())


def new_store_key() -> StoreKey:
    """Return a random key."""
    return StoreKey(secrets.token_bytes(KEY_BYTES))


def _key_of_text(line: str, path: Path) -> StoreKey:
    try:
        raw = base64.b64decode(line, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != KEY_BYTES:
        raise _no_key(path)
    return StoreKey(raw)


def _no_key(path: Path) -> KeyRequired:
    return KeyRequired(
        f"{path} has a line that is no key, which is {KEY_BYTES} bytes in base64; put the right key there"
    )
