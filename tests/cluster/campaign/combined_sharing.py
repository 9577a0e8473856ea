"""Users share files with each other and take that back; others read and write what they may, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from storage.errors import FileNotFound, PermissionDenied, StorageError
from tests.cluster.campaign.combined_calls import NAMES, Account, RandomCalls
from tests.cluster.campaign.histories import Doubt
from tests.cluster.campaign.ledger import Wrong


class Sharing:
    """The shares between users. Not thread-safe.

    Args:
        users: those whose files can be shared.
        rng: decides everything.
        account: where errors go.
    """

    def __init__(self, users: Mapping[str, RandomCalls], rng: Random, account: Account) -> None:
        self._users = users
        self._rng = rng
        self._account = account
        self._shares: dict[tuple[str, str, str], bool] = {}  # owner, name, with whom: whether to write

    def change(self) -> None:
        """Share a file or a folder with another user, or take such a share back."""
        owner, other = self._rng.sample(sorted(self._users), 2)
        name = self._rng.choice(NAMES)
        if self._rng.random() < 0.5:
            name = name.partition("/")[0] + "/"
        client, share = self._users[owner].client, (owner, name, other)
        try:
            if share in self._shares:
                client.unshare(name, with_user=other)
                del self._shares[share]
            else:
                write = self._rng.random() < 0.4
                client.share(name, with_user=other, write=write)
                self._shares[share] = write
            self._account.done("share or unshare")
        except StorageError as error:
            self._account.refuse("share or unshare", error)
            self._read_shares()

    def _read_shares(self) -> None:
        """What there is after a call without an answer."""
        try:
            given = [share for user in self._users.values() for share in user.client.shares().given]
        except StorageError as error:
            self._account.error("sharing", "list shares", error)
            return
        self._shares = {(share.owner, share.name, share.with_user): share.write for share in given}

    def use(self) -> None:
        """Read and write a file of another user; that must be refused without a share, and pass with one."""
        owner, other = self._rng.sample(sorted(self._users), 2)
        names = self._users[owner].files.certain()
        if names:
            name = self._rng.choice(names)
            self._read(owner, other, name)
            self._write(owner, other, name)

    def _rights(self, owner: str, other: str, name: str) -> list[bool]:
        return [
            write
            for (by, shared, with_user), write in self._shares.items()
            if (by, with_user) == (owner, other)
            and (name == shared or (shared.endswith("/") and name.startswith(shared)))
        ]

    def _read(self, owner: str, other: str, name: str) -> None:
        history = self._users[owner].files.histories[name]
        version, may = self._rng.choice(history.versions), bool(self._rights(owner, other, name))
        with self._users[other].calling("get from another"):
            try:
                found = self._users[other].client.get(history.file_id, user_id=owner, version_id=version.version_id)
            except (PermissionDenied, FileNotFound):
                if may:
                    raise
                return
            if not may:
                raise Wrong(f"a file of {owner} was read without a share")
            if found != version.content:
                raise Wrong(f"other bytes of a shared file of {owner}")

    def _write(self, owner: str, other: str, name: str) -> None:
        content, may = self._users[other].content(), any(self._rights(owner, other, name))
        user = self._users[owner]
        with user.calling("push to another", {name: Doubt(appended=content)}):
            try:
                version = self._users[other].client.push(content, filename=name, user_id=owner)
            except (PermissionDenied, FileNotFound):
                if may:
                    raise
                return
            user.stored(name, version, content)
            if not may:
                raise Wrong(f"{other} wrote to a file of {owner} without the right")
