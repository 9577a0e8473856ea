"""Takes manifest nodes from volumes into the catalog, for a rebuild."""

from __future__ import annotations

from storage.catalog import Catalog
from storage.formats.manifest import object_id
from storage.keys import Kind
from storage.stripes.stripes import StripeStore, metadata_stripe

_NODES_MAX = 256  # 16 MiB


class NodeTaker:
    """Loads manifest nodes, and stores those in the catalog that it lacks or has damaged.

    Args:
        catalog: stores the nodes.
        stripes: reads nodes that the catalog lacks.
        copies: how many copies there are of each node.
    """

    def __init__(self, catalog: Catalog, stripes: StripeStore, copies: int) -> None:
        self._catalog = catalog
        self._stripes = stripes
        self._copies = copies
        self._found: dict[bytes, bytes] = {}

    @property
    def crowded(self) -> bool:
        """Whether it is time to :meth:`keep` them, so that memory stays bounded."""
        return len(self._found) >= _NODES_MAX

    def load(self, node_id: bytes) -> bytes:
        """A node's bytes."""
        raw = self._found.get(node_id) or self._catalog.node(node_id)
        if raw is None or object_id(raw) != node_id:
            raw = self._found[node_id] = self._stripes.read(metadata_stripe(Kind.NODE, node_id, self._copies))
        return raw

    def keep(self) -> None:
        """Store nodes found on the volumes in the catalog; do not call this inside a transaction."""
        if self._found:
            found = list(self._found.items())
            self._catalog.transact(lambda txn: txn.put_nodes(found))
            self._found.clear()
