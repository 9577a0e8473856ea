"""Packing of modules, under the name that programs have had for it; it is in ``taskworker.packing``."""

from taskworker.packing.declared import pack_function
from taskworker.packing.modules import pack_module

__all__ = ["pack_function", "pack_module"]
