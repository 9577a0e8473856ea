"""Revisions that make a store write far more than their callers send: how much of that each user may have.

A patch that names a chunk has 40 bytes, and changes all nodes of the hash tree above its place: up to 64 KiB each, in
several copies.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from storage import ManifestDiff
from storage.clocks import monotonic_s
from storage.formats.manifest import FAN_OUT, SEALED_REFERENCE_BYTES
from storage.limits import MIB
from taskworker.errors import ServerBusy
from taskworker.rpc.authorization import user_of
from taskworker.rpc.binding import Caller, require_active
from taskworker.services.giving_way import HasOthers

RATE = MIB
"""Bytes of nodes a second, before copies, of one user, beyond what the user sends."""
BURST = 8 * MIB
"""As many at once, after a pause."""
_PATCH_BYTES = 40
_WAIT_S_MAX = 1.0
_LATELY_S = 10.0  # other users count as active if they called within this time
_USERS_MAX = 4096


class NodeWrites:
    """What users have left of the nodes that revisions may change. Thread-safe.

    Args:
        has_others: whether users other than one are active. If not, nothing is limited.
        clock_s: monotonic seconds.
        wait: waits for so many seconds.
    """

    def __init__(
        self,
        has_others: HasOthers,
        clock_s: Callable[[], float] = monotonic_s,
        wait: Callable[[float], object] = time.sleep,
    ) -> None:
        self._has_others = has_others
        self._clock_s = clock_s
        self._wait = wait
        self._lock = threading.Lock()
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # bytes, and when; negative: a debt

    def take(self, caller: Caller, diff: ManifestDiff) -> None:
        """Let a caller revise a file; wait a while if revisions of this user have written too much.

        Raises:
            ServerBusy: it would take too long until this user may.
            CallAbandoned: the caller has left meanwhile.
        """
        user, cost = user_of(caller), amplified_bytes(diff)
        if user is None or not cost:
            return
        is_alone = not self._has_others(user, _LATELY_S)
        with self._lock:
            now_s = self._clock_s()
            left, at_s = self._left.pop(user, (float(BURST), now_s))
            left = min(BURST, left + (now_s - at_s) * RATE)
            if is_alone:  # whoever comes next is not to find a user who may do nothing for long
                left, wait_s = max(left, cost - RATE * _WAIT_S_MAX), 0.0
            else:
                wait_s = max(0.0, -left / RATE)
            is_refused = wait_s > _WAIT_S_MAX
            self._left[user] = left if is_refused else left - cost, now_s
            if len(self._left) > _USERS_MAX:
                self._left.popitem(last=False)
        if is_refused:
            raise ServerBusy(
                "the revisions of this user have changed many places of large files with little data, which costs the "
                f"server much; try again in {wait_s:.0f} s, or push the file instead"
            )
        if wait_s:
            self._wait(wait_s)
            require_active(caller)


def amplified_bytes(diff: ManifestDiff) -> int:
    """About how many bytes of nodes a diff changes, beyond what is sent with it."""
    count = diff.new_size // max(1, diff.chunk_size) + 1
    changed = {min(patch.index, count - 1) for patch in diff.patches} or {count - 1}
    written = 0
    while True:
        changed = {position // FAN_OUT for position in changed}
        written += len(changed) * min(count, FAN_OUT) * SEALED_REFERENCE_BYTES
        count = -(-count // FAN_OUT)
        if count <= 1:
            break
    sent = sum(_PATCH_BYTES + len(patch.data or b"") for patch in diff.patches)
    return max(0, written - sent)
