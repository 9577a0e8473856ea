"""The chunks and nodes that a push has claimed, and whether all claims still exist at its commit."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from storage.batching import batched
from storage.errors import IncompletePush
from storage.formats.manifest import FAN_OUT, RootNode
from storage.formats.sealed_nodes import manifest_over
from storage.keys import Kind, StripeKey, kind_of
from storage.sealing.user_keys import UserKeys
from storage.stripes.stripes import metadata_stripe
from storage.write.chunks import stripe_to
from storage.write.context import PushContext

_COLLECTED = "a part of this push was collected before its commit; push again"


def stripes_of(
    context: PushContext, root: RootNode, keys: UserKeys | None, nodes: Iterable[tuple[bytes, bytes]]
) -> Iterator[StripeKey]:
    """Yield every stripe of a push except that of its version.

    Args:
        context: parts of the store.
        root: root of the push's manifest.
        keys: keys that open it, if it is sealed.
        nodes: stored nodes that are not in the catalog yet, as (id, bytes).

    Raises:
        IncompletePush: a node is neither given nor in the catalog.
    """
    own = dict(nodes)

    def load(node_id: bytes) -> bytes:
        raw = own.get(node_id) or context.catalog.node(node_id)
        if raw is None:
            raise IncompletePush(_COLLECTED)
        return raw

    manifest = manifest_over(root, keys, load)
    for node_id in manifest.node_ids():
        yield metadata_stripe(Kind.NODE, node_id, context.metadata_copies)
    for reference in manifest.references():
        yield stripe_to(reference, root.profile)


def require_claims(
    context: PushContext, user: bytes, stripes: Iterable[StripeKey], *, pinned: Collection[StripeKey]
) -> None:
    """Check that a user's claims on the chunks of a push are in the catalog, as a collect may have dropped them.

    Args:
        context: parts of the store.
        user: key of the user.
        stripes: all stripes of the push; those that are no chunks are passed over.
        pinned: chunks that need no claim, as no collect takes them.

    Raises:
        IncompletePush: a claim is missing.
    """
    chunks = (stripe for stripe in stripes if kind_of(stripe) == Kind.CHUNK and stripe not in pinned)
    for batch in batched(chunks, FAN_OUT):
        if not all(context.catalog.holds(user, batch)):
            raise IncompletePush(_COLLECTED)
