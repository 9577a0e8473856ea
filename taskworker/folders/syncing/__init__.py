"""Two-way sync of a directory and a folder in the store, whichever of them changed.

``planning`` decides what to do with each path, from what both sides have, and what they had in common at the last sync,
which ``state`` keeps. ``replica`` changes the directory, ``stored`` reads and describes the folder.
``comparing`` looks at both sides, ``transferring`` brings each path to the same state on both, and ``running`` does all
of this in an order that loses nothing if it ends half way.
"""

from taskworker.folders.syncing.planning import Step
from taskworker.folders.syncing.report import SyncReport
from taskworker.folders.syncing.running import sync_tree

__all__ = ["Step", "SyncReport", "sync_tree"]
