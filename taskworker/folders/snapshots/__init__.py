"""Snapshots: folders at one moment, which share what is equal.

A directory is a blob that describes what is in it, and so is named by everything below it; the content of a file is a
blob, too. ``blobs`` says how blobs are named and where they lie, ``directories`` how directories are written,
``records`` which snapshots a folder has. ``repository`` brings these together, ``packing`` adds to them.
``taking``, ``restoring``, ``comparing`` and ``forgetting`` are what users do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from storage.lazily import loading

if TYPE_CHECKING:
    from taskworker.folders.snapshots.comparing import Change, compare
    from taskworker.folders.snapshots.forgetting import ForgetReport, Keep, forget
    from taskworker.folders.snapshots.records import Snapshot
    from taskworker.folders.snapshots.repository import Repository, folder_names
    from taskworker.folders.snapshots.restoring import RestoreReport, restore
    from taskworker.folders.snapshots.taking import TakeReport, take_snapshot

__all__ = [
    "Change",
    "ForgetReport",
    "Keep",
    "Repository",
    "RestoreReport",
    "Snapshot",
    "TakeReport",
    "compare",
    "folder_names",
    "forget",
    "restore",
    "take_snapshot",
]

__getattr__, __dir__ = loading(
    __name__,
    {
        "Change": "taskworker.folders.snapshots.comparing",
        "ForgetReport": "taskworker.folders.snapshots.forgetting",
        "Keep": "taskworker.folders.snapshots.forgetting",
        "Repository": "taskworker.folders.snapshots.repository",
        "RestoreReport": "taskworker.folders.snapshots.restoring",
        "Snapshot": "taskworker.folders.snapshots.records",
        "TakeReport": "taskworker.folders.snapshots.taking",
        "compare": "taskworker.folders.snapshots.comparing",
        "folder_names": "taskworker.folders.snapshots.repository",
        "forget": "taskworker.folders.snapshots.forgetting",
        "restore": "taskworker.folders.snapshots.restoring",
        "take_snapshot": "taskworker.folders.snapshots.taking",
    },
)
