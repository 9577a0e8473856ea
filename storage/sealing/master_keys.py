"""Master keys: 32 random bytes, kept outside the store, which seal the keys of its users, and a pool's secrets."""

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
_SECRETS = b"taskworker secrets "
_ID_BYTES = 8
_FILE_BYTES_MAX = 4096
_HEADER = "# TaskWorker: the key of an encrypted store. Without it, nothing in the store can be read; keep a copy.\n"


class MasterKey:
    """A master key; its ``repr`` shows only its id.

    Args:
        raw: 32 random bytes.

    Attributes:
        id: names the key, as in the users' keys that it seals.
        wrap: seals the users' keys.
        secrets_id: names the key in the document of a pool's secrets, which is older than ``id``.
        secrets_wrap: seals the data keys of secrets.
        secrets_table: authenticates the table of secrets.

    Raises:
        InvalidArgument: it has another length.
    """

    __slots__ = ("id", "raw", "secrets_id", "secrets_table", "secrets_wrap", "wrap")

    def __init__(self, raw: bytes) -> None:
        if len(raw) != KEY_BYTES:
            raise InvalidArgument(f"a key has {KEY_BYTES} random bytes, not {len(raw)}")
        self.raw = raw
        self.id = derived(raw, _ID, _ID_BYTES)
        self.wrap = derived(raw, _WRAP)
        self.secrets_id = _for_secrets(raw, b"id", _ID_BYTES).hex()
        self.secrets_wrap = _for_secrets(raw, b"wrap", KEY_BYTES)
        self.secrets_table = _for_secrets(raw, b"table", KEY_BYTES)

    def __repr__(self) -> str:
        return f"<MasterKey {self.id.hex()}>"

    def text(self) -> str:
        """The key in base64."""
        return base64.b64encode(self.raw).decode()

    @classmethod
    def of_text(cls, text: str) -> MasterKey:
        """Inverse of :meth:`text`.

        Raises:
            InvalidArgument: it is no key.
        """
        try:
            raw = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raw = b""
        return cls(raw)


def _for_secrets(raw: bytes, purpose: bytes, length: int) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256  # late, as for all of cryptography
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(algorithm=SHA256(), length=length, salt=None, info=_SECRETS + purpose).derive(raw)


@dataclass(frozen=True, slots=True)
class MasterKeys:
    """The current master key, and the former ones that it replaces."""

    current: MasterKey
    former: tuple[MasterKey, ...] = ()

    def find(self, key_id: bytes) -> MasterKey | None:
        """Return the key with this id; None if it is not here."""
        return next((key for key in (self.current, *self.former) if key.id == key_id), None)

    def find_for_secrets(self, secrets_id: str) -> MasterKey | None:
        """Return the key with this id in the document of secrets; None if it is not here."""
        return next((key for key in (self.current, *self.former) if key.secrets_id == secrets_id), None)

    def text(self) -> str:
        """The lines of a key file, without comments."""
        return "".join(f"{key.text()}\n" for key in (self.current, *self.former))

    @classmethod
    def of_text(cls, text: str) -> MasterKeys:
        """Read the lines of a key file: keys in base64, the current one first.

        Raises:
            InvalidArgument: a line is no key, or there is none.
        """
        lines = [line.strip() for line in text.splitlines()]
        keys = [MasterKey.of_text(line) for line in lines if line and not line.startswith("#")]
        if not keys:
            raise InvalidArgument("there is no key")
        return cls(keys[0], tuple(keys[1:]))


def read_key_file(path: Path) -> MasterKeys:
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
    try:
        return MasterKeys.of_text(content.decode("utf-8", "replace"))
    except InvalidArgument:
        raise KeyRequired(
            f"{path} has a line that is no key, which is {KEY_BYTES} bytes in base64; put the right key there"
        ) from None


def store_keys(key: bytes | str | os.PathLike[str] | MasterKeys | None) -> MasterKeys | None:
    """Return the keys that a caller gives: the bytes of one, a key file, or keys.

    Raises:
        KeyRequired, NotPrivate: see :func:`read_key_file`.
        InvalidArgument: it is not a key.
    """
    if key is None or isinstance(key, MasterKeys):
        return key
    if isinstance(key, bytes):
        return MasterKeys(MasterKey(key))
    return read_key_file(Path(key))


def new_key_file(path: str | os.PathLike[str]) -> MasterKeys:
    """Write a random key to a new file that only its owner may read, and return it.

    Raises:
        InvalidArgument: there is such a file already.
        OSError: it cannot be written.
    """
    if os.path.lexists(path):
        raise InvalidArgument(f"{path} exists already; a key that a store needs must not be replaced")
    keys = MasterKeys(new_master_key())
    write_key_file(Path(path), keys)
    return keys


def write_key_file(path: Path, keys: MasterKeys) -> None:
    """Write keys to a file that only its owner may read, in place of what was there."""
    write_private(path, (_HEADER + keys.text()).encode())


def new_master_key() -> MasterKey:
    """Return a random key."""
    return MasterKey(secrets.token_bytes(KEY_BYTES))
