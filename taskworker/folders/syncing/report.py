"""What a sync did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Told = Callable[[str, bytes], None]
"""Called with what is done, such as "sent", and the path of the file in the folder."""


@dataclass(slots=True)
class SyncReport:
    """What a sync did.

    Attributes:
        prefix: of the names of the folder's files; ends with a slash.
        files: files that both sides have now.
        sent: files and links whose content was stored.
        sent_size: their bytes.
        fetched: files and links that were written here.
        fetched_size: their bytes.
        deleted_here: files and links that were deleted here, as they were deleted there.
        deleted_there: likewise, there.
        conflicts: files of which both sides are kept, one of them under another name.
        failed: files with a problem.
    """

    prefix: str
    files: int = 0
    sent: int = 0
    sent_size: int = 0
    fetched: int = 0
    fetched_size: int = 0
    deleted_here: int = 0
    deleted_there: int = 0
    conflicts: int = 0
    failed: int = 0
