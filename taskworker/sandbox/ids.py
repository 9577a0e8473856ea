"""The user ids that sandboxes of a worker run as root have on this machine: each function one of its own.

What the kernel counts or shares by user id (signals that wait, pipes, keys, watches, processes) is so shared neither
with the worker, nor between functions. A worker that is no root has its own id to give, and no other.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections import deque
from pathlib import Path

from taskworker.sandbox.launcher import NEEDED

COUNT = 1024
"""Of one worker; the first is the base's."""
_FIRST, _END = 0x7000_0000, 0x7FFF_0000
"""Ids that distributions and systemd (https://systemd.io/UIDS-GIDS) leave to nobody."""
_SMALL = range(65_520, 65_534)
"""Likewise, for a worker in a container that has only ids of 16 bits."""
_log = logging.getLogger(__name__)


def find() -> range | None:
    """Choose the ids of a worker's sandboxes; None if it has no other to give than its own."""
    if os.geteuid() != 0:
        return None
    if not _may_give():
        _log.warning(
            "this worker runs as root without the capabilities to give its sandboxes user ids of their own "
            "(CAP_SETUID, CAP_SETGID, CAP_SETFCAP): they share limits with all that runs as root; "
            "run it as an ordinary user, or with these capabilities"
        )
        return None
    blocks = (_END - _FIRST) // COUNT
    first = _FIRST + secrets.randbelow(blocks) * COUNT  # by chance: workers on one machine do not share them
    for ids in (range(first, first + COUNT), _SMALL):
        if _is_mapped("uid_map", ids) and _is_mapped("gid_map", ids):
            return ids
    _log.warning("this worker's user namespace has no ids for sandboxes: they share limits with all that runs as root")
    return None


class FunctionIds:
    """Gives every function an id, as the base knows them: the id that was given back first is given first.

    Args:
        ids: of the worker's sandboxes, on this machine.
    """

    def __init__(self, ids: range | None) -> None:
        self._free = deque(range(2, len(ids) + 1) if ids is not None else ())

    def take(self) -> int:
        """Give an id; 0 if functions have that of the base."""
        if not self._free:
            return 0
        uid = self._free.popleft()
        if not self._free:  # more functions than ids: the oldest ones share
            self._free.append(uid)
        return uid

    def give_back(self, uid: int) -> None:
        """Let an id be given again, late."""
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
