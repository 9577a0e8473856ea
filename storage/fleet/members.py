"""Members of a layout, and their failure domains."""

from __future__ import annotations

import msgspec


class Member(msgspec.Struct, frozen=True):
    """A volume in a layout.

    Attributes:
        slot: its number in the pool, which is never reused.
        worker: id of the worker that offers it.
        zone: its failure domain beyond the worker (a rack, a room); "" is a zone like any other. Zones of different
            owners are different, even if they have the same name.
        capacity: its weight, in bytes.
        owner: who runs the machine, and may take it away with all his others; members whose owner is not named share
            the owner "", since they may belong to one owner.
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
