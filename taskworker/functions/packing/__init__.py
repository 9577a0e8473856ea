"""The author's side: packs functions into bundles, from the running program or from modules on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from storage.lazily import loading

if TYPE_CHECKING:
    from taskworker.functions.packing.modules import pack_module

__all__ = ["pack_module"]

__getattr__, __dir__ = loading(__name__, {"pack_module": "taskworker.functions.packing.modules"})
