"""Renews a worker's certificate in time, or when the pool says so."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import grpc

from storage.errors import StorageError
from taskworker.worker.member import WorkerMember

log = logging.getLogger(__name__)

_AGAIN_S = 60.0


class Renewal:
    """Renews a certificate, from one thread.

    Args:
        member: whose certificate; None: there is none to renew.
        channel: a channel to the pool that follows renewals.
        clock_s: monotonic seconds.
    """

    def __init__(self, member: WorkerMember | None, channel: grpc.Channel, clock_s: Callable[[], float]) -> None:
        self._member = member
        self._channel = channel
        self._clock_s = clock_s
        self._due_from_s = -math.inf
        self._failed_until_s = -math.inf

    def look(self, *, told: bool) -> bool:
        """Renew the certificate if half of its lifetime has passed, or if the pool has said so.

        After a failure, it is tried again a minute later.

        Returns:
            Whether it was renewed.
        """
        now_s = self._clock_s()
        if self._member is None or now_s < self._failed_until_s:
            return False
        if not told and not (self._member.credentials.is_due and now_s >= self._due_from_s):
            return False
        self._due_from_s = self._failed_until_s = now_s + _AGAIN_S
        try:
            self._member.renew(self._channel)
        except (StorageError, OSError) as error:
            log.warning("this worker's certificate could not be renewed, and is tried again: %s", error)
            return False
        self._failed_until_s = -math.inf
        return True
