"""User ids on this machine for the sandboxes of a worker run as root: one for each function.

The kernel counts some resources per user id: pending signals, pipes, keys, watches, processes. With ids of their own,
functions share these limits neither with the worker nor with each other. A worker that is not root can only give its
sandboxes its own id.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections import deque
from pathlib import Path

from taskworker.sandbox.launcher import NEEDED

COUNT = 1024
"""How many ids a worker takes; the first one is the base's."""
_FIRST, _END = 0x7000_0000, 0x7FFF_0000
"""Ids that neither distributions nor systemd (https://systemd.io/UIDS-GIDS) use."""
_SMALL = range(65_520, 65_534)
"""The same for a worker in a container that has only 16-bit ids."""
_log = logging.getLogger(__name__)


def find() -> range | None:
    """Choose the ids for a worker's sandboxes; None if it can only give them its own."""
    if os.geteuid() != 0:
        return None
    if not _may_give():
        _log.warning(
            "this worker runs as root without the capabilities to give its sandboxes user ids of their own "
            "(CAP_SETUID, CAP_SETGID, CAP_SETFCAP): they share limits with everything that runs as root; "
            "run it as an ordinary user, or with these capabilities"
        )
        return None
    blocks = (_END - _FIRST) // COUNT
    first = _FIRST + secrets.randbelow(blocks) * COUNT  # random, so that workers on one machine rarely share ids
    for ids in (range(first, first + COUNT), _SMALL):
        if _is_mapped("uid_map", ids) and _is_mapped("gid_map", ids):
            return ids
    _log.warning("this worker's user namespace has no ids for sandboxes: they share the limits of root's processes")
    return None


class FunctionIds:
    """Gives every function an id, as numbered in the base's user namespace. Reuses the id that was free the longest.

    Args:
        ids: ids on this machine for the worker's sandboxes; None: functions have the base's id.
    """

    def __init__(self, ids: range | None) -> None:
        self._free = deque(range(2, len(ids) + 1) if ids is not None else ())

    def take(self) -> int:
        """Return an id; 0 if functions have the base's id."""
        if not self._free:
            return 0
        uid = self._free.popleft()
        if not self._free:  # more functions than ids: the last id is shared
            self._free.append(uid)
        return uid

    def give_back(self, uid: int) -> None:
        """Put an id at the end of the queue of free ids."""
        if uid and uid not in self._free:
            self._free.append(uid)


def _may_give() -> bool:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16) & NEEDED == NEEDED
    return False


def _is_mapped(name: str, ids: range) -> bool:
    for line in Path("/proc/self", name).read_text().splitlines():
        first, _, count = map(int, line.split())
        if first <= ids.start and ids.stop <= first + count:
            return True
    return False
