"""The embeddable store: :class:`storage.FileStorage`, and the parts that it is put together from."""

from storage.engine.store import COLLECT_GRACE_S, FileStorage

__all__ = ["COLLECT_GRACE_S", "FileStorage"]
