"""The embeddable store: :class:`storage.FileStorage`, and the parts it consists of."""

from storage.engine.store import COLLECT_GRACE_S, FileStorage

__all__ = ["COLLECT_GRACE_S", "FileStorage"]
