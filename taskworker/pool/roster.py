"""The roster: the members and layouts of a pool, stored consistently.

If only a part of a change were stored, such as a new member without its layout, or a layout without a member whose
standing is unchanged, it would stay like that for ever. So related changes are stored in one transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from storage.catalog import Catalog
from storage.errors import FormatError
from storage.fleet.layout import Layout, LayoutRecord
from taskworker.pool.membership import MemberRecord

_MEMBERS = "pool-members"
_SLOTS = "pool-slots-given"
_LAYOUTS = "pool-layouts"
_RETIRED = "pool-retired-layouts"
ROSTER_DOCUMENTS = (_MEMBERS, _SLOTS, _LAYOUTS, _RETIRED)

DocumentT = TypeVar("DocumentT")
_members = msgspec.msgpack.Decoder(tuple[MemberRecord, ...])
_count = msgspec.msgpack.Decoder(int)
_layouts = msgspec.msgpack.Decoder(list[LayoutRecord])


@dataclass(frozen=True, slots=True)
class Roster:
    """Members and layouts at one moment.

    Attributes:
        members: all members, by slot.
        slots_given: how many slot numbers were ever assigned; the next new member gets this number.
        layouts: the current layout, then those whose shards have not all been moved yet, newest first.
        retired: earlier layouts, whose tables are reused once their members are back.
    """

    members: tuple[MemberRecord, ...] = ()
    slots_given: int = 0
    layouts: tuple[Layout, ...] = ()
    retired: tuple[Layout, ...] = ()


class RosterKeeper:
    """Stores the roster in a pool's catalog; ``roster`` is the current one.

    Args:
        catalog: the pool's catalog.

    Raises:
        FormatError: the stored roster is damaged.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self.roster = _read(catalog)

    def keep(self, roster: Roster) -> None:
        """Replace the roster durably, in one transaction."""
        changed: dict[str, bytes] = {}
        if roster.members != self.roster.members:
            changed[_MEMBERS] = msgspec.msgpack.encode(roster.members)
        if roster.slots_given != self.roster.slots_given:
            changed[_SLOTS] = msgspec.msgpack.encode(roster.slots_given)
        if roster.layouts != self.roster.layouts:
            changed[_LAYOUTS] = _packed(roster.layouts)
        if roster.retired != self.roster.retired:
            changed[_RETIRED] = _packed(roster.retired)
        if changed:
            self._catalog.save_documents(changed)
        self.roster = roster


def _read(catalog: Catalog) -> Roster:
    members = _document(catalog, _MEMBERS, _members, (), "the pool's list of members is")
    given = _document(catalog, _SLOTS, _count, 0, "the pool's count of members is")
    at_least = max((member.slot for member in members), default=-1) + 1  # older pools stored no count
    layouts, retired = (
        tuple(Layout.from_record(record) for record in _document(catalog, name, _layouts, [], "the pool's layouts are"))
        for name in (_LAYOUTS, _RETIRED)
    )
    return Roster(members, max(given, at_least), layouts, retired)


def _document(
    catalog: Catalog, name: str, decoder: msgspec.msgpack.Decoder[DocumentT], absent: DocumentT, what: str
) -> DocumentT:
    raw = catalog.document(name)
    try:
        return absent if raw is None else decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"{what} damaged ({error}); restore the catalog") from error


def _packed(layouts: Sequence[Layout]) -> bytes:
    return msgspec.msgpack.encode([layout.record() for layout in layouts])
