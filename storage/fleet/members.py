"""Members of a layout, and the domains in which they fail together."""

from __future__ import annotations

import msgspec


class Member(msgspec.Struct, frozen=True):
    """A volume that takes part in a layout.

    Attributes:
        slot: its number in the pool, given once and never to another.
        worker: id of the worker that offers it.
        zone: what fails together with it beyond the worker (a rack, a room); "" is a zone like any other. Zones are an
            owner's: those of two owners are different ones, whatever they are called.
        capacity: its weight, in bytes.
        owner: who runs the machine, and may take it away together with all others of theirs; "" for all whose owner
            is not named, as they may be the same.
    """

    slot: int
    worker: str
    zone: str
    capacity: int
    owner: str = ""


def by_worker(member: Member) -> str:
    """A worker's volumes fail together."""
    return member.worker


def by_zone(member: Member) -> str:
    """Workers of a zone fail together."""
    return f"{member.owner}\0{member.zone}"


def by_owner(member: Member) -> str:
    """Zones of an owner fail together."""
    return member.owner
