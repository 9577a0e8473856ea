"""The master key: where it is kept, who may read it, and how it is replaced."""

from __future__ import annotations

import base64
import binascii
import contextlib
import logging
import os
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from storage.errors import InvalidArgument
from storage.system.private_files import aside_of, write_private
from taskworker.errors import SecretsUnavailable

log = logging.getLogger(__name__)

VARIABLE = "TASKWORKER_MASTER_KEY"
KEY_BYTES = 32
_ID_BYTES = 8
_FILE_BYTES_MAX = 4096
_HEADER = "# TaskWorker: the master key of a pool's secrets. Without it they cannot be read; keep a copy elsewhere.\n"


class MasterKey:
    """A master key, as the two keys derived from it; its ``repr`` shows only its id.

    Args:
        raw: 32 random bytes.
    """

    __slots__ = ("id", "raw", "table", "wrap")

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.id = _derived(raw, b"id", _ID_BYTES).hex()
        self.wrap = _derived(raw, b"wrap", KEY_BYTES)
        self.table = _derived(raw, b"table", KEY_BYTES)

    def __repr__(self) -> str:
        return f"<MasterKey {self.id}>"

    @classmethod
    def new(cls) -> MasterKey:
        """A random key."""
        return cls(secrets.token_bytes(KEY_BYTES))

    @classmethod
    def of_text(cls, text: str, where: str) -> MasterKey:
        """Read a key from base64.

        Raises:
            SecretsUnavailable: it is not a key.
        """
        try:
            raw = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raw = b""
        if len(raw) != KEY_BYTES:
            raise SecretsUnavailable(
                f"{where} holds no master key, which is {KEY_BYTES} random bytes in base64, as `head -c {KEY_BYTES} "
                "/dev/urandom | base64` prints them; put the right key there"
            )
        return cls(raw)

    def text(self) -> str:
        """The key in base64, as :meth:`of_text` reads it."""
        return base64.b64encode(self.raw).decode()


def _derived(raw: bytes, purpose: bytes, length: int) -> bytes:
    return HKDF(algorithm=SHA256(), length=length, salt=None, info=b"taskworker secrets " + purpose).derive(raw)


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The current key, and the former keys that it replaces."""

    current: MasterKey
    former: tuple[MasterKey, ...] = ()

    def find(self, key_id: str) -> MasterKey | None:
        """The key with this id; None if it is not here."""
        return next((key for key in (self.current, *self.former) if key.id == key_id), None)


class MasterKeySource(Protocol):
    """A place that keeps the keys. Methods raise SecretsUnavailable if it cannot be used."""

    @property
    def name(self) -> str:
        """The name of the place, for texts."""

    def load(self) -> KeyRing | None:
        """The keys; None if there are none yet."""

    def make(self) -> KeyRing:
        """Make the first key, and store it durably."""

    def renew(self, ring: KeyRing) -> KeyRing:
        """Add a new key durably; it is the current one from now on."""

    def settle(self, ring: KeyRing) -> KeyRing:
        """Delete the former keys, with which nothing is wrapped any more."""


@dataclass(frozen=True, slots=True)
class KeyFile:
    """A file of the pool's own user that nobody else may read: one key per line, the current one first.

    Args:
        path: path of the file; it and its directory are created if absent.
    """

    path: Path

    @property
    def name(self) -> str:
        """See ``MasterKeySource``."""
        return f"the master key file {self.path}"

    def load(self) -> KeyRing | None:
        """See ``MasterKeySource``."""
        with contextlib.suppress(OSError):  # a read-only place has none
            aside_of(self.path).unlink()  # left by a crash before the rename; nothing is sealed with its keys
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SecretsUnavailable(f"{self.name} cannot be opened: {error.strerror}") from error
        with os.fdopen(descriptor, "rb") as file:
            self._require_private(os.fstat(descriptor))
            text = file.read(_FILE_BYTES_MAX).decode("utf-8", "replace")
        lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
        keys = [MasterKey.of_text(line, self.name) for line in lines or [""]]
        return KeyRing(keys[0], tuple(keys[1:]))

    def _require_private(self, found: os.stat_result) -> None:
        if not stat.S_ISREG(found.st_mode):
            raise SecretsUnavailable(f"{self.name} is not a regular file")
        if found.st_uid != os.geteuid():
            raise SecretsUnavailable(
                f"{self.name} belongs to user {found.st_uid}, not to the pool's own ({os.geteuid()}): who owns it can "
                "change it; give the pool a file of its own"
            )
        mode = stat.S_IMODE(found.st_mode)
        if mode & ~0o600:
            raise SecretsUnavailable(
                f"{self.name} has mode {mode:04o}, so others may read it: `chmod 600 {self.path}`, and if others may "
                "have read it, `taskworker secret rotate-master` afterwards"
            )

    def make(self) -> KeyRing:
        """See ``MasterKeySource``."""
        ring = KeyRing(MasterKey.new())
        self._keep(ring)
        log.warning("made %s (0600), which seals the pool's secrets; keep a copy of it elsewhere", self.name)
        return ring

    def renew(self, ring: KeyRing) -> KeyRing:
        """See ``MasterKeySource``."""
        renewed = KeyRing(MasterKey.new(), (ring.current, *ring.former))
        self._keep(renewed)
        return renewed

    def settle(self, ring: KeyRing) -> KeyRing:
        """See ``MasterKeySource``."""
        settled = KeyRing(ring.current)
        self._keep(settled)
        return settled

    def _keep(self, ring: KeyRing) -> None:
        text = _HEADER + "".join(f"{key.text()}\n" for key in (ring.current, *ring.former))
        try:
            write_private(self.path, text.encode())
        except OSError as error:
            raise SecretsUnavailable(f"{self.name} cannot be written: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class GivenKeys:
    """Keys from the environment or from a program: separated by commas, the current one first.

    Args:
        text: the keys in base64.
    """

    text: str = field(repr=False)

    @property
    def name(self) -> str:
        """See ``MasterKeySource``."""
        return f"the environment variable {VARIABLE}"

    def load(self) -> KeyRing:
        """See ``MasterKeySource``."""
        keys = [MasterKey.of_text(one.strip(), self.name) for one in self.text.split(",")]
        return KeyRing(keys[0], tuple(keys[1:]))

    def make(self) -> KeyRing:
        """See ``MasterKeySource``."""
        return self.load()

    def renew(self, ring: KeyRing) -> KeyRing:
        """Refuse: the pool cannot change these keys.

        Raises:
            InvalidArgument: always; the text says how to rotate them.
        """
        raise InvalidArgument(
            f"the pool's master key comes from {self.name}, which the pool cannot change: start it again with "
            f"{VARIABLE}=NEW,OLD; it then re-wraps all secrets, and OLD may be left out at the next start"
        )

    def settle(self, ring: KeyRing) -> KeyRing:
        """See ``MasterKeySource``."""
        return KeyRing(ring.current)
