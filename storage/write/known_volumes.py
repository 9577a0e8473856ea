"""What the catalog knows of each volume: its mark, and a shard that it must have."""

from __future__ import annotations

import logging

import msgspec

from storage.catalog import Catalog

log = logging.getLogger(__name__)

_MARKS = "volume-marks"


class KnownVolume(msgspec.Struct, array_like=True, frozen=True):
    """The keys of a volume's mark and of a version shard that it must have; empty if there is none."""

    mark: bytes
    witness: bytes = b""


_known_by_slot = msgspec.msgpack.Decoder(dict[int, KnownVolume])


def read_known(catalog: Catalog) -> dict[int, KnownVolume]:
    """The known volumes by slot; none if the record is damaged, which the next commit replaces."""
    raw = catalog.document(_MARKS)
    try:
        return {} if raw is None else _known_by_slot.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        log.warning("the catalog's record of its volumes is damaged; the next commit replaces it: %s", error)
        return {}


def save_known(catalog: Catalog, known: dict[int, KnownVolume]) -> None:
    """Keep the known volumes in the catalog."""
    catalog.save_document(_MARKS, msgspec.msgpack.encode(known))
