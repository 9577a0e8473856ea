"""Folders: whole directory trees with their names, modes, times and links.

``rules`` decides what is left out, ``scanning`` finds what is on disk, ``contents`` reads it, ``entries`` describes it,
and ``restoring`` puts it back. ``pushing`` and ``fetching`` keep each file of a tree under a name of its own. All of
them know only the port in ``ports``, and neither gRPC nor how files are stored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from storage.lazily import loading

if TYPE_CHECKING:
    from taskworker.folders.embedded import StoreFiles
    from taskworker.folders.entries import Entry, Kind
    from taskworker.folders.fetching import FetchReport, get_tree
    from taskworker.folders.ports import Files
    from taskworker.folders.problems import ChangedWhileRead, FolderDamaged, FolderIncomplete, Unstorable
    from taskworker.folders.pushing import PushReport, push_tree
    from taskworker.folders.rules import Exclusions

__all__ = [
    "ChangedWhileRead",
    "Entry",
    "Exclusions",
    "FetchReport",
    "Files",
    "FolderDamaged",
    "FolderIncomplete",
    "Kind",
    "PushReport",
    "StoreFiles",
    "Unstorable",
    "get_tree",
    "push_tree",
]

__getattr__, __dir__ = loading(
    __name__,
    {
        "ChangedWhileRead": "taskworker.folders.problems",
        "Entry": "taskworker.folders.entries",
        "Exclusions": "taskworker.folders.rules",
        "FetchReport": "taskworker.folders.fetching",
        "Files": "taskworker.folders.ports",
        "FolderDamaged": "taskworker.folders.problems",
        "FolderIncomplete": "taskworker.folders.problems",
        "Kind": "taskworker.folders.entries",
        "StoreFiles": "taskworker.folders.embedded",
        "PushReport": "taskworker.folders.pushing",
        "Unstorable": "taskworker.folders.problems",
        "get_tree": "taskworker.folders.fetching",
        "push_tree": "taskworker.folders.pushing",
    },
)
