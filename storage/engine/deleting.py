"""Deleting files and versions of a store."""

from __future__ import annotations

from collections.abc import Sequence

from storage.arguments import checked
from storage.catalog import FileEntry, user_key
from storage.engine.reading import ReadableStore
from storage.files import name_of, permitted
from storage.formats.versions import Version
from storage.write.condition import Condition, condition_of
from storage.write.deleting import Check, NameOf


class DeletingStore(ReadableStore):
    """The part of a store that deletes."""

    @checked
    def delete(self, file_id: str, *, user_id: str, if_head: str | None = None) -> None:
        """Delete a file. Its name is free at once, its space after the next :meth:`collect`.

        Args:
            file_id: the file.
            user_id: the owner.
            if_head: delete nothing unless this version is the head then.

        Raises:
            FileNotFound: there is no such file, or it is another user's.
            ConflictError: another version is the head.
            CatalogBehind: see :attr:`behind`.
        """
        self._parts.check_writable()
        condition = condition_of(if_absent=False, if_head=if_head)
        self._delete([self._parts.files.entry(file_id, user_id)[0]], user_id, condition)

    @checked
    def delete_files(self, file_ids: Sequence[str], *, user_id: str) -> None:
        """Delete many files at once, like :meth:`delete`; if one does not exist, none is deleted.

        Deleting a few hundred together takes hardly longer than deleting one.

        Raises:
            FileNotFound: one of the files, named in the text, does not exist or is another user's.
            CatalogBehind: see :attr:`behind`.
        """
        self._parts.check_writable()
        self._delete(list(dict.fromkeys(self._parts.files.entry(file_id, user_id)[0] for file_id in file_ids)), user_id)

    @checked
    def delete_version(
        self, file_id: str, version_id: str, *, user_id: str, if_head: str | None = None
    ) -> Version | None:
        """Delete one version of a file. The others stay as they are; their history leaves it out.

        If it is the newest one, the version before it is the head again. If it is the only one, the file is deleted.
        The next :meth:`collect` frees what no other version needs; until then, that counts for the owner's quota.

        Args:
            file_id: the file.
            version_id: the version.
            user_id: the owner.
            if_head: delete nothing unless this version is the head then, which may be the same one.

        Returns:
            The head of the file now; None if the file is gone.

        Raises:
            FileNotFound: there is no such file, or it is another user's.
            VersionNotFound: the file has no such version.
            ConflictError: another version is the head.
            CatalogBehind: see :attr:`behind`.
        """
        self._parts.check_writable()
        identifier, version = self._parts.files.identifiers(file_id, version_id, user_id)
        condition = condition_of(if_absent=False, if_head=if_head)
        head = self._parts.pushing.commits.delete_version(identifier, version, *_deleting_by(user_id, condition))
        self._parts.forget([identifier])
        return None if head is None else head.public()

    def _delete(self, identifiers: list[bytes], user_id: str, condition: Condition | None = None) -> None:
        """Delete files with one transaction: all of them, or none."""
        if identifiers:
            self._parts.pushing.commits.delete(identifiers, *_deleting_by(user_id, condition))
            self._parts.forget(identifiers)


def _deleting_by(user_id: str, condition: Condition | None = None) -> tuple[Check, NameOf]:
    """What a deletion needs to know of the user who asks for it, and on what condition."""

    def check(identifier: bytes, entry: FileEntry | None) -> FileEntry:
        found = permitted(entry, identifier.hex(), user_id)
        if condition is not None:
            condition.require(identifier.hex(), found)
        return found

    def name(filename: str) -> bytes:
        return name_of(user_key(user_id.encode()), filename)

    return check, name
