"""What names versions by their ids: listings of folders, and links. It follows when versions are encrypted anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from storage import FileStorage, Version
from storage.catalog import Catalog
from storage.errors import ConflictError, FileNotFound, InvalidArgument, VersionNotFound
from storage.maintenance.plain_versions import FoundHead, heads
from taskworker.folders.entries import Entry, Kind, decode_listing
from taskworker.folders.listings import with_new_versions
from taskworker.folders.problems import FolderDamaged

_LISTING_BYTES_MAX = 64 << 20  # about half a million files; decoded, it takes four times as much
_TRIES = 10


@dataclass(slots=True)
class ListingsToRenew:
    """Listings of folders that name versions which were encrypted anew, and so have other ids by now.

    Listings are renewed by what the store has, so that it does not matter where a former run was cut off.

    Args:
        store: the store.
        catalog: its catalog.
        check_open: raises an error if this shall end; called for each file.

    Attributes:
        too_large: listings that are too large to be renewed here.
    """

    store: FileStorage
    catalog: Catalog
    check_open: Callable[[], None]
    too_large: int = field(default=0, init=False)

    def renew_all(self, is_of: Callable[[str], bool]) -> None:
        """Have the listings of all folders name the newest versions of files whose content is the listed one.

        Args:
            is_of: whether this is about files of a user.

        Raises:
            ConflictError: a listing is changed all the time.
            StorageError: a listing cannot be read or stored now.
        """
        self.too_large = 0
        for head in heads(self.catalog):
            if is_of(head.user_id) and head.filename.endswith("/"):
                self._renew(head)

    def _renew(self, head: FoundHead) -> None:
        for _ in range(_TRIES):
            try:
                return self._try_to_renew(head)
            except FileNotFound:
                return None
            except ConflictError:
                continue  # its user pushed the folder meanwhile
        raise ConflictError(f"the listing of a folder (file {head.file_id}) is changed all the time", head="")

    def _try_to_renew(self, head: FoundHead) -> None:
        listing = self.store.stat(head.file_id, user_id=head.user_id)
        if listing.size > _LISTING_BYTES_MAX:
            self.too_large += 1
            return
        data = self.store.get(head.file_id, user_id=head.user_id, version_id=listing.version_id)
        try:
            entries = decode_listing(data)
        except FolderDamaged:
            return  # it is something else, or sealed by its user
        became: dict[str, str] = {}
        for entry in entries:
            self.check_open()
            found = self._successor_of(entry, listing)
            if found is not None:
                became[entry.content[0].hex()] = found
        if became:
            self.store.upkeep.replace_content(listing, with_new_versions(became)(data))

    def _successor_of(self, entry: Entry, listing: Version) -> str | None:
        """The version that took the place of a listed one; None: the listed one is the newest, or outdated."""
        if entry.kind is not Kind.FILE or len(entry.content) != 1:
            return None
        try:
            name = listing.filename + entry.name.decode()
            head = self.store.find(name, user_id=listing.user_id)
        except (UnicodeDecodeError, InvalidArgument):
            return None  # no file can have this name
        listed = entry.content[0].hex()
        if head is None or head.version_id == listed:
            return None
        return successor_with_same_content(self.store, head.file_id, listed, listing.user_id)


def successor_with_same_content(store: FileStorage, file_id: str, version_id: str, user_id: str) -> str | None:
    """Return the newest version of a file if it follows this one and has the same content; else None."""
    try:
        head = store.stat(file_id, user_id=user_id)
        if head.parent_id != version_id:
            return None
        diff = store.synchronize(file_id, have_version_id=version_id, user_id=user_id, data_bytes_max=0)
    except (FileNotFound, VersionNotFound, InvalidArgument):
        return None  # deleted meanwhile, or of another chunk size
    is_same = diff.target_version_id == head.version_id and diff.new_size == head.size and not diff.patches
    return head.version_id if is_same else None
