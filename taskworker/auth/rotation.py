"""Replaces a server's certificate authority in steps, between which everybody learns of the change."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

from storage.errors import InvalidArgument
from taskworker.auth.authority import Authority

_NAMED_MAX = 5


class Step(StrEnum):
    """A step of replacing an authority, in this order."""

    ADD_NEXT = "add-next"
    PROMOTE = "promote"
    DROP_FORMER = "drop-former"


class Rotation:
    """Replaces an authority. Thread-safe.

    Args:
        authority: the authority.
        waiting: returns the members that do not know the present authorities yet.
        changed: called after each step.
    """

    def __init__(
        self,
        authority: Authority,
        waiting: Callable[[], list[str]] = list,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.authority = authority
        self.waiting = waiting
        self._changed = changed

    def take(self, step: Step, *, force: bool = False) -> None:
        """Take a step.

        Args:
            step: which one.
            force: whether to take it although members do not know of the one before. Those need a new token to join.

        Raises:
            InvalidArgument: it is not this step's turn, or members do not know of the one before yet.
        """
        waiting = self.waiting()
        if waiting and not force and step is not Step.ADD_NEXT:
            names = ", ".join(waiting[:_NAMED_MAX]) + (", ..." if len(waiting) > _NAMED_MAX else "")
            raise InvalidArgument(
                f"{len(waiting)} workers have not renewed their certificates since the last step: {names}. Workers "
                "that are connected do so within moments, and certificates of others expire after a day: wait, or "
                "force this step, after which those need new tokens"
            )
        {
            Step.ADD_NEXT: self.authority.add_next,
            Step.PROMOTE: self.authority.promote,
            Step.DROP_FORMER: self.authority.drop_former,
        }[step]()
        self._changed()
