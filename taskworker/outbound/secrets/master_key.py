"""The master key: where it is kept, who may read it, and how it is replaced."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from storage.errors import InvalidArgument
from storage.sealing.aead import KEY_BYTES
from storage.sealing.master_keys import MasterKeys, new_master_key
from storage.system.private_files import aside_of, write_private
from taskworker.errors import SecretsUnavailable

log = logging.getLogger(__name__)

VARIABLE = "TASKWORKER_MASTER_KEY"
_FILE_BYTES_MAX = 4096
_HEADER = "# TaskWorker: the master key of a pool's secrets. Without it they cannot be read; keep a copy elsewhere.\n"


class MasterKeySource(Protocol):
    """A place that keeps the keys. Methods raise SecretsUnavailable if it cannot be used."""

    @property
    def name(self) -> str:
        """The name of the place, for texts."""

    @property
    def file(self) -> Path | None:
        """The file that has the keys; None if somebody else keeps them."""

    def load(self) -> MasterKeys | None:
        """The keys; None if there are none yet."""

    def make(self) -> MasterKeys:
        """Make the first key, and store it durably."""

    def renew(self, ring: MasterKeys) -> MasterKeys:
        """Add a new key durably; it is the current one from now on."""

    def settle(self, ring: MasterKeys) -> MasterKeys:
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

    @property
    def file(self) -> Path:
        """See ``MasterKeySource``."""
        return self.path

    def load(self) -> MasterKeys | None:
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
        return _keys_of_text(text, self.name)

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

    def make(self) -> MasterKeys:
        """See ``MasterKeySource``."""
        ring = MasterKeys(new_master_key())
        self._keep(ring)
        log.warning(
            "KEEP A COPY OF THE MASTER KEY, which was made just now, outside of this machine: if %s is lost, so is all "
            "that the pool encrypts, and its secrets. `taskworker secret export-key` prints the key for paper",
            self.path,
        )
        return ring

    def renew(self, ring: MasterKeys) -> MasterKeys:
        """See ``MasterKeySource``."""
        renewed = MasterKeys(new_master_key(), (ring.current, *ring.former))
        self._keep(renewed)
        return renewed

    def settle(self, ring: MasterKeys) -> MasterKeys:
        """See ``MasterKeySource``."""
        settled = MasterKeys(ring.current)
        self._keep(settled)
        return settled

    def _keep(self, ring: MasterKeys) -> None:
        try:
            write_private(self.path, (_HEADER + ring.text()).encode())
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

    @property
    def file(self) -> None:
        """See ``MasterKeySource``."""

    def load(self) -> MasterKeys:
        """See ``MasterKeySource``."""
        return _keys_of_text(self.text.replace(",", "\n"), self.name)

    def make(self) -> MasterKeys:
        """See ``MasterKeySource``."""
        return self.load()

    def renew(self, ring: MasterKeys) -> MasterKeys:
        """Refuse: the pool cannot change these keys.

        Raises:
            InvalidArgument: always; the text says how to rotate them.
        """
        raise InvalidArgument(
            f"the pool's master key comes from {self.name}, which the pool cannot change: start it again with "
            f"{VARIABLE}=NEW,OLD; it then re-wraps all secrets, and OLD may be left out at the next start"
        )

    def settle(self, ring: MasterKeys) -> MasterKeys:
        """See ``MasterKeySource``."""
        return MasterKeys(ring.current)


def _keys_of_text(text: str, where: str) -> MasterKeys:
    try:
        return MasterKeys.of_text(text)
    except InvalidArgument:
        raise SecretsUnavailable(
            f"{where} holds no master key, which is {KEY_BYTES} random bytes in base64, as `head -c {KEY_BYTES} "
            "/dev/urandom | base64` prints them; put the right key there"
        ) from None
